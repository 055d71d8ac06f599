"""Cell embeddings from a trained run, as an AnnData for scanpy."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sckit.data.batch import Hiding, Packer
from sckit.data.loader import batches_by_tokens, detected_in
from sckit.data.prepare import open_or_prepare
from sckit.data.store import Store
from sckit.device import choose_compute
from sckit.errors import DataError
from sckit.files import replacing
from sckit.model.tokens import Tokens
from sckit.training.run import find_run, open_run

_NOTHING_HIDDEN = 1e-12  # a share below any hash


def embed(
    run: str | Path,
    data: str | Path,
    *,
    out: str | Path | None = None,
    runs: str | Path = "runs",
    engine: str = "auto",
    device: str = "auto",
    batch_tokens: int = 32768,
    on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _facts: None,
) -> Any:
    """Return the data as AnnData with the run's cell embeddings in obsm["X_sckit"], float32 [cells, width].

    data: a store or anything `prepare` reads; only cells without counts are left out. X holds the counts of the genes
    read. The embedding is the mean of the final token states of a cell with nothing hidden. With `out` an h5ad is
    written too. Raises ConfigError and DataError.
    """
    opened = open_run(find_run(run, Path(runs)))
    compute = choose_compute(device, engine)
    model = opened.model(compute.device)
    model.engine = compute.engine
    with tempfile.TemporaryDirectory() as scratch:
        store = open_or_prepare(data, Path(scratch) / "input.sckit", assay="any")
        vocabulary = opened.numbers_in(store)
        known = int((vocabulary >= 0).sum())
        text = f"{known:,} of the run's {len(opened.genes):,} genes are in the data ({store.n_genes:,} genes)"
        on_event("note", {"text": text})
        for reason, number in store.manifest["dropped"].items():
            on_event("note", {"text": f"left out: {number:,} {reason}"})
        cells = np.arange(store.n_cells)
        packer = Packer(store, vocabulary, Hiding(_NOTHING_HIDDEN), max_genes=opened.config.max_genes)
        parts = batches_by_tokens(cells, detected_in(store, vocabulary, cells), batch_tokens)
        rows = []
        for i, part in enumerate(parts):
            with torch.inference_mode(), compute.cast():
                rows.append(model.embed(Tokens.of(packer(part), compute.device)).cpu().numpy())
            on_event("progress", {"done": i + 1, "of": len(parts), "what": "embedding"})
        adata = _anndata(store, np.concatenate(rows))
    if out is not None:
        try:
            with replacing(Path(out)) as unfinished:
                adata.write_h5ad(unfinished, compression="gzip")
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise DataError(f"{out} cannot be written: {reason}.") from error
    return adata


def _anndata(store: Store, embedding: np.ndarray) -> Any:
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
    adata.obsm["X_sckit"] = embedding
    return adata
