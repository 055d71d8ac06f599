"""The genes of a simulation and how they hang together, drawn from the seed; nothing about single cells."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.sparse as sp

from sckit.config import SimulateConfig
from sckit.data.simulate.law import Programmes, draw_programmes

_RANKS = 1.19, 0.0013, 0.53
"""Law of gene means: a gene of relative rank r in (0, 1) has a share of the counts proportional to
(r + 0.0013)^-1.19 * exp(-0.53 r).

The three numbers are fitted to the 10,000 most expressed genes of a 10x data set of 2,700 blood cells. By the law the
10, 100 and 1,000 most expressed of them have 15, 49 and 81 % of the counts; in the data they have 14, 52 and 80 %.
"""
_MARKERS, _MARKER_SPREAD = 0.1, 1.0  # share of the genes that differ in a type, and sd of their log fold change
_OFFSET_SPREAD = 0.3  # sd of the log offset of a gene in a library
_LIBRARY_DEPTH_SPREAD = 0.2  # sd of the log of a library's depth
_MEMBERS = 1 / 3  # share of the genes that follow a programme
_INTERACTING = 0.1  # share of the genes that follow a product of two programmes
REGULATOR_SPREAD = 0.6
"""Standard deviation of the log rate of a regulator, by itself and by its own regulators."""
_REGULATORS, _REGULATED = 0.05, 0.5  # shares of the genes
_WEIGHTS = 0.2, 0.6  # log rate of a target per standard deviation of its regulator, of either sign
_SHIFT = 1.5  # size of a hit on a programme
_LEFT = 0.2  # share of its expression that a gene keeps when it is knocked down

_AT_A_TIME = 256  # perturbations whose effects are computed at a time

_GENES, _TYPES, _LIBRARIES, _PROGRAMMES, _PAIRS, _NETWORK, _HITS = range(7)


def stream(seed: int, part: int) -> np.random.Generator:
    """Return the random numbers of one part, which do not depend on whether other parts are asked for."""
    return np.random.default_rng([seed, part])


@dataclass(frozen=True)
class World:
    """G genes, K types, L libraries, M programmes, S interacting genes, R regulators, E edges, P perturbations."""

    log_share: np.ndarray
    """[G]: log of the share of the counts, before anything else moves the gene; the shares add up to 1."""
    type_weight: np.ndarray
    """[K]: share of the cells."""
    type_profile: np.ndarray
    """[K, G]: log fold change in cells of the type."""
    library_depth: np.ndarray
    """[L]: log of the depth of a library relative to the others."""
    library_offset: np.ndarray
    """[L, G]: log offset of a gene in cells of the library."""
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
    interacting: np.ndarray
    """int [S]: genes that follow a product of two programmes."""
    pair: np.ndarray
    """int [S, 2]: those two programmes."""
    regulators: np.ndarray
    """int [R]: genes, each of which is regulated by earlier ones only."""
    own_spread: np.ndarray
    """[R]: standard deviation of the log rate that a regulator has by itself."""
    edges: np.ndarray
    """int [E, 2]: gene of the regulator and gene of the target."""
    weight: np.ndarray
    """[E]: log rate of the target per standard deviation of the regulator, all else being equal."""
    targets: np.ndarray
    """int [P]: the gene that is knocked down."""
    effects: np.ndarray
    """[P, G]: what the perturbation adds to the log rate of every gene."""

    @property
    def programmes(self) -> Programmes:
        """What the programmes are."""
        return Programmes(self.programme, self.loading, self.answers, self.response, self.links)


def draw_world(config: SimulateConfig) -> World:
    """Draw everything but the cells. The same seed gives the same genes, whatever structure is asked for."""
    n = config.genes
    generator = stream(config.seed, _GENES)
    share = _share_by_rank(n)[generator.permutation(n)]
    generator = stream(config.seed, _TYPES)
    type_weight = 0.75 ** np.arange(config.types)
    shape = (config.types, n)
    profile = generator.normal(0, _MARKER_SPREAD, shape) * (generator.random(shape) < _MARKERS) * (config.types > 1)
    generator = stream(config.seed, _LIBRARIES)
    library_depth = generator.normal(0, _LIBRARY_DEPTH_SPREAD, config.libraries)
    offset = generator.normal(0, _OFFSET_SPREAD, (config.libraries, n)) * (config.libraries > 1)
    generator = stream(config.seed, _PROGRAMMES)
    programmes = draw_programmes(generator, n, config.programmes, structure=config.structure, share=_MEMBERS)
    interacting, pair = _interactions(config)
    regulators, own_spread, edges, weight = _network(config, share)
    if config.network:
        targets, effects = _network_knock_downs(config, regulators, own_spread, edges, weight)
    else:
        targets, effects = _programme_knock_downs(config, share, programmes)
    return World(
        np.log(share), type_weight / type_weight.sum(), profile, library_depth - library_depth.mean(), offset,
        **vars(programmes), interacting=interacting, pair=pair,
        regulators=regulators, own_spread=own_spread, edges=edges, weight=weight, targets=targets, effects=effects,
    )  # fmt: skip


def regulation(
    genes: int, regulators: np.ndarray, own_spread: np.ndarray, edges: np.ndarray, weight: np.ndarray
) -> tuple[sp.csr_array, sp.csr_array]:
    """Return what the network computes, as two sparse matrices.

    The first [R, R] turns independent standard normal numbers into the standardised deviations of the regulators, the
    second [G, R] turns those into the log rates of all genes.
    """
    number = np.full(genes, -1)
    number[regulators] = np.arange(len(regulators))
    source, target = number[edges[:, 0]], number[edges[:, 1]]
    above = target >= 0
    deviation = np.zeros((len(regulators), len(regulators)))
    for r in range(len(regulators)):
        up = above & (target == r)
        deviation[r] = weight[up] @ deviation[source[up]]
        deviation[r, r] = own_spread[r]
        deviation[r] /= REGULATOR_SPREAD
    of_targets = (weight[~above], (edges[~above, 1], source[~above]))
    of_regulators = (np.full(len(regulators), REGULATOR_SPREAD), (regulators, np.arange(len(regulators))))
    shape = (genes, len(regulators))
    log_rates = sp.coo_array(of_targets, shape=shape) + sp.coo_array(of_regulators, shape=shape)
    return sp.csr_array(deviation), sp.csr_array(log_rates)


def _share_by_rank(genes: int) -> np.ndarray:
    """The shares [G] of the counts, falling: even samples of the law, so that a small simulation has its shape."""
    power, near, far = _RANKS
    rank = (np.arange(genes) + 0.5) / genes
    share = (rank + near) ** -power * np.exp(-far * rank)
    return share / share.sum()


def _interactions(config: SimulateConfig) -> tuple[np.ndarray, np.ndarray]:
    """Genes and their pairs of programmes; all pairs occur about equally often."""
    generator = stream(config.seed, _PAIRS)
    pairs = np.array(list(combinations(range(config.programmes), 2)))
    number = round(_INTERACTING * config.genes) if config.interactions else 0
    return generator.permutation(config.genes)[:number], generator.permutation(pairs)[np.arange(number) % len(pairs)]


def _network(config: SimulateConfig, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Regulators, the spread they have by themselves, edges and weights.

    Regulators are among the expressed half of the genes. Half of them have one or two earlier regulators, which give
    at most half of their variance; half of the other genes have one to three.
    """
    if not config.network:
        return np.empty(0, int), np.empty(0), np.empty((0, 2), int), np.empty(0)
    generator = stream(config.seed, _NETWORK)
    size = max(4, int(_REGULATORS * config.genes))
    regulators = generator.permutation(np.argsort(-share)[: config.genes // 2])[:size]
    deviation, own_spread = np.zeros((size, size)), np.full(size, REGULATOR_SPREAD)
    edges, weights = [], []

    def regulate(target: int, among: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = generator.choice(among, min(among, generator.integers(1, most + 1)), replace=False)
        weight = generator.uniform(*_WEIGHTS, len(chosen)) * generator.choice([-1, 1], len(chosen))
        edges.extend((regulators[r], target) for r in chosen)
        return chosen, weight

    for r in range(size):
        if r and generator.random() < _REGULATED:
            chosen, weight = regulate(regulators[r], r, 2)
            variance = float(((weight @ deviation[chosen]) ** 2).sum())
            weight *= min(1.0, np.sqrt(REGULATOR_SPREAD**2 / 2 / variance))
            deviation[r] = weight @ deviation[chosen]
            own_spread[r] = np.sqrt(REGULATOR_SPREAD**2 - (deviation[r] ** 2).sum())
            weights.append(weight)
        deviation[r, r] = own_spread[r]
        deviation[r] /= REGULATOR_SPREAD
    others = np.setdiff1d(np.arange(config.genes), regulators)
    for gene in others[generator.random(len(others)) < _REGULATED]:
        weights.append(regulate(gene, size, 3)[1])
    return regulators, own_spread, np.array(edges, int).reshape(-1, 2), np.concatenate([np.empty(0), *weights])


def _network_knock_downs(
    config: SimulateConfig, regulators: np.ndarray, own_spread: np.ndarray, edges: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Knock regulators down, and pass that on along the edges: targets [P] and effects [P, G]."""
    generator = stream(config.seed, _HITS)
    chosen = generator.permutation(len(regulators))[: config.perturbations]
    deviation, log_rates = regulation(config.genes, regulators, own_spread, edges, weight)
    moved = deviation[:, chosen].toarray()  # [R, P]
    moved *= np.log(_LEFT) / REGULATOR_SPREAD / moved[chosen, np.arange(len(chosen))]
    effects = np.empty((len(chosen), config.genes))
    for first in range(0, len(chosen), _AT_A_TIME):
        some = slice(first, first + _AT_A_TIME)
        effects[some] = (log_rates @ moved[:, some]).T
    return regulators[chosen], effects


def _programme_knock_downs(
    config: SimulateConfig, share: np.ndarray, programmes: Programmes
) -> tuple[np.ndarray, np.ndarray]:
    """Knock members of programmes down, going round the programmes: targets [P] and effects [P, G].

    The hit lowers the programme of the target and, through links that hold for every perturbation of that programme,
    moves others. The target itself keeps a fifth of its expression.
    """
    generator = stream(config.seed, _HITS)
    members = np.argsort(-share)
    members = members[programmes.response[members] > 0]
    turn = np.zeros(len(members), int)
    for m in range(config.programmes):
        turn[programmes.answers[members] == m] = np.arange((programmes.answers[members] == m).sum())
    targets = members[np.lexsort((programmes.answers[members], turn))][: config.perturbations]
    strength = _SHIFT * generator.uniform(0.7, 1.3, len(targets))
    hits = strength[:, None] * programmes.links[programmes.answers[targets]]  # [P, M]
    effects = hits[:, programmes.answers]
    effects *= programmes.response  # in place: with many perturbations this is the largest array
    effects[np.arange(len(targets)), targets] = np.log(_LEFT)
    return targets, effects
