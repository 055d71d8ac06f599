"""Counts in memory whose rates are known: a view of a dense matrix, and worlds with a given number of components."""

from dataclasses import dataclass

import numpy as np


class Counts:
    """A view of a dense matrix of counts [cells, genes]."""

    def __init__(self, counts, totals=None):
        self.counts = np.asarray(counts)
        self.n_cells, self.n_genes = self.counts.shape
        self._totals = self.counts.sum(1) if totals is None else totals

    def rows(self, cells):
        chosen = self.counts[cells]
        genes = np.nonzero(chosen)[1].astype(np.int32)
        indptr = np.concatenate([[0], np.cumsum((chosen > 0).sum(1))])
        return indptr, genes, chosen[chosen > 0]

    def totals(self, cells):
        return self._totals[cells]


@dataclass(frozen=True)
class World:
    view: Counts
    rates: np.ndarray  # [cells, genes], exact expected counts
    groups: np.ndarray  # [cells]

    @property
    def vocabulary(self):
        return np.arange(self.view.n_genes, dtype=np.int32)


def planted(cells, genes, *, components=3, size=0.8, depth=600.0, dispersion=0.0, groups=4, seed=0):
    """Draw counts whose log rates follow a few components, with lognormal depths that are large in some groups."""
    rng = np.random.default_rng(seed)
    of_gene = rng.normal(0, 1.2, genes)
    log_rate = of_gene + rng.normal(size=(cells, components)) @ rng.normal(size=(components, genes)) * size
    group = np.arange(cells) % groups
    depths = depth * np.exp(rng.normal(0, 0.4, cells) + 0.1 * group)
    rates = np.exp(log_rate)
    rates *= depths[:, None] / rates.sum(1, keepdims=True)
    means = rates * (rng.gamma(1 / dispersion, dispersion, rates.shape) if dispersion else 1)
    return World(Counts(rng.poisson(means)), rates, np.array([f"g{g}" for g in group]))
