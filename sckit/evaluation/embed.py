"""Cell embeddings from a trained run, as an AnnData for scanpy."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sckit.config import ReadingConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.loader import batches_by_tokens, detected_in
from sckit.data.new_hdf5 import new_hdf5
from sckit.data.prepare import open_or_prepare
from sckit.data.readers.open import is_anndata, parse_input, read_anndata
from sckit.data.readers.texts import unique_names
from sckit.data.store import Store
from sckit.device import Compute, choose_compute
from sckit.errors import ConfigError, WriteError
from sckit.files import replacing
from sckit.model.tokens import Tokens
from sckit.provenance import package_version
from sckit.training.folders import find_run
from sckit.training.run import Run, open_run

_NOTHING_HIDDEN = 1e-12  # a share below any hash
_KEY = "X_sckit"


def embed(
    run: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    reading: ReadingConfig | None = None,
    engine: str = "auto",
    device: str = "auto",
    batch_tokens: int = 32768,
    on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _facts: None,
) -> Any:
    """Return the data as AnnData with the run's cell embeddings in obsm["X_sckit"], float32 [cells, width].

    data: a store or anything `prepare` reads, as `reading` says. An .h5ad or .zarr comes back with all that it holds;
    other inputs as counts, obs and var. The embedding is the mean of the final token states of a cell with nothing
    hidden, and NaN for a cell without a count in the run's genes. Cells outside the filters of `reading` are left out.
    With `out` an h5ad is written too. Raises ConfigError and DataError.
    """
    if out is not None:
        _refuse(Path(out), parse_input(data, ReadingConfig())[0])
    opened = open_run(find_run(run, Path(runs)))
    compute = choose_compute(device, engine)
    reading = reading or ReadingConfig()
    with tempfile.TemporaryDirectory() as scratch:
        store = open_or_prepare([data], Path(scratch) / "input.sckit", reading, on_event, assay="any")
        vocabulary = opened.numbers_in(store)
        known, of = int((vocabulary >= 0).sum()), len(opened.genes)
        few = "" if 2 * known >= of else f": embeddings rest on {100 * known / of:.0f} % of the run's genes"
        whole = read_anndata(parse_input(data, reading)[0])
        text = f"{known:,} of the run's {of:,} genes are in the data ({store.n_genes:,} genes){few}"
        on_event("note", {"text": text})
        embedding = _embeddings(opened, compute, store, vocabulary, batch_tokens, on_event)
        unknown = int(np.isnan(embedding[:, 0]).sum())
        if whole is None:
            adata = _anndata(store)
        else:
            adata, embedding = _into(whole, store, embedding, keep_all=reading == _without_filters(reading))
    if unknown:
        text = f"{unknown:,} cells have no count in the run's genes: their embedding is NaN; leave them out afterwards"
        on_event("note", {"text": text})
    left_out = int(np.isnan(embedding[:, 0]).sum()) - unknown
    if left_out:
        on_event("note", {"text": f"the {left_out:,} cells that were left out are kept, and their embedding is NaN"})
    if _KEY in adata.obsm:
        on_event("note", {"text": f"the obsm {_KEY!r} of the input is replaced"})
    adata.obsm[_KEY] = embedding
    adata.uns[_KEY] = {"run": str(opened.path), "sckit": package_version("sckit")}
    if out is not None:
        _write(adata, Path(out))
    return adata


def _write(adata: Any, out: Path) -> None:
    """Write an h5ad, whole or not at all."""
    from anndata.io import write_elem

    adata.strings_to_categoricals()
    if adata.raw is not None:
        adata.strings_to_categoricals(adata.raw.var)
    try:
        with replacing(out) as unfinished, new_hdf5(unfinished) as file:
            write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip"})
    except OSError as error:
        raise WriteError(out, error) from error


def _refuse(out: Path, data: Path) -> None:
    """Raise ConfigError, before the work, for a place that cannot be written or holds something that is no h5ad."""
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out} lies in a folder that does not exist; make it first.")
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name the h5ad to write.")
    if out.exists() and data.exists() and out.samefile(data):
        raise ConfigError(f"--out {out} is the input itself; choose another name.")
    if out.exists() and not is_anndata(out):
        raise ConfigError(f"--out {out} exists and is no h5ad, so it is not replaced; choose another name.")


def _embeddings(
    opened: Run, compute: Compute, store: Store, vocabulary: np.ndarray, batch_tokens: int, on_event: Callable
) -> np.ndarray:
    """Embed the cells of a store, [C, width] float32, NaN for cells without a count in the run's genes."""
    model = opened.model(compute.device)
    model.engine = compute.engine
    cells = np.arange(store.n_cells)
    packer = Packer(store, vocabulary, Hiding(_NOTHING_HIDDEN), max_genes=opened.config.max_genes)
    detected = detected_in(store, vocabulary, cells)
    parts = batches_by_tokens(cells, detected, batch_tokens)
    rows = []
    for i, part in enumerate(parts):
        with torch.inference_mode(), compute.cast():
            rows.append(model.embed(Tokens.of(packer(part), compute.device)).cpu().numpy())
        on_event("progress", {"done": i + 1, "of": len(parts), "what": "embedding"})
    embedding = np.concatenate(rows)
    embedding[detected == 0] = np.nan
    return embedding


def _without_filters(reading: ReadingConfig) -> ReadingConfig:
    filters = ("assay", "obs_filter", "min_genes", "min_counts", "max_counts", "max_mito")
    return replace(reading, **dict.fromkeys(filters))


def _into(whole: Any, store: Store, embedding: np.ndarray, *, keep_all: bool) -> tuple[Any, np.ndarray]:
    """Return the AnnData that the store was made from and the embedding of each of its cells, NaN where none was made.

    Without `keep_all` the cells that the store does not have are left out of both.
    """
    at = pd.Index(store.obs["cell"]).get_indexer(pd.Index(unique_names(whole.obs_names)[0]))
    rows = np.full((whole.n_obs, embedding.shape[1]), np.nan, np.float32)
    rows[at >= 0] = embedding[at[at >= 0]]
    return (whole, rows) if keep_all else (whole[at >= 0].copy(), rows[at >= 0])


def _anndata(store: Store) -> Any:
    import anndata
    import scipy.sparse as sp

    indptr, genes, counts = store.rows(np.arange(store.n_cells))
    matrix = sp.csr_matrix((counts.astype(np.float32), genes.astype(np.int32), indptr), (store.n_cells, store.n_genes))
    obs, var = store.obs.set_index("cell"), store.genes.set_index("symbol")
    for frame in (obs, var):
        frame.index = frame.index.astype(str)
        frame.index.name = None
    adata = anndata.AnnData(matrix, obs=obs, var=var)
    adata.var_names_make_unique()
    return adata
