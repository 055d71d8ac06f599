"""Screens of some tens of genes, made in memory: quick to build, with every column that the tasks know."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from sckit.config.finetune import FinetuneConfig
from sckit.device import choose_compute
from sckit.perturbation.arms import Arms, token_table
from sckit.perturbation.baselines import response_baselines
from sckit.perturbation.baselines_partial import partial_baselines
from sckit.perturbation.fit import arm_predictor, train_arm
from sckit.perturbation.fold import FoldData
from sckit.perturbation.questions import ask
from sckit.perturbation.screen import Screen, Unit

UNMEASURED = 300
"""Counts of each cell in genes that are not predicted: totals are over all genes of the source."""

CONFIG = FinetuneConfig("condition", "control", steps=3, batch_tokens=300, control_cells=2, engine="numba")


def small_screen(
    generator,
    *,
    conditions=("A", "B", "C", "D", "E", "F"),
    contexts=1,
    replicates=1,
    cells=12,
    controls=16,
    genes=30,
    targets=(),
):
    """Every condition ("A", "A+B", "A @ 0.5") in every context, cells in random order; targets: {perturbation: gene}.

    `cells` treated and `controls` untreated cells a context and replicate. Genes are GENE0, GENE1, ...
    """
    names = sorted({part for label in conditions for part in label.split(" @ ")[0].split("+")})
    keys = [(c, r, label) for c in range(contexts) for r in range(replicates) for label in ("control", *conditions)]
    sizes = [controls if label == "control" else cells for _, _, label in keys]
    owner = generator.permutation(np.repeat(np.arange(len(keys)), sizes))
    base = generator.gamma(0.7, size=genes) + 0.1
    rate = base * np.exp(0.5 * generator.normal(size=(len(keys), genes)))
    depth = np.exp(0.3 * generator.normal(size=(len(owner), 1)))
    counts = generator.poisson(3 * depth * rate[owner]).astype(np.uint32)
    context, replicate = (np.array([key[i] for key in keys])[owner] for i in (0, 1))
    units = []
    for c in range(contexts):
        for label in conditions:
            name, _, dose = label.partition(" @ ")
            mine = [i for i, key in enumerate(keys) if (key[0], key[2]) == (c, label)]
            parts = tuple(sorted(names.index(part) for part in name.split("+")))
            units.append(Unit(label, parts, c, float(dose) if dose else None, np.flatnonzero(np.isin(owner, mine))))
    symbols = [f"GENE{g}" for g in range(genes)]
    labels = tuple(f"context{c}" for c in range(contexts))
    return Screen(
        genes=pd.DataFrame({"id": [""] * genes, "symbol": symbols}),
        counts=sp.csr_array(counts),
        totals=counts.sum(1).astype(np.int64) + UNMEASURED,
        control=np.array([label == "control" for _, _, label in keys])[owner],
        stratum=(context * replicates + replicate).astype(np.int64),
        replicate=np.array([f"replicate{r}" if replicates > 1 else "" for r in replicate]),
        units=tuple(units),
        perturbations=tuple(names),
        target_genes=tuple(dict(targets).get(name) for name in names),
        covariates=labels,
        unseen_of_covariates=labels,
        seen=None,
        table=(),
        notes=(),
    )


def dense_values(screen):
    """log1p of counts per 10,000 by plain numpy [C, G]."""
    return np.log1p(screen.counts.toarray() / screen.totals[:, None] * 1e4)


def with_counts(screen, counts):
    """The same screen with other counts [C, G] and the same totals."""
    return replace(screen, counts=sp.csr_array(np.asarray(counts, np.uint32)))


def as_anndata(counts, obs):
    """Counts [C, G] of GENE0, ... with columns of obs."""
    index = pd.Index([f"cell{i}" for i in range(len(counts))])
    var = pd.DataFrame(index=pd.Index([f"GENE{g}" for g in range(np.shape(counts)[1])]))
    return anndata.AnnData(np.asarray(counts, np.float32), obs=pd.DataFrame(obs, index=index), var=var)


def fold_of(screen, *, known=None, seed=0, share=1.0, split="perturbation", **options):
    """A fold of the screen; `known`: genes of the run, all of the screen's by default."""
    return FoldData(screen, replace(CONFIG, **options), split, table_of(screen, known), seed=seed, share=share)


def table_of(screen, known=None):
    symbols = screen.genes["symbol"] if known is None else known
    return token_table(pd.DataFrame({"id": "", "symbol": symbols}), screen)


def predictions(fold, run=None, arms=(), questions=None):
    """Deltas [m, G] for each question: of every linear baseline, and of arms that start from the run."""
    compute = choose_compute("cpu", "numba")
    predictors = response_baselines() if fold.config.task == "response" else partial_baselines()
    built = Arms(run, None, fold.examples.table)
    predictors |= {name: arm_predictor(train_arm(name, built, fold, compute), compute) for name in arms}
    questions = ask(fold) if questions is None else questions
    return {name: [predict(fold, question) for question in questions] for name, predict in predictors.items()}
