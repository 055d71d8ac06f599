"""Which part of --assay and --obs-filter TileDB itself can apply, so that only the rows that are left are read."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from sckit.config.reading import ReadingConfig
from sckit.data.manifest import OWN_COLUMNS
from sckit.data.obs import assay_codes, outside_filter

_SIGNS = {ast.Eq: "==", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.NotEq: "!="}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


class ObsQuery:
    """The rows and columns of a SOMA obs table that are wanted, and the number of cells that are never read."""

    def __init__(self, obs: Any, options: ReadingConfig, ids: Sequence[str]) -> None:
        """Count the cells by assay, for which that column is read; `ids` are the names of columns with cell ids."""
        self._obs = obs
        self.left_out: dict[str, int] = {}
        """Cells that are not read, by reason."""
        self.assays = _assay_counts(obs)
        """All cells by assay; empty without such a column."""
        self._conditions = self._of_assay(options.assay) if self.assays and options.assay else []
        self._obs_filter = pushed_down(options.obs_filter, obs.schema)
        self._reason = outside_filter(options.obs_filter or "")
        wanted = {"soma_joinid", *ids, "assay", *columns_of(options.obs_filter), options.totals, *options.obs_columns}
        self._columns = [name for name in obs.schema.names if name in wanted] if options.obs_columns else None

    def read(self) -> pd.DataFrame:
        """Read what is wanted, and count what the filter leaves out."""
        conditions = " and ".join([*self._conditions, *self._obs_filter])
        table = self._obs.read(column_names=self._columns, value_filter=conditions or None).concat()
        outside = self._obs.count - sum(self.left_out.values()) - len(table)
        if outside and self._obs_filter:
            self.left_out[self._reason] = outside
        return table.to_pandas(split_blocks=True, self_destruct=True)

    def _of_assay(self, assay: str) -> list[str]:
        """Return the condition that keeps the assays that --assay keeps, if it leaves out any."""
        labels = list(self.assays)
        codes, reasons = assay_codes(pd.DataFrame({"assay": labels}), assay, "obs")
        kept = [label for label, code in zip(labels, codes, strict=True) if code == 0]
        if len(kept) == len(labels) or "not given" in kept or not (kept or assay == "10x"):
            return []  # `judge_obs` knows what to say of labels that no input has
        for label, code in zip(labels, codes, strict=True):
            if code:
                self.left_out[reasons[code - 1]] = self.assays[label]
        return [is_one_of("assay", kept or [""])]


def _assay_counts(obs: Any) -> dict[str, int]:
    """Count the cells by assay: the one column that is read of all cells."""
    if "assay" not in obs.schema.names or not is_text(obs.schema.field("assay")):
        return {}
    found: Counter[str] = Counter()
    for table in obs.read(column_names=["assay"]):
        for pair in table["assay"].value_counts().to_pylist():
            found["not given" if pair["values"] is None else pair["values"]] += pair["counts"]
    return {label: found[label] for label in sorted(found)}


def pushed_down(query: str | None, schema: pa.Schema) -> list[str]:
    """Return the conditions, all of which must hold, that TileDB can check and that mean what pandas takes them for.

    The rest of the query is left to `sckit.data.obs.judge_obs`, which checks the whole of it once more: missing values
    with `!=`, columns that only other inputs have, arithmetic, and text that is ordered.
    """
    try:
        tree = ast.parse(query or "True", mode="eval").body
    except SyntaxError:
        return []
    return [found for part in _conjuncts(tree) if (found := _translated(part, schema)) is not None]


def is_one_of(column: str, labels: Sequence[str]) -> str:
    """Return the condition that a text column holds one of the labels."""
    return f"{column} in {list(labels)!r}"


def columns_of(query: str | None) -> set[str]:
    """Return the names that a query mentions; none where it is no expression."""
    try:
        return {node.id for node in ast.walk(ast.parse(query or "True")) if isinstance(node, ast.Name)}
    except SyntaxError:
        return set()


def is_text(field: pa.Field) -> bool:
    """Return whether a column holds text, as such or as categories."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _conjuncts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return [part for value in node.values for part in _conjuncts(value)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        return [*_conjuncts(node.left), *_conjuncts(node.right)]
    return [node]


def _translated(node: ast.expr, schema: pa.Schema) -> str | None:
    """Write a condition in TileDB's words; None where it cannot, or where it might mean something else."""
    if isinstance(node, ast.BoolOp):
        return _joined(node.values, " or " if isinstance(node.op, ast.Or) else " and ", schema)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd):
        return _joined([node.left, node.right], " or " if isinstance(node.op, ast.BitOr) else " and ", schema)
    if isinstance(node, ast.Name):
        field = _column(node, schema)
        return f"{field.name} == True" if field is not None and pa.types.is_boolean(field.type) else None
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _comparison(node.left, node.ops[0], node.comparators[0], schema)
    return None


def _joined(parts: Sequence[ast.expr], word: str, schema: pa.Schema) -> str | None:
    found = [_translated(part, schema) for part in parts]
    known = [one for one in found if one is not None]
    return f"({word.join(known)})" if len(known) == len(found) else None


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr, schema: pa.Schema) -> str | None:
    if isinstance(operator, ast.In | ast.NotIn):
        field = _column(left, schema)
        listed = right.elts if isinstance(right, ast.List | ast.Tuple) else []
        values = [one.value for one in listed if isinstance(one, ast.Constant)]
        if field is None or not values or len(values) < len(listed) or not all(_fits(value, field) for value in values):
            return None
        if isinstance(operator, ast.NotIn):
            return None if field.nullable else f"{field.name} not in {values!r}"
        return f"{field.name} in {values!r}"
    sign = _SIGNS.get(type(operator))
    if isinstance(left, ast.Constant):
        left, right, sign = right, left, _MIRRORED.get(sign or "", sign)
    field = _column(left, schema)
    if sign is None or field is None or not isinstance(right, ast.Constant) or not _fits(right.value, field):
        return None
    if sign == "!=" and field.nullable:  # pandas keeps missing values, TileDB does not
        return None
    if sign not in ("==", "!=") and pa.types.is_dictionary(field.type) | is_text(field) | pa.types.is_boolean(
        field.type
    ):
        return None
    return f"{field.name} {sign} {right.value!r}"


def _column(node: ast.expr, schema: pa.Schema) -> pa.Field | None:
    """Return the column that a name means, unless the store has one of its own of that name."""
    known = isinstance(node, ast.Name) and node.id in schema.names and node.id not in (*OWN_COLUMNS, "index")
    return schema.field(node.id) if known and isinstance(node, ast.Name) else None


def _fits(value: Any, field: pa.Field) -> bool:
    """Return whether a value is of the kind of a column, so that nothing is rounded to compare them."""
    kind = field.type
    if isinstance(value, str):
        return is_text(field)
    if isinstance(value, bool):
        return pa.types.is_boolean(kind)
    if pa.types.is_float64(kind):
        return isinstance(value, float) or (isinstance(value, int) and abs(value) <= 2**53)
    if not isinstance(value, int) or not pa.types.is_integer(kind):
        return False
    try:
        pa.scalar(value, kind)
    except (pa.ArrowInvalid, OverflowError):
        return False
    return True
