"""What simulations are made of: expected counts from log rates, depths, programmes of genes and their answers."""

from dataclasses import dataclass

import numpy as np

SPREAD = 0.6
"""Standard deviation of the activity of a programme."""


@dataclass(frozen=True)
class Programmes:
    """Genes that vary together, and genes that answer perturbations together."""

    programme: np.ndarray
    """int [G]: the programme of each gene, by which cells vary."""
    loading: np.ndarray
    """[G]: log rate per unit of the activity of that programme; 0 for genes that take no part."""
    answers: np.ndarray
    """int [G]: the programme by which the gene answers a perturbation."""
    response: np.ndarray
    """[G]: log rate per unit of a hit on that programme."""
    links: np.ndarray
    """[M, M]: row m is what a hit on programme m does to all of them."""


def draw_programmes(
    generator: np.random.Generator, genes: int, programmes: int, *, structure: str, share: float = 1.0
) -> Programmes:
    """Deal the genes to programmes; a share of the genes takes part with a positive loading.

    With structure "shared" the programmes that answer perturbations are those by which cells vary, so that unperturbed
    cells tell which genes move together. With "unrelated" the genes are dealt to the answers again.
    """
    programme = generator.permutation(np.arange(genes) % programmes)
    loading = generator.uniform(0.6, 1.4, genes)
    if share < 1:
        loading *= generator.permutation(genes) < round(share * genes)
    dealt = {"shared": np.arange(genes), "unrelated": generator.permutation(genes)}[structure]
    links = -np.eye(programmes)
    links += generator.choice([-0.5, 0.0, 0.5], size=(programmes, programmes), p=[0.15, 0.7, 0.15])
    return Programmes(programme, loading, programme[dealt], loading[dealt], links)


def draw_depths(generator: np.random.Generator, median: float, spread: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return lognormal depths; spread is the standard deviation of their logarithm."""
    return median * np.exp(generator.normal(0, spread, shape))


def expected_counts(log_rates: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Scale rates so that those of a cell add up to its depth: log_rates [..., G], depths [..., 1]."""
    rates = np.exp(log_rates)
    return rates / rates.sum(-1, keepdims=True) * depths


def draw_counts(generator: np.random.Generator, expected: np.ndarray, dispersion: float = 0.0) -> np.ndarray:
    """Draw Poisson counts, or negative binomial ones of variance mean + dispersion * mean^2, as int64."""
    if dispersion:
        expected = expected * (generator.standard_gamma(1 / dispersion, expected.shape) * dispersion)
    return generator.poisson(expected)
