"""Cell embeddings from a trained run, as an AnnData for scanpy."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sckit.config import ReadingConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.loader import batches_by_tokens, detected_in
from sckit.data.prepare import open_or_prepare
from sckit.data.readers.open import parse_input, read_anndata
from sckit.data.store import Store
from sckit.device import Compute, choose_compute
from sckit.model.tokens import Tokens
from sckit.provenance import package_version
from sckit.training.folders import find_run
from sckit.training.run import Run, open_run

KEY = "X_sckit"
"""The name of the embeddings in obsm, and of where they are from in uns."""

_NOTHING_HIDDEN = 1e-12  # a share below any hash

Listener = Callable[[str, dict[str, Any]], None]


def embed(
    run: str | Path,
    data: str | Path,
    *,
    runs: str | Path = "runs",
    reading: ReadingConfig | None = None,
    engine: str = "auto",
    device: str = "auto",
    batch_tokens: int = 32768,
    on_event: Listener = lambda _kind, _facts: None,
) -> Any:
    """Return the data as AnnData with the run's cell embeddings in obsm["X_sckit"], float32 [cells, width].

    data: a store or anything `prepare` reads, as `reading` says. An .h5ad or .zarr comes back with all that it holds;
    other inputs as counts, obs and var. The embedding is the mean of the final token states of a cell with nothing
    hidden, and NaN for a cell without a count in the run's genes. Cells outside the filters of `reading` are left out.
    `write_embedding` writes the same without holding it in memory. Raises ConfigError and DataError.
    """
    reading = reading or ReadingConfig()
    given = {"runs": runs, "reading": reading, "engine": engine, "device": device, "batch_tokens": batch_tokens}
    with opened_cells(run, data, **given, on_event=on_event) as cells:
        whole = read_anndata(parse_input(data, reading)[0])
        embedding = np.concatenate([rows for _, rows in cells.blocks()])
        if whole is None:
            adata, left_out = _anndata(cells.store), 0
        else:
            rows, n_cells = cells.store.input_rows, whole.n_obs
            assert rows is not None
            if keeps_all(reading):
                adata, left_out = whole, n_cells - len(rows)
                embedding, of_cells = np.full((n_cells, embedding.shape[1]), np.nan, np.float32), embedding
                embedding[rows] = of_cells
            else:
                adata, left_out = whole[rows].copy(), 0
        cells.tell(left_out, replaces=KEY in adata.obsm)
    adata.obsm[KEY] = embedding
    adata.uns[KEY] = cells.origin
    return adata


@dataclass(frozen=True)
class Cells:
    """The cells of a store, which a run embeds."""

    run: Run
    compute: Compute
    store: Store
    vocabulary: np.ndarray  # int32 [genes of the store], number in the run or -1
    batch_tokens: int
    on_event: Listener

    @cached_property
    def detected(self) -> np.ndarray:
        """Number of the run's genes that each cell has counts of, int32 [C]."""
        return detected_in(self.store, self.vocabulary, np.arange(self.store.n_cells))

    @property
    def origin(self) -> dict[str, str]:
        """What is written down of the run."""
        return {"run": str(self.run.path), "sckit": package_version("sckit")}

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all cells in order, int64 [B], and their embeddings, float32 [B, width].

        The embedding of a cell without a count in the run's genes is NaN.
        """
        model = self.run.model(self.compute.device)
        model.engine = self.compute.engine
        hiding = Hiding(_NOTHING_HIDDEN)
        packer = Packer(self.store, self.vocabulary, hiding, max_genes=self.run.config.max_genes)
        parts = batches_by_tokens(np.arange(self.store.n_cells), self.detected, self.batch_tokens)
        for i, part in enumerate(parts):
            with torch.inference_mode(), self.compute.cast():
                rows = model.embed(Tokens.of(packer(part), self.compute.device)).cpu().numpy()
            rows[self.detected[part] == 0] = np.nan
            yield part, rows
            self.on_event("progress", {"done": i + 1, "of": len(parts), "what": "embedding"})

    def tell(self, left_out: int, *, replaces: bool) -> None:
        """Tell as "note" events whose embedding is NaN, and whether another one is replaced."""
        unknown = int((self.detected == 0).sum())
        no_count = (
            f"{unknown:,} cells have no count in the run's genes: their embedding is NaN; leave them out afterwards"
        )
        kept = f"the {left_out:,} cells that were left out are kept, and their embedding is NaN"
        again = f"the obsm {KEY!r} of the input is replaced"
        for is_so, text in ((unknown, no_count), (left_out, kept), (replaces, again)):
            if is_so:
                self.on_event("note", {"text": text})


@contextmanager
def opened_cells(
    run: str | Path,
    data: str | Path,
    *,
    runs: str | Path,
    reading: ReadingConfig,
    engine: str,
    device: str,
    batch_tokens: int,
    on_event: Listener,
) -> Iterator[Cells]:
    """Open a run and data, which are prepared in a temporary folder where they are no store."""
    opened = open_run(find_run(run, Path(runs)))
    compute = choose_compute(device, engine)
    with tempfile.TemporaryDirectory() as scratch:
        store = open_or_prepare([data], Path(scratch) / "input.sckit", reading, on_event, assay="any")
        vocabulary = opened.numbers_in(store)
        known, of = int((vocabulary >= 0).sum()), len(opened.genes)
        few = "" if 2 * known >= of else f": embeddings rest on {100 * known / of:.0f} % of the run's genes"
        text = f"{known:,} of the run's {of:,} genes are in the data ({store.n_genes:,} genes){few}"
        on_event("note", {"text": text})
        yield Cells(opened, compute, store, vocabulary, batch_tokens, on_event)


def keeps_all(reading: ReadingConfig) -> bool:
    """Return whether no filter is given: then the cells that `prepare` leaves out stay in the output."""
    filters = ("assay", "obs_filter", "min_genes", "min_counts", "max_counts", "max_mito")
    return reading == replace(reading, **dict.fromkeys(filters))


def genes_of(store: Store) -> Any:
    """Return the genes of a store as var, with unique names."""
    from anndata.utils import make_index_unique

    var = store.genes.set_index("symbol")
    var.index = make_index_unique(var.index.astype(str))
    var.index.name = None
    return var


def _anndata(store: Store) -> Any:
    import anndata
    import scipy.sparse as sp

    indptr, genes, counts = store.rows(np.arange(store.n_cells))
    matrix = sp.csr_matrix((counts.astype(np.float32), genes.astype(np.int32), indptr), (store.n_cells, store.n_genes))
    obs = store.obs.set_index("cell")
    obs.index = obs.index.astype(str)
    obs.index.name = None
    return anndata.AnnData(matrix, obs=obs, var=genes_of(store))
