"""Simulated perturbation screens with covariate groups, replicates and combinations, and the effects to be found.

The log rate of gene g in cell c of context x and replicate r is

    base[g] + context[x, g] + replicate[r, g] + loading[g] * activity[c, programme[g]] + response[g] * hit[answers[g]]

and its counts are Poisson, at the cell's own lognormal depth. Control cells have activities only (normal, independent
between programmes) and no hit. A perturbation has a target gene; its hit lowers the target's programme and, through
links that hold for every perturbation of that programme, moves others. With structure "shared" the programmes that
respond are those by which control cells vary (`answers = programme`, `response = loading`), so a model that has learned
the controls knows which genes move together and where a target never seen belongs. With "unrelated" the genes are dealt
to the responses again, so the controls say nothing about them.

`sckit simulate --perturbations` makes large screens of sparse counts by the same law; these are small and dense, with
the average effects that a comparison should find.
"""

from dataclasses import dataclass

import anndata
import numpy as np
import pandas as pd

from sckit.data.simulate.law import SPREAD, Programmes, draw_counts, draw_depths, draw_programmes, expected_counts

Unit = tuple[int, np.ndarray | None]
"""Context and hit."""
_DEPTH_SPREAD = 0.3


@dataclass(frozen=True)
class ScreenWorld:
    """The genes and how they hang together; nothing about cells."""

    base: np.ndarray
    """[G]: log rate."""
    programmes: Programmes
    context: np.ndarray
    """[contexts, G]."""
    replicate: np.ndarray
    """[replicates, G]."""
    total: float
    """Median counts per cell."""


@dataclass(frozen=True)
class ScreenTruth:
    """What a screen should give, on the scale of the mean of log1p(counts per 10,000) over cells, zeros included."""

    units: list[tuple[str, str]]
    """(condition, context) of each row of delta."""
    delta: np.ndarray
    """[U, G]: expected profile of the unit less that of the context's control."""
    control: dict[str, np.ndarray]
    """Context to [G]."""
    target_map: dict[str, str]
    """Perturbation to its target gene."""
    hits: dict[str, np.ndarray]
    """Condition to the shift [M] of the activities."""
    world: ScreenWorld


def simulate_screen(
    generator: np.random.Generator,
    *,
    genes: int = 200,
    programmes: int = 8,
    cells_per_unit: int = 60,
    controls: int = 200,
    perturbations: int = 16,
    shift: float = 1.5,
    structure: str = "shared",
    contexts: int = 1,
    replicates: int = 0,
    combos: int = 0,
    dead: int = 0,
    total: float = 2000.0,
    truth_cells: int = 2000,
) -> tuple[anndata.AnnData, ScreenTruth]:
    """Return a screen of P0, P1, ... (and P0+P1, ... for `combos`) with `controls` control cells in every context.

    obs has condition ("control" or a perturbation), context ("context0", ...) and replicate ("replicate0", ...; one
    when `replicates` is 0). The last `dead` perturbations do nothing. Targets go round the programmes, so that P0 and
    P(programmes) hit the same one. The truth is the mean of `truth_cells` fresh cells per unit and of as many controls.
    """
    shape = (contexts, max(1, replicates))
    world = _draw_world(generator, genes, programmes, structure=structure, shape=shape, total=total)
    dealt = world.programmes
    hits, targets = {}, {}
    taken = [list(generator.permutation(np.flatnonzero(dealt.answers == m))) for m in range(programmes)]
    for number in range(perturbations):
        name, programme = f"P{number}", number % programmes
        targets[name] = f"GENE{taken[programme].pop()}"
        strength = shift * generator.uniform(0.7, 1.3) if number < perturbations - dead else 0.0
        hits[name] = strength * dealt.links[programme]
    for number in range(combos):
        parts = f"P{number}", f"P{(number + 1) % perturbations}"
        hits["+".join(parts)] = hits[parts[0]] + hits[parts[1]]
    blocks, control, units, delta = [], {}, [], []
    for x in range(contexts):
        context = f"context{x}"
        blocks.append(_cells(generator, world, controls, (x, None), "control"))
        control[context] = _expected(generator, world, truth_cells, (x, None))
        for name, hit in hits.items():
            blocks.append(_cells(generator, world, cells_per_unit, (x, hit), name))
            units.append((name, context))
            delta.append(_expected(generator, world, truth_cells, (x, hit)) - control[context])
    screen = anndata.concat(blocks, index_unique="-", keys=[str(i) for i in range(len(blocks))])
    return screen, ScreenTruth(units, np.array(delta), control, targets, hits, world)


def simulate_controls(generator: np.random.Generator, world: ScreenWorld, cells: int) -> anndata.AnnData:
    """Return untreated cells of the first context, for pretraining: the world of a screen without perturbations."""
    return _cells(generator, world, cells, (0, None), "control")


def _draw_world(
    generator: np.random.Generator, genes: int, programmes: int, *, structure: str, shape: tuple[int, int], total: float
) -> ScreenWorld:
    dealt = draw_programmes(generator, genes, programmes, structure=structure)
    contexts, replicates = shape
    return ScreenWorld(
        base=generator.normal(0, 0.8, genes),
        programmes=dealt,
        context=generator.normal(0, 0.4, (contexts, genes)) * (contexts > 1),
        replicate=generator.normal(0, 0.1, (replicates, genes)) * (replicates > 1),
        total=total,
    )


def _draw(generator: np.random.Generator, world: ScreenWorld, cells: int, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    """Counts [C, G] and the number of the replicate [C] of each cell."""
    context, hit = unit
    dealt = world.programmes
    replicate = np.arange(cells) % len(world.replicate)
    activity = generator.normal(0, SPREAD, (cells, len(dealt.links)))
    log_rate = world.base + world.context[context] + world.replicate[replicate]
    log_rate = log_rate + dealt.loading * activity[:, dealt.programme]  # [C, G]
    if hit is not None:
        log_rate += dealt.response * hit[dealt.answers]
    depth = draw_depths(generator, world.total, _DEPTH_SPREAD, (cells, 1))
    return draw_counts(generator, expected_counts(log_rate, depth)), replicate


def _cells(
    generator: np.random.Generator, world: ScreenWorld, cells: int, unit: Unit, condition: str
) -> anndata.AnnData:
    counts, replicate = _draw(generator, world, cells, unit)
    obs = {"condition": condition, "context": f"context{unit[0]}", "replicate": [f"replicate{r}" for r in replicate]}
    index = pd.Index([f"cell{i}" for i in range(cells)])
    var = pd.DataFrame(index=pd.Index([f"GENE{g}" for g in range(counts.shape[1])]))
    return anndata.AnnData(counts.astype(np.float32), obs=pd.DataFrame(obs, index=index), var=var)


def _expected(generator: np.random.Generator, world: ScreenWorld, cells: int, unit: Unit) -> np.ndarray:
    counts, _ = _draw(generator, world, cells, unit)
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).mean(0)  # [G]
