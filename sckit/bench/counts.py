"""`sckit bench counts`: what sckit does to counts beside the fastest numpy, scipy and torch that we know for it.

Counts are made up, Poisson with the depth and the gene shares of PBMC, so that the command needs no file. Every round
times every variant once, so that other load on the machine hits them alike. No time is reported before all results
agree with the reference.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from sckit.bench import counts_competitors as rivals
from sckit.data.filters import GeneMoments
from sckit.data.readers.source import CountsBlock
from sckit.errors import SckitError
from sckit.kernels import counts_numba, counts_reference

Variants = dict[str, Callable[[], Any]]
CELLS = (200, 2_000, 20_000)  # a batch of training, a block of `prepare`, ten of them
OWN = "sckit"

_GENES, _MITOCHONDRIAL, _FEATURES, _KEY, _RATE, _SIZE = 11_000, 13, 13, 7, 0.5, 2.0
_MEDIAN_TOTAL, _MAX_GENES = 2_300, 4_096
_DRAWS = ("split binomial", "split negative-binomial")  # rivals draw from a law of their own generator


@dataclass(frozen=True)
class Counts:
    """CSR of made-up cells and what the operations need beside it."""

    csr: tuple[np.ndarray, np.ndarray, np.ndarray]
    totals: np.ndarray  # int64 [C], somewhat more than the entries add up to
    vocabulary: np.ndarray  # int32 [G], a gene in fifty is not of the model
    of_gene: np.ndarray  # float64 [G, k]
    of_cell: np.ndarray  # float64 [C, k]

    @property
    def cells(self) -> np.ndarray:
        """Numbers of the cells, int64 [C]."""
        return np.arange(len(self.totals))

    def per_entry(self, of_cell: np.ndarray) -> np.ndarray:
        """What belongs to the cell of each entry, [nnz]."""
        return np.repeat(of_cell, np.diff(self.csr[0]))

    def sparse(self) -> sp.csr_array:
        """The counts as scipy has them, float64 [C, G]."""
        indptr, genes, counts = self.csr
        return sp.csr_array((counts.astype(np.float64), genes, indptr), (len(self.totals), _GENES))


def make_counts(n_cells: int) -> Counts:
    """Cells of lognormal depth, median 2,300; lognormal gene shares; about 940 genes a cell, 63 % of their counts 1."""
    generator = np.random.default_rng(0)
    share = generator.lognormal(0, 2.4, _GENES)
    base = min(n_cells, max(CELLS[:2]))
    depth = generator.lognormal(np.log(_MEDIAN_TOTAL), 0.5, base)
    dense = [generator.poisson(d * share / share.sum()) for d in depth]
    genes = [np.flatnonzero(cell) for cell in dense]
    counts = np.concatenate([cell[own] for cell, own in zip(dense, genes, strict=True)])
    repeats = n_cells // base
    lengths = np.tile([len(own) for own in genes], repeats)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    csr = indptr, np.tile(np.concatenate(genes).astype(np.int32), repeats), np.tile(counts.astype(np.uint32), repeats)
    in_model = np.arange(_GENES) % 50 > 0
    return Counts(
        csr=csr,
        totals=np.tile([int(cell.sum()) + 5 for cell in dense], repeats),
        vocabulary=np.where(in_model, np.cumsum(in_model) - 1, -1).astype(np.int32),
        of_gene=generator.standard_normal((_GENES, _FEATURES)),
        of_cell=generator.standard_normal((n_cells, _FEATURES)),
    )


def bench_counts(
    rounds: int = 7, tell: Callable[[dict[str, Any]], None] = lambda row: None, *, cells: Sequence[int] = CELLS
) -> dict[str, Any]:
    """Time every operation on so many cells; only torch may use more than one thread (`torch.get_num_threads()`).

    Returns the document that `sckit bench counts --json` ends with; `tell` gets every row as it is measured.
    Raises SckitError when an engine disagrees with the reference.
    """
    _check(make_counts(50))
    rows = []
    for n_cells in cells:
        counts = make_counts(n_cells)
        for op, (_, variants) in operations(counts).items():
            for engine, walls_s in _times(variants, rounds).items():
                low, median, high = np.quantile(walls_s, [0.2, 0.5, 0.8]).tolist()
                row = {"op": op, "case": f"{n_cells} cells", "engine": engine, "median_ms": 1e3 * median}
                row |= {"p20_ms": 1e3 * low, "p80_ms": 1e3 * high, "entries_per_s": len(counts.csr[1]) / median}
                tell(row)
                rows.append(row)
    return {"command": "bench counts", "rows": rows}


def _times(variants: Variants, rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {engine: [] for engine in variants}
    for measured in range(-1, rounds):  # the round before the first compiles and warms up
        for engine, run in variants.items():
            start = time.perf_counter()
            run()
            if measured >= 0:
                times[engine].append(time.perf_counter() - start)
    return times


def _check(counts: Counts) -> None:
    for op, (reference, variants) in operations(counts).items():
        for engine, run in variants.items():
            if op in _DRAWS and engine != OWN:
                continue
            for got, want in zip(_arrays(run()), _arrays(reference()), strict=True):
                if got.shape != want.shape or not np.allclose(got, want, rtol=1e-6, atol=1e-9):
                    message = f"{engine} is wrong on {op!r}, so no time is reported; run pytest tests/kernels."
                    raise SckitError(message)


def _arrays(result: Any) -> list[np.ndarray]:
    """The arrays of a nested result, in order."""
    if isinstance(result, tuple):
        return [array for part in result for array in _arrays(part)]
    return [np.asarray(result)]


def operations(counts: Counts) -> dict[str, tuple[Callable[[], Any], Variants]]:
    """Each operation with its reference and its variants, sckit's own first."""
    return _statistics(counts) | _values(counts) | _random(counts)


