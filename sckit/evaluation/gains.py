"""Which genes gain from the visible values of their cell, and from which other genes the gain comes."""

import numpy as np
import pandas as pd

from sckit.data.batch import Batch
from sckit.model.offset_forms import OffsetForms

_LEAST_ENTRIES = 20
_CLEAR = 1.96  # standard errors
_SOURCES = 3


class GeneGains:
    """Collects by gene how much less the value offset ridge errs than the detection + total offset ridge."""

    def __init__(self, symbols: np.ndarray, offsets: OffsetForms, detected: np.ndarray) -> None:
        """detected: [G], share of the cells in which each gene is detected."""
        self._symbols, self._offsets, self._detected = symbols, offsets, detected
        self._sums = np.zeros((5, len(symbols)))

    def add(self, batch: Batch, without: np.ndarray, with_values: np.ndarray) -> None:
        """Add a batch with the predictions [M] of both rows."""
        genes, y = batch.genes[batch.targets], batch.truth.astype(np.float64)
        before, after = (y - without) ** 2, (y - with_values) ** 2
        gain, about_mean = before - after, (y - self._offsets.gene_mean[genes]) ** 2
        columns = (np.ones(len(y)), about_mean, before, gain, gain**2)
        self._sums += np.stack([np.bincount(genes, x, minlength=len(self._symbols)) for x in columns])

    def table(self, rate: float) -> pd.DataFrame:
        """Return a row for each gene with twenty scored entries, those that remove the most squared error first.

        gain: R2 of the gene that the values add; of_all: the same as part of the squared error of all genes; z: the
        gain over its standard error; source_1, share_1, ...: the genes it comes from, see `sources`.
        """
        entries, about_mean, before, gain, squares = self._sums
        kept = np.flatnonzero(entries >= _LEAST_ENTRIES)
        kept = kept[np.argsort(-gain[kept], kind="stable")]
        with np.errstate(invalid="ignore", divide="ignore"):
            table = {
                "gene": self._symbols[kept], "entries": entries[kept].astype(int),
                "mean_count": self._offsets.mean_count[kept], "r2_without_values": (1 - before / about_mean)[kept],
                "gain": (gain / about_mean)[kept], "of_all": gain[kept] / about_mean.sum(),
                "z": (gain / np.sqrt(squares))[kept],
            }  # fmt: skip
        found, shares = self.sources(kept, rate)
        for i in range(found.shape[1]):
            table |= {f"source_{i + 1}": self._symbols[found[:, i]], f"share_{i + 1}": shares[:, i]}
        return pd.DataFrame(table)

    def sources(self, genes: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the genes that move the predictions of genes [N] most, and the share of each in that movement.

        A visible residual r_j of gene j moves the prediction of gene g by l_g' P^-1 l_j / s_j r_j, with loadings l,
        noise variances s and the precision P of the factors, here of an average cell: I + sum_j q_j l_j l_j' / s_j,
        where q_j is how often gene j is detected and visible. Its share is the part q_j (l_g' P^-1 l_j)^2 / s_j of the
        sum over all other genes.
        """
        loadings, noise = self._offsets.loadings, self._offsets.noise
        visible, count = self._detected * (1 - rate), min(_SOURCES, len(loadings) - 1)
        precision = np.eye(loadings.shape[1]) + (loadings * (visible / noise)[:, None]).T @ loadings
        solved = np.linalg.solve(precision, loadings.T)  # [J, G]
        found, shares = np.zeros((len(genes), count), np.int64), np.zeros((len(genes), count))
        for i, gene in enumerate(genes):
            moved = visible / noise * (loadings[gene] @ solved) ** 2
            moved[gene] = 0.0
            found[i] = np.argsort(-moved, kind="stable")[:count]
            shares[i] = moved[found[i]] / max(moved.sum(), 1e-300)
        return found, shares

    def summary(self, table: pd.DataFrame) -> dict[str, float]:
        """Count genes that gain at all, and those whose gain or loss lies beyond 1.96 standard errors."""
        if table.empty:
            return {}
        z = table["z"].to_numpy()
        top = table["gain"].head(max(1, len(table) // 20)).index
        return {
            "genes": float(len(table)),
            "gain": float((z > 0).mean()),
            "clear_gain": float((z > _CLEAR).mean()),
            "clear_loss": float((z < -_CLEAR).mean()),
            "share_of_the_gain_in_the_first_twentieth": float(
                table["of_all"][top].sum() / max(table["of_all"].clip(lower=0).sum(), 1e-300)
            ),
        }
