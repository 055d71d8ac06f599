"""`sckit bench counts`: what sckit does to counts compared with the fastest numpy, scipy or torch that we know for it.

Counts are made up, Poisson with the depth and the gene shares of PBMC, so that the command needs no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from sckit.bench import competitors
from sckit.bench.harness import Contest, OnEvent, Run, Variant, check, measure
from sckit.data.filters import GeneMoments
from sckit.data.views import as_matrix, indptr_of, row_sums
from sckit.kernels import counts_numba, counts_reference
from sckit.kernels.counts_reference import Csr, Hide
from sckit.provenance import measured_on

CELLS = (200, 2_000, 20_000)  # a batch of training, a block of `prepare`, ten of them

_GENES, _MITOCHONDRIAL, _FEATURES, _KEY, _RATE, _SIZE = 11_000, 13, 13, 7, 0.5, 2.0
_MEDIAN_TOTAL, _MAX_GENES = 2_300, 4_096
_LARGEST_ERROR = 2e-7  # of the largest entry: one rounding of float32, in which tokens are packed


@dataclass(frozen=True)
class Counts:
    """CSR of made-up cells and what else the operations need."""

    csr: Csr
    totals: np.ndarray  # int64 [C], somewhat more than the entries add up to
    vocabulary: np.ndarray  # int32 [G], one gene in fifty is not in the model
    of_gene: np.ndarray  # float64 [G, k]
    of_cell: np.ndarray  # float64 [C, k]


def make_counts(n_cells: int) -> Counts:
    """Make cells of lognormal depth (median 2,300) and gene shares, with about 940 genes, 63 % of their counts 1."""
    generator = np.random.default_rng(0)
    share = generator.lognormal(0, 2.4, _GENES)
    base = min(n_cells, CELLS[1])
    depth = generator.lognormal(np.log(_MEDIAN_TOTAL), 0.5, base)
    dense = [generator.poisson(d * share / share.sum()) for d in depth]
    genes = [np.flatnonzero(cell) for cell in dense]
    counts = np.concatenate([cell[own] for cell, own in zip(dense, genes, strict=True)])
    repeats = n_cells // base
    lengths = np.tile([len(own) for own in genes], repeats)
    csr = (
        indptr_of(lengths),
        np.tile(np.concatenate(genes).astype(np.int32), repeats),
        np.tile(counts.astype(np.uint32), repeats),
    )
    in_model = np.arange(_GENES) % 50 > 0
    return Counts(
        csr=csr,
        totals=np.tile([int(cell.sum()) + 5 for cell in dense], repeats),
        vocabulary=np.where(in_model, np.cumsum(in_model) - 1, -1).astype(np.int32),
        of_gene=generator.standard_normal((_GENES, _FEATURES)),
        of_cell=generator.standard_normal((n_cells, _FEATURES)),
    )


def bench_counts(
    rounds: int = 7, on_event: OnEvent = lambda kind, facts: None, *, cells: Sequence[int] = CELLS
) -> dict[str, Any]:
    """Time every operation on these numbers of cells; only torch may use more threads (`torch.get_num_threads()`).

    Returns the document that `sckit bench counts --json` ends with; events as in `harness.measure`.
    Raises SckitError when an engine disagrees with the reference, which is checked on 50 cells.
    """
    where = measured_on("cpu", torch.float32)
    for contest in contests(make_counts(50)):
        check(contest)
    rows = []
    for n_cells in cells:
        for contest in contests(make_counts(n_cells)):
            rows += measure([contest], rounds, where, on_event=on_event)
    return {"command": "bench counts", "rows": rows}


def contests(counts: Counts) -> list[Contest]:
    """Return every operation: ours against the fastest other formulation, which also checks ours without a kernel."""
    csr, totals, vocabulary = counts.csr, counts.totals, counts.vocabulary
    cells = np.arange(len(totals))
    of_entry = np.repeat(cells, np.diff(csr[0]))
    marked = (np.arange(_GENES) < _MITOCHONDRIAL).astype(np.float64)
    generator = np.random.default_rng(0)
    sizes = np.full(_GENES, _SIZE)
    choice = {"vocabulary": vocabulary, "max_genes": _MAX_GENES}

    def contest(
        op: str, own: Run, engine: str, other: Run, *, reference: Run | None = None, drawn: bool = False
    ) -> Contest:
        """drawn: the other engine draws random numbers of its own, which cannot be checked."""
        variants = {"sckit": Variant({"": own}, own), engine: Variant({"": other}, None if drawn else other)}
        return Contest(
            facts={"op": op, "case": f"{len(cells)} cells"},
            variants=variants,
            reference=reference or other,
            tolerance=_LARGEST_ERROR,
            figures=lambda row, _: {"entries_per_s": 1e3 * len(csr[1]) / row["median_ms"]},
        )

    def kernel(
        op: str, name: str, *arguments: Any, engine: str = "numpy", other: Run, drawn: bool = False, **options: Any
    ) -> Contest:
        own, reference = (
            partial(getattr(module, name), *arguments, **options) for module in (counts_numba, counts_reference)
        )
        return contest(op, own, engine, other, reference=reference, drawn=drawn)

    def marked_numpy() -> np.ndarray:
        return np.bincount(np.repeat(cells, np.diff(csr[0])), weights=csr[2] * marked[csr[1]], minlength=len(cells))

    def moments() -> tuple[np.ndarray, np.ndarray]:
        of_genes = GeneMoments(_GENES)
        of_genes.add(*csr, totals)
        return of_genes.mean_and_variance()

    return [
        # What `prepare` needs of cells and genes.
        contest("totals", partial(row_sums, csr[0], csr[2]), "torch", partial(competitors.totals_torch, csr)),
        contest("marked counts", lambda: as_matrix(csr, _GENES) @ marked, "numpy", marked_numpy),
        contest("gene moments", moments, "torch", partial(competitors.moments_torch, csr, totals, _GENES)),
        # What turns counts into values and predictions, and what hides, cuts and halves.
        kernel(
            "normalise", "normalise", csr, totals, vocabulary,
            other=partial(competitors.normalise_numpy, csr, totals, vocabulary),
        ),
        kernel(
            "entry dot", "entry_dot", counts.of_gene, csr[1], counts.of_cell, of_entry,
            engine="torch", other=partial(competitors.dot_torch, csr, counts.of_gene, counts.of_cell),
        ),
        kernel(
            "hide and pack", "pack", csr, cells, totals, Hide(_KEY, np.full(len(cells), _RATE)), **choice,
            other=partial(competitors.pack_numpy, csr, totals, vocabulary, _KEY, _RATE),
        ),
        kernel("cut", "cut", csr, cells, _KEY, **choice, other=partial(competitors.cut_numpy, csr, vocabulary)),
        kernel(
            "split binomial", "halve", csr, cells, totals, _KEY,
            other=partial(competitors.halve_numpy, csr, generator), drawn=True,
        ),
        kernel(
            "split negative-binomial", "halve", csr, cells, totals, _KEY, sizes=sizes,
            other=partial(competitors.halve_urn_numpy, csr, generator, _SIZE), drawn=True,
        ),
    ]  # fmt: skip