def _statistics(counts: Counts) -> dict[str, tuple[Callable[[], Any], Variants]]:
    """What `prepare` needs of cells and genes."""
    indptr, genes, raw = counts.csr
    n_cells = len(counts.totals)
    block = CountsBlock(indptr, genes, raw, pd.DataFrame(index=range(n_cells)))
    marked = (np.arange(_GENES) < _MITOCHONDRIAL).astype(np.float64)
    scale = counts_reference.TARGET_SUM / counts.totals

    def totals_bincount() -> np.ndarray:
        return np.bincount(counts.per_entry(counts.cells), weights=raw, minlength=n_cells)

    def totals_torch() -> np.ndarray:
        values = torch.from_numpy(raw.astype(np.float64))
        return torch.segment_reduce(values, "sum", offsets=torch.from_numpy(indptr)).numpy()

    def marked_bincount() -> np.ndarray:
        return np.bincount(counts.per_entry(counts.cells), weights=raw * marked[genes], minlength=n_cells)

    def moments() -> tuple[np.ndarray, np.ndarray]:
        of_genes = GeneMoments(_GENES)
        of_genes.add(indptr, genes, raw, counts.totals)
        return of_genes.mean_and_variance()

    def finish(total: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = total / n_cells
        return mean, np.maximum(squares - n_cells * mean**2, 0) / (n_cells - 1)

    def moments_bincount() -> tuple[np.ndarray, np.ndarray]:
        values = raw * counts.per_entry(scale)
        return finish(*(np.bincount(genes, x, minlength=_GENES) for x in (values, values * values)))

    def moments_torch() -> tuple[np.ndarray, np.ndarray]:
        values = torch.from_numpy(raw * counts.per_entry(scale))
        at = torch.from_numpy(genes)
        empty = torch.zeros(_GENES, dtype=torch.float64)
        return finish(*(empty.index_add(0, at, x).numpy() for x in (values, values * values)))

    return {
        "totals": (
            totals_bincount,
            {OWN: block.totals, "numpy": totals_bincount, "scipy": lambda: counts.sparse().sum(1)}
            | {"torch": totals_torch},
        ),
        "marked counts": (marked_bincount, {OWN: lambda: block.weighted(marked), "numpy": marked_bincount}),
        "gene moments": (moments_bincount, {OWN: moments, "numpy": moments_bincount, "torch": moments_torch}),
    }


def _values(counts: Counts) -> dict[str, tuple[Callable[[], Any], Variants]]:
    """What turns counts into values and predictions."""
    named = counts.csr, counts.totals, counts.vocabulary
    of_gene, of_cell, genes = counts.of_gene, counts.of_cell, counts.csr[1]
    cell_of_entry = counts.per_entry(counts.cells)
    return {
        "normalise": (
            lambda: counts_reference.normalise(*named),
            {
                OWN: lambda: counts_numba.normalise(*named),
                "numpy": lambda: rivals.normalise_numpy(*named),
                "scipy": lambda: rivals.normalise_scipy(*named),
                "torch": lambda: rivals.normalise_torch(*named),
            },
        ),
        "entry dot": (
            lambda: counts_reference.entry_dot(of_gene, genes, of_cell, cell_of_entry),
            {
                OWN: lambda: counts_numba.entry_dot(of_gene, genes, of_cell, cell_of_entry),
                "numpy": lambda: rivals.dot_numpy(counts.csr, of_gene, of_cell),
                "torch": lambda: rivals.dot_torch(counts.csr, of_gene, of_cell),
            },
        ),
    }


def _random(counts: Counts) -> dict[str, tuple[Callable[[], Any], Variants]]:
    """What hides, cuts and splits."""
    csr, totals, cells, vocabulary = counts.csr, counts.totals, counts.cells, counts.vocabulary
    choice = {"vocabulary": vocabulary, "max_genes": _MAX_GENES}
    hide = counts_reference.Hide(_KEY, np.full(len(cells), _RATE))
    sizes = np.full(_GENES, _SIZE)
    generator = np.random.default_rng(0)

    def both(name: str, *arguments: Any, **options: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        reference, own = (getattr(engine, name) for engine in (counts_reference, counts_numba))
        return lambda: reference(*arguments, **options), lambda: own(*arguments, **options)

    pack, own_pack = both("pack", csr, cells, totals, hide, **choice)
    cut, own_cut = both("cut", csr, cells, _KEY, **choice)
    split, own_split = both("halve", csr, cells, totals, _KEY)
    nb, own_nb = both("halve", csr, cells, totals, _KEY, sizes=sizes)
    drawn = {OWN: own_split, "numpy": lambda: rivals.split_numpy(csr, generator)}
    drawn["torch"] = lambda: rivals.split_torch(csr)
    return {
        "hide and pack": (
            pack,
            {OWN: own_pack, "numpy": lambda: rivals.pack_numpy(csr, totals, vocabulary, _KEY, _RATE)},
        ),
        "cut": (cut, {OWN: own_cut, "numpy": lambda: rivals.cut_numpy(csr, vocabulary)}),
        _DRAWS[0]: (split, drawn),
        _DRAWS[1]: (nb, {OWN: own_nb, "numpy": lambda: rivals.split_urn_numpy(csr, generator, _SIZE)}),
    }
