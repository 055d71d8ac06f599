"""The table of cells of a store on disk: single columns of it, read block by block, and labels as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sckit.data.labels import Labels, group_values, refuse_unknown
from sckit.data.manifest import NUMBERS, OWN_COLUMNS
from sckit.data.readers.texts import TEXTS
from sckit.errors import DataError, SckitError, said

_ROWS = 2**16


@dataclass(frozen=True)
class CellTable:
    """The obs.parquet of C cells. Opening it reads nothing; a column is read when it is asked for."""

    path: Path
    n_cells: int

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns. Raises `DataError` where this is not the table of the store."""
        return list(self._schema.names)

    def frame(self) -> pd.DataFrame:
        """Read the whole table. Raises `DataError` where it is not the table of the store."""
        assert self._schema
        with self._opened() as file:
            table = file.read()
            if any(table.column(name).null_count for name in OWN_COLUMNS):
                raise self._strange()
            return table.to_pandas(types_mapper=TEXTS.get)

    def numbers(self, name: str) -> np.ndarray:
        """Read a column of whole numbers from 0 up, [C] in the narrowest type that holds them."""
        found = np.zeros(self.n_cells, np.uint8)
        for first, column in self.blocks(name):
            part = column.to_numpy()
            if part.min(initial=0) < 0:
                raise self._strange()
            found = found.astype(np.promote_types(found.dtype, np.min_scalar_type(part.max(initial=0))), copy=False)
            found[first : first + len(part)] = part
        return found

    def labels(self, name: str) -> Labels:
        """Read a column as labels. Raises `ConfigError` where it is not there."""
        refuse_unknown(name, self.columns)
        values, codes = self._coded(name)
        schema = pa.schema([pa.field(name, values.type)], metadata=self._schema.metadata)
        return Labels.of(group_values(pa.Table.from_arrays([values], schema=schema).to_pandas(), name), codes)

    def categories(self, name: str) -> tuple[Any, np.ndarray, bool] | None:
        """Read categories or texts as (Arrow array of the values, codes [C] int32, whether they are ordered).

        None for a column of another kind. A code is -1 where nothing is given.
        """
        kind = self._schema.field(name).type
        is_categories = pa.types.is_dictionary(kind)
        if not (is_categories or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return None
        return *self._coded(name), is_categories and kind.ordered

    def column(self, name: str) -> pd.Series:
        """Read a column as the whole table has it."""
        with self._opened() as file:
            return file.read(columns=[name], use_threads=False).to_pandas(types_mapper=TEXTS.get)[name]

    def blocks(self, name: str) -> Iterator[tuple[int, Any]]:
        """Yield the first row and the Arrow array of each block of a column."""
        first, own = 0, name in OWN_COLUMNS and self._schema is not None
        with self._opened() as file:
            for batch in file.iter_batches(_ROWS, columns=[name], use_threads=False):
                column = batch.column(0)
                if own and column.null_count:
                    raise self._strange()
                yield first, column
                first += len(column)

    def _coded(self, name: str) -> tuple[Any, np.ndarray]:
        """Read a column as different values, an Arrow array, and their numbers [C] int32, -1 where nothing is given."""
        kind = self._schema.field(name).type
        values = pa.array([], kind.value_type if pa.types.is_dictionary(kind) else kind)
        codes = np.full(self.n_cells, -1, np.int32)  # numbers of the values, in the order in which they come
        for first, column in self.blocks(name):
            part = column if pa.types.is_dictionary(kind) else column.dictionary_encode()
            new = part.dictionary.filter(pa.array(_places(part.dictionary, values) < 0))
            values = pa.concat_arrays([values, new])
            number = _places(part.dictionary, values)
            places = part.indices.fill_null(-1).to_numpy(zero_copy_only=False)
            codes[first : first + len(part)] = np.append(number, -1)[places]
        return values, codes

    @cached_property
    def _schema(self) -> pa.Schema:
        """Read the types of the columns. Raises `DataError` where they are not those that `prepare` writes."""
        with self._opened() as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
        kinds = {name: schema.field(name).type for name in OWN_COLUMNS if name in schema.names}
        texts = [kinds.get(name) for name in OWN_COLUMNS if name not in NUMBERS]
        texts = [kind.value_type if kind and pa.types.is_dictionary(kind) else kind for kind in texts]
        own = {*texts} <= {pa.string(), pa.large_string()} and {kinds.get(name) for name in NUMBERS} == {pa.int64()}
        if rows != self.n_cells or not own or len({*schema.names}) != len(schema.names):
            raise self._strange()
        return schema

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(self.path) as file:
                yield file
        except SckitError:
            raise
        except Exception as error:  # of pandas and pyarrow, each with kinds of its own
            raise DataError(f"{self.path} cannot be read ({said(error)}); prepare the store again.") from error

    def _strange(self) -> DataError:
        return DataError(f"{self.path} is not the table of this store; prepare it again.")


def _places(values: Any, among: Any) -> np.ndarray:
    """Return where each value is among others, -1 for those that are not."""
    found = pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=among))
    return found.fill_null(-1).to_numpy(zero_copy_only=False)
