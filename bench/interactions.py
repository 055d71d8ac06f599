"""How much of a known interaction a network finds: `python bench/interactions.py --cells 20000 --out FILE.jsonl`.

Counts are simulated in which a tenth of the genes follow the product of two programmes, and a run is trained on them.
The products are then added to each row, with a coefficient for each gene that is fitted on one half of the held-out
cells and scored on the other. Where a row has found a product, there is nothing left for it to add:

    recovered = 1 - R² that the products add to the row / R² that they add to the value offset ridge

No method sees the activities of the programmes, only counts that follow them. "known" products are of the true
activities, and no row can find all of them; "visible" ones are of activities as a linear regression on the training
cells tells them from the components, the total and the value factors of a cell.

Counts without interactions are still not linear in what is seen, because rates are exponentials of activities. With
--linear, counts are drawn again whose expected values are linear in the components of the detection set, and whose
totals know nothing of the cell. There the ridge is right, and nothing can gain on it.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp

from sckit.config import EvalConfig, PretrainConfig, SimulateConfig
from sckit.data.batch import Batch, Hiding, Packer
from sckit.data.simulate import read_truth, simulate
from sckit.data.split import TRAIN
from sckit.evaluation.predictors import Setting
from sckit.kernels.count_law import draw_counts, log_rate_of_value
from sckit.model.offset_forms import OffsetForms
from sckit.provenance import commit, environment
from sckit.training.baselines import offset_forms
from sckit.training.pretrain import pretrain
from sckit.training.run import open_run

RIDGE, COUNTS = "value offset ridge", "count regression"
ROWS = (RIDGE, COUNTS, "value offset ridge + correction", "model/detected", "value offset ridge + trees")
_SPREAD = 0.25  # standard deviation of the expected value above a single count, as a share of its mean
_SMALLER = 0.6  # what the means above a single count are multiplied by, so that no cell's counts reach its total
_LEAST, _SHARED_BY = 20, 10  # cells that a gene of the vocabulary is seen in; cells that a gene of the remainder has
SETTINGS = {"all hidden": (1.0, False), "15 % hidden, total known": (0.15, True)}


def of_cells(offsets: OffsetForms, batch: Batch) -> np.ndarray:
    """Return what a linear baseline sees of the cells of a batch, [C, F]."""
    cells = offsets.of_cells(batch)
    seen = np.flatnonzero(~batch.hidden)
    cell = batch.cell_of_token[seen]
    above = batch.values[seen] - cells.one[cell] - offsets.linear(cells, batch.genes[seen], cell)
    return np.column_stack([cells.full, offsets.factors(batch, above)])


def entries(run: Path, truth: Path, rate: float, *, known: bool) -> dict[str, np.ndarray]:
    """Return of every scored entry its cell, gene, value, gene mean, known product, and what each row predicts."""
    opened = open_run(run)
    setting = Setting([opened], EvalConfig(masks=(rate,), known_depth=known, trees=True), lambda _kind, _facts: None)
    known_truth = read_truth(truth)
    column = {f"GENE{gene}": i for i, gene in enumerate(known_truth.world.interacting)}
    column_of = np.array([column.get(symbol, -1) for symbol in opened.genes["symbol"]])
    fitted = setting.targets()["full"]
    packer = setting.packer(fitted.view, rate, scored=True)
    predict = setting.predictor(fitted, rate)(packer, setting.cells)
    train = opened.cells(TRAIN)
    batches = setting.batches(setting.packer(fitted.view, rate, scored=False, epoch=1), train, "training cells")
    seen, order = zip(*((of_cells(fitted.offsets, batch), batch.cells) for batch in batches), strict=True)
    activity = known_truth.cells.activity
    weights = np.linalg.lstsq(np.concatenate(seen), activity[np.concatenate(order)], rcond=None)[0]
    parts = []
    for batch in setting.batches(packer, setting.cells, "scored"):
        genes, cells = batch.genes[batch.targets], batch.cells[batch.target_cells]
        guessed = (of_cells(fitted.offsets, batch) @ weights)[batch.target_cells]
        column = column_of[genes]
        products = {
            name: np.where(column >= 0, with_zeros(known_truth.products(of))[np.arange(len(cells)), column], 0.0)
            for name, of in (("known", activity[cells]), ("visible", guessed))
        }
        rows = predict(batch)
        parts.append(
            {"cell": cells, "gene": genes, "value": batch.truth, "mean": fitted.offsets.gene_mean[genes]}
            | products | {name: rows[name] for name in ROWS}
        )  # fmt: skip
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_zeros(products: np.ndarray) -> np.ndarray:
    """Return products [M, I] with a last column for genes that follow none, [M, I + 1]."""
    return np.column_stack([products, np.zeros(len(products))])


def gain(found: dict[str, np.ndarray], row: str, other: str = RIDGE, draws: int = 1000) -> list[float]:
    """Return the R² of a row less that of another, and its 95 % interval over cells."""
    errors = [(found["value"] - found[name]) ** 2 for name in (other, row, "mean")]
    cells, number = np.unique(found["cell"], return_inverse=True)
    less, own, mean = (np.bincount(number, error) for error in errors)
    drawn = np.random.default_rng(0).integers(len(cells), size=(draws, len(cells)))
    ratio = (less - own)[drawn].sum(1) / mean[drawn].sum(1)
    return [round(float(part), 5) for part in ((less - own).sum() / mean.sum(), *np.quantile(ratio, [0.025, 0.975]))]


def added(found: dict[str, np.ndarray], row: str, of: str) -> float:
    """Return the R² that the "known" or "visible" products add to a row, each half of the cells by the other."""
    left, better, genes = found["value"] - found[row], 0.0, int(found["gene"].max()) + 1
    for half in (0, 1):
        fit, score = found["cell"] % 2 == half, found["cell"] % 2 != half
        gene, product = found["gene"][fit], found[of][fit]
        slope = np.bincount(gene, product * left[fit], genes) / (np.bincount(gene, product**2, genes) + 1.0)
        rest = left[score] - slope[found["gene"][score]] * found[of][score]
        better += float((left[score] ** 2).sum() - (rest**2).sum())
    return better / float(((found["value"] - found["mean"]) ** 2).sum())


def redrawn(run: Path) -> anndata.AnnData:
    """Return counts of the same detected genes whose expected values above a single count are linear in components.

    Each cell is filled up to a total that knows nothing of its genes, with counts of genes that so few cells share that
    they are not in the vocabulary. So the total does not tell the sum of the hidden counts either.
    Raises ValueError where the counts of a cell reach its total.
    """
    opened, generator = open_run(run), np.random.default_rng(0)
    forms, packer = offset_forms(opened), Packer(opened.store, opened.vocabulary, Hiding(1.0))
    batch = packer(np.arange(opened.store.n_cells))
    components = forms.of_cells(batch).x[:, 2:]
    weights = generator.normal(size=(len(opened.genes), components.shape[1]))
    weights *= _SPREAD / np.linalg.norm(weights, axis=1)[:, None]
    cell = batch.cell_of_token
    relative = 1 + np.einsum("nk,nk->n", weights[batch.genes], components[cell])
    above = _SMALLER * forms.mean_above[batch.genes] * np.maximum(relative, 0.05)
    totals = np.median(opened.store.totals(batch.cells)) * np.exp(generator.normal(1.5, 0.2, len(batch.cells)))
    counts = draw_counts(np.exp(log_rate_of_value(above, batch.offsets, totals)), generator)
    matrix = sp.csr_array((counts, batch.genes, batch.offsets), (len(batch.cells), len(opened.genes)))
    remainder, rows = np.round(totals) - matrix.sum(1), np.arange(len(batch.cells))
    if remainder.min() < 1:
        raise ValueError(f"the counts of {(remainder < 1).sum():,} cells reach their totals, which then tell of them")
    others = sp.csr_array((remainder, (rows, rows // _SHARED_BY)))
    data = anndata.AnnData(sp.csr_matrix(sp.hstack([matrix, others], "csr")).astype(np.float32))
    data.var_names = [*opened.genes["symbol"], *(f"REMAINDER{i}" for i in range(data.n_vars - len(opened.genes)))]
    return data


def trial(
    size: float, config: PretrainConfig, cells: int, folder: Path, *, linear: bool = False
) -> list[dict[str, Any]]:
    """Simulate, train and score; one record for each setting and row."""
    data = SimulateConfig(cells=cells, genes=1000, depth=3000, programmes=6, libraries=1, types=3, interactions=size)
    simulate(data, folder / "known.sckit")
    data_of_run = folder / "known.sckit"
    if linear:
        config = replace(config, min_cells=_LEAST)
        first = replace(config, steps=1, correction_steps=0)
        data_of_run = folder / "linear.h5ad"
        redrawn(pretrain(folder / "known.sckit", first, runs=folder, name="first").run).write_h5ad(data_of_run)
    start = time.perf_counter()
    run = pretrain(data_of_run, config, runs=folder, name="run").run
    seconds, records = round(time.perf_counter() - start, 1), []
    for name, (rate, known) in SETTINGS.items():
        found = entries(run, folder / "known.truth.h5", rate, known=known)
        about = ((found["value"] - found["mean"]) ** 2).sum()
        for row in ROWS:
            r2 = 1 - ((found["value"] - found[row]) ** 2).sum() / about
            record: dict[str, Any] = {"cells": cells, "interactions": size, "linear": linear}
            record |= {"setting": name, "row": row}
            record |= {"r2": round(float(r2), 5), "minus_ridge": gain(found, row)}
            record |= {"minus_counts": gain(found, row, COUNTS)}
            for of in ("known", "visible"):
                rest, before = added(found, row, of), added(found, RIDGE, of)
                record |= {
                    f"{of}_add": round(rest, 5),
                    f"{of}_recovered": round(1 - rest / before, 3) if size else None,
                }
            record |= {"train_s": seconds, "preset": config.preset, "correction_steps": config.correction_steps}
            records.append(record)
    return records


def main() -> None:
    """Try each size of interaction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1.0, 0.0])
    parser.add_argument("--linear", action="store_true", help="Draw counts that are linear in components.")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--correction-steps", type=int, default=PretrainConfig().correction_steps)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    base = PretrainConfig(mask="uniform", steps=arguments.steps, patience=10**6, preset=arguments.preset)
    for size in [0.0] if arguments.linear else arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            config = replace(base, correction_steps=arguments.correction_steps)
            for record in trial(size, config, arguments.cells, Path(folder), linear=arguments.linear):
                print(json.dumps(record), flush=True)
                if arguments.out:
                    facts = {"commit": commit(), "environment": environment(), "steps": arguments.steps}
                    with arguments.out.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(record | facts) + "\n")


if __name__ == "__main__":
    main()
