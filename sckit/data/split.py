"""Which cells are trained on, validated on and held out, and which genes the model knows."""

from collections.abc import Callable

import numpy as np

from sckit.config import PretrainConfig
from sckit.data.labels import Labels, choose_labels
from sckit.data.store import Store
from sckit.data.views import in_blocks
from sckit.errors import ConfigError, DataError

TRAIN, VALIDATION, HELD_OUT, LEFT_OUT = range(4)

_HELD_OUT_SHARE = 0.2
_VALIDATION_SHARE = 0.1
_BLOCK_CELLS = 4096


def split_cells(store: Store, config: PretrainConfig, on_event: Callable = lambda _kind, _facts: None) -> np.ndarray:
    """Split the cells: TRAIN, VALIDATION, HELD_OUT or LEFT_OUT for every one, int8 [cells].

    Held out: the named values of the group column, a fifth of its values, a random fifth of the cells, or one of the
    parts that `folds` makes; they have no part in training. Left out: cells without a value in the group column, which
    may be of any group. Validation: a random tenth of the rest, at most `validate_cells`.
    Raises `DataError` when too few cells are left on a side, `ConfigError` for a group that cannot be held out.
    """
    generator = np.random.default_rng(config.seed)
    held_out, left_out = _held_out(store, config, generator, on_event)
    split = np.select([held_out, left_out], [HELD_OUT, LEFT_OUT], TRAIN).astype(np.int8)
    rest = np.flatnonzero(split == TRAIN)
    n_validation = min(max(1, int(_VALIDATION_SHARE * len(rest))), config.validate_cells)
    if len(rest) < 3 or not held_out.any():
        raise DataError(f"{len(rest)} cells to train on and {held_out.sum()} held out are too few; give more cells.")
    split[generator.permutation(rest)[:n_validation]] = VALIDATION
    return split


def _held_out(
    store: Store, config: PretrainConfig, generator: np.random.Generator, on_event: Callable
) -> tuple[np.ndarray, np.ndarray]:
    """Mark the cells that are held out and those of no known group, bool [cells] each."""
    if config.group is None and config.folds:
        if config.folds > store.n_cells:
            raise ConfigError(f"--folds {config.folds} is more than the {store.n_cells:,} cells; give fewer.")
        part = generator.permutation(store.n_cells) % config.folds
        return part == config.fold, np.zeros(store.n_cells, bool)
    if config.group is None:
        chosen = np.zeros(store.n_cells, bool)
        chosen[generator.permutation(store.n_cells)[: max(1, int(_HELD_OUT_SHARE * store.n_cells))]] = True
        return chosen, np.zeros(store.n_cells, bool)
    labels = store.labels(config.group)
    unknown, present = labels.codes < 0, labels.names.tolist()
    if unknown.any():
        text = f"{int(unknown.sum()):,} cells have no value in {config.group}: they are left out of training and test"
        on_event("note", {"text": text})
    if not present:
        raise ConfigError(f"--group {config.group} has no value in any cell; name a column with values.")
    named, notes = choose_labels(config.hold_out, present, "--hold-out", config.group)
    for note in notes:
        on_event("note", {"text": note})
    if len(present) < 2:
        raise ConfigError(
            f"--group {config.group} has the one value {str(present[0])!r}; name another column, or leave out --group."
        )
    if config.folds:
        return labels.are(_groups_of_fold(labels, config)), unknown
    chosen = named or generator.permutation(present)[: max(1, int(_HELD_OUT_SHARE * len(present)))]
    return labels.are(chosen), unknown


def _groups_of_fold(labels: Labels, config: PretrainConfig) -> list[str]:
    """Return the groups that the fold of a config leaves out; the groups are dealt to the folds by size."""
    assert config.folds is not None
    present = labels.names.tolist()
    if config.folds > len(present):
        raise ConfigError(
            f"--folds {config.folds} is more than the {len(present)} groups of {config.group}; give {len(present)} or "
            "fewer."
        )
    fold = deal_by_size(np.bincount(labels.codes + 1, minlength=len(present) + 1)[1:], config.folds)
    return [name for name, number in zip(present, fold, strict=True) if number == config.fold]


def deal_by_size(sizes: np.ndarray, folds: int) -> np.ndarray:
    """Number the fold of groups of these sizes: the largest first, each to the fold with the fewest cells so far."""
    fold, filled = np.zeros(len(sizes), np.int64), np.zeros(folds)
    for group in np.argsort(-sizes, kind="stable"):
        fold[group] = filled.argmin()
        filled[fold[group]] += sizes[group]
    return fold


def run_vocabulary(store: Store, train: np.ndarray, min_cells: int) -> np.ndarray:
    """Number the genes that at least `min_cells` training cells show: int32 [genes of the store], -1 for the others.

    Raises `DataError` when no gene is left.
    """
    seen = np.zeros(store.n_genes, np.int64)
    for part in in_blocks(train, _BLOCK_CELLS):
        _, genes, _ = store.rows(part)
        seen += np.bincount(genes, minlength=store.n_genes)
    kept = seen >= max(min_cells, 1)
    if not kept.any():
        raise DataError(f"no gene is seen in {min_cells} training cells; lower --min-cells.")
    return np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
