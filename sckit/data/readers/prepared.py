"""Reader of a store that `prepare` wrote, so that stores can be joined and filtered again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sckit.data.manifest import OWN_COLUMNS
from sckit.data.readers.hdf5 import strings
from sckit.data.readers.names import GeneTable
from sckit.data.readers.source import Source
from sckit.data.store import Store, open_store
from sckit.data.views import Csr


class Prepared(Source):
    """The cells and genes of a store; totals and detected genes stay those over all genes of the first source."""

    def __init__(self, path: Path) -> None:
        """Read the tables of the store."""
        self._store: Store = open_store(path)
        genes, obs = self._store.genes, self._store.cells.frame()
        own = {name: obs.pop(name) for name in OWN_COLUMNS if name != "source"}
        obs.index = pd.Index(own["cell"])
        if self._store.manifest["sources"][1:] == []:
            del obs["source"]
        features = GeneTable(strings(genes["id"]), strings(genes["symbol"]))
        super().__init__(path, features, obs)
        self.files = [path / "manifest.json"]
        self.totals = own["total_counts"].to_numpy(np.int64)
        self.n_genes = own["n_genes"].to_numpy(np.int64)
        self.unit = "the store"
        self.remedy = "; prepare the store again"

    def _read(self, handle: Any, first: int, last: int) -> Csr:
        return self._store.block(first, last)
