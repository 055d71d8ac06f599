"""What predicts in an evaluation: the run's model, and the linear baselines fitted for each target.

For the half-depth target each cell's molecules are drawn into halves A and B. Every predictor predicts A: the replicate
from B, all others from what A shows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sckit.config import EvalConfig
from sckit.data.batch import Batch, Hiding, Neighbours, Packer
from sckit.data.halves import Halves, nb_sizes
from sckit.data.loader import batches_by_tokens, detected_in
from sckit.data.split import HELD_OUT, TRAIN, VALIDATION
from sckit.data.views import CountsView, CutView
from sckit.device import choose_compute
from sckit.evaluation.association import Association, group_codes, most_neighbours
from sckit.evaluation.known_truth import TRUTH, KnownTruth
from sckit.evaluation.other_cells import shown
from sckit.evaluation.trees import TREES, Trees, fit_trees
from sckit.model.closed_forms import ClosedForms, fit_label_depth
from sckit.model.count_start import CountStart
from sckit.model.neighbours import find_neighbours, may_be_neighbours
from sckit.model.offset_fit import fit_visible
from sckit.model.offset_forms import OffsetForms
from sckit.model.predict import predict
from sckit.model.regression import value_blocks
from sckit.training.baselines import offset_forms, refit_offset_forms, training_cells
from sckit.training.run import Run, fit_baselines
from sckit.training.standing import unfinished

Predictor = Callable[[Batch], np.ndarray]
Rows = Callable[[Batch], dict[str, np.ndarray]]
Pass = Callable[[Packer, np.ndarray], Rows]
"""Says how the batches of some cells, hidden by a packer, are predicted; rows with other cells look at them first."""

CALIBRATED = "value offset ridge, calibrated"
"""Row of what a model with a count loss starts from."""

CORRECTED = "value offset ridge + correction"
"""Row of the model without attention."""

_CLUSTERS = 20
_TREE_DRAWS = 3  # of what is hidden, where not everything is
_NOTHING_HIDDEN = 1e-12  # mask rate at which no hash is below


@dataclass(frozen=True)
class Fitted:
    """What is fitted for one target."""

    view: CountsView
    forms: ClosedForms
    offsets: OffsetForms
    labels: Predictor | None


class Setting:
    """A run, or several that differ in their seeds alone, the options of one evaluation, and the cells to score."""

    def __init__(self, runs: Sequence[Run], config: EvalConfig, on_event: Callable) -> None:
        self.run, self.config, self.on_event = runs[0], config, on_event
        run = self.run
        self.store = run.store
        self.compute = choose_compute(config.device, config.engine)
        self.models = [each.model(self.compute.device) for each in runs]
        self.kept_steps = [each.kept_step for each in runs]
        self.untrained = sum(each.untrained for each in runs)
        for model in self.models:
            model.engine = self.compute.engine
        first = self.models[0]
        counts = first.config.loss == "count"
        self.counts = CountStart.of_weights(first.state_dict(), len(run.genes)) if counts else None
        self.vocabulary = run.vocabulary
        self.cells = run.cells(HELD_OUT)
        if config.max_cells is not None and config.max_cells < len(self.cells):
            drawn = np.random.default_rng(config.seed).permutation(self.cells)
            self.cells = np.sort(drawn[: config.max_cells])
        self.known_depth = config.known_depth or run.config.known_depth
        column = config.group or run.config.group
        self.groups = self.store.labels(column).codes if column else None
        self.neighbours = config.neighbours or run.config.neighbours
        self._found: dict[tuple[int, bytes], Neighbours] = {}
        column = config.offset_group or (run.config.group if self.neighbours else None)
        self.codes = group_codes(self.store.labels(column), config.offset_group) if column else None
        self.truth = KnownTruth(config.truth, self.store, run.genes["symbol"]) if config.truth else None
        self.association: Association | None = None  # of the target and mask rate that are being scored

    def log(self, text: str) -> None:
        """Tell a note."""
        self.on_event("note", {"text": text})

    def notes(self) -> list[str]:
        """Say what a reader of the rows has to know of the run and of how they are made."""
        run, notes = self.run, []
        if place := unfinished(run):
            notes.append(
                f"this run is not marked as trained to its end (last checkpoint: {place}): its model of step "
                f"{run.kept_step} is scored; go on with `sckit pretrain --resume {run.path}`"
            )
        if "visible" in self.config.contexts and run.config.context == "detected" and min(self.config.masks) < 1:
            notes.append(
                "the model in the context visible starts from the mean of each gene, and saw only "
                f"{run.config.visible_share:.0%} of the batches in training; a run with `pretrain --context visible` "
                "trains it properly"
            )
        most = most_neighbours(len(run.cells(TRAIN)), len(self.cells))
        if self.neighbours > most:
            notes.append(
                f"--neighbours {self.neighbours} is more than there are: the {most:,} other cells are all "
                "neighbours of each cell"
            )
        if self.config.replicate_halves:
            notes.append(
                "half-depth target: the linear baselines, and the one that the model starts from, are refitted on "
                "halves of the training cells"
            )
        return notes

    def targets(self) -> dict[str, Fitted]:
        """Return what is fitted for each target, "full" and, where it is asked for, "half"."""
        given = {"components": self.config.components, "penalty": self.config.penalty}
        offsets = offset_forms(self.run, log=self.log, **given)
        self.full = Fitted(self.store, self.run.forms, offsets, self._labels(self.store, self.run.forms))
        targets = {"full": self.full}
        if self.config.replicate_halves:
            targets["half"] = self._halves(offsets)
        return targets

    def _halves(self, offsets: OffsetForms) -> Fitted:
        """Return the A halves of all cells, and the linear baselines fitted on the A halves of the training cells."""
        self.log(f"halving the molecules ({self.config.halving}); refitting the linear baselines on halves")
        train = self.run.cells(TRAIN)
        sizes = nb_sizes(self.store, train, self._clusters(train)) if self.config.halving == "nb" else None
        view = Halves(self.store, self.config.seed, sizes)
        forms = fit_baselines(view, self.vocabulary, train, self.run.config)
        refitted = refit_offset_forms(self.run, view, offsets, self.log)
        return Fitted(view, forms, refitted, self._labels(view, forms))

    def _clusters(self, cells: np.ndarray) -> np.ndarray:
        """Twenty clusters of like cells by their detection components, int64 [len(cells)]."""
        from scipy.cluster.vq import kmeans2

        blocks = value_blocks(self.store, self.vocabulary, cells)
        x = np.concatenate([self.run.forms.block_features(block)[:, 2:-1] for block in blocks])
        first = np.random.default_rng(self.config.seed).permutation(len(x))[:_CLUSTERS]
        return kmeans2(x, x[first], minit="matrix")[1].astype(np.int64)

    def _labels(self, view: CountsView, forms: ClosedForms) -> Predictor | None:
        if self.config.label is None:
            return None
        labels = self.store.labels(self.config.label)
        cut = CutView(view, self.vocabulary, self.run.config.max_genes, self.run.config.seed)
        return fit_label_depth(cut, self.vocabulary, self.run.cells(TRAIN), labels, forms)

    def packer(self, view: CountsView, rate: float, *, scored: bool, epoch: int = 0) -> Packer:
        """Return what packs cells at a mask rate; each epoch hides other values."""
        hiding, known = Hiding(rate, self.config.seed, epoch), self.known_depth
        most = self.run.config.max_genes
        return Packer(view, self.vocabulary, hiding, known_depth=known, scored=scored, max_genes=most)

    def predictor(self, fitted: Fitted, rate: float) -> Pass:
        """Return what predicts the targets of a pass over cells by every row but the replicate."""
        visible = None
        if rate < 1:
            cells = training_cells(self.run, fitted.view)
            visible = fit_visible(cells, fitted.offsets, rate, self.run.config.max_genes)
        trees = self._trees(fitted, rate) if self.config.trees else None
        association = self.association = self._association(fitted, rate)

        def over(packer: Packer, cells: np.ndarray) -> Rows:
            others = association and association.over(lambda: self.batches(packer, cells, "other cells"))
            plain = packer
            if self.run.config.neighbours:
                packer = replace(packer, neighbours=self._neighbours_of(fitted, packer, cells))

            def predicted(batch: Batch) -> dict[str, np.ndarray]:
                rows = fitted.forms.predict(batch) | fitted.offsets.predict(batch)
                if visible is not None:
                    rows["visible offset ridge"] = visible.predict(batch)
                if trees is not None:
                    rows[TREES] = trees.predict(batch)
                if self.truth is not None:
                    rows[TRUTH] = self.truth.predict(batch, fitted.view.totals(batch.cells))
                if fitted.labels is not None:
                    rows["label + depth"] = fitted.labels(batch)
                if self.counts is not None:
                    rows[CALIBRATED] = self._calibrated(batch, fitted, self.counts)
                for number, model in enumerate(self.models if self.models[0].correction is not None else []):
                    row = CORRECTED + (f"/{number}" if len(self.models) > 1 else "")
                    rows[row] = self._adapted(predict(model, batch, self.compute, attention=False), batch, fitted)
                for context in self.config.contexts:
                    as_is = context == "detected" and packer is plain
                    shown = batch if as_is else replace(packer, context=context)(batch.cells)
                    rows |= dict(zip(self.model_rows(context), self._predict(shown, fitted), strict=True))
                return rows | (others(batch, rows) if others else {})

            return predicted

        return over

    def _neighbours_of(self, fitted: Fitted, packer: Packer, cells: np.ndarray) -> Neighbours:
        """Return the neighbours of the cells of a pass: detection decides, so that they are the same at all rates."""
        key = id(fitted), cells.tobytes()
        if key not in self._found:
            of = fitted.offsets, packer, cells, self.run.cells(TRAIN), self.run.groups
            self._found[key] = find_neighbours(*of, self.run.config.neighbours, self.run.config.seed)
        return self._found[key]

    def _trees(self, fitted: Fitted, rate: float) -> Trees:
        """Fit the row with trees on the training cells, with as many draws of what is hidden as fill them."""
        self.log(f"fitting trees at {100 * rate:.4g}% hidden")

        def packers(draw: int) -> Packer:
            return self.packer(fitted.view, rate, scored=rate == 1.0, epoch=draw + 1)

        draws = 1 if rate == 1.0 else _TREE_DRAWS
        return fit_trees(training_cells(self.run, fitted.view), fitted.offsets, packers, draws, self.config.seed)

    def _association(self, fitted: Fitted, rate: float) -> Association | None:
        """Return what adds the rows that know other cells, if there are any."""
        config, training = self.config, None
        if config.offset_group is None and not self.neighbours:
            return None
        if self.neighbours:
            packer = replace(self.packer(fitted.view, _NOTHING_HIDDEN, scored=False), known_depth=True)
            cells = may_be_neighbours(self.run.cells(TRAIN), config.seed)
            training = shown(fitted.offsets, self.batches(packer, cells, "training cells that may be neighbours"))
        kinds = {"with_offsets": config.offset_group is not None, "neighbours": self.neighbours}
        association = Association(fitted.offsets, codes=self.codes, training=training, seed=config.seed, **kinds)
        packer = self.packer(fitted.view, rate, scored=False, epoch=1)
        association.fit(lambda: self.batches(packer, self.run.cells(VALIDATION), "weights of neighbours"))
        return association

    def batches(self, packer: Packer, cells: np.ndarray, what: str) -> Iterator[Batch]:
        """Yield the cells in batches, and report progress under a name."""
        lengths = np.zeros(self.store.n_cells, np.int32)
        lengths[cells] = detected_in(packer.view, self.vocabulary, cells)
        parts = batches_by_tokens(cells, lengths, self.config.batch_tokens)
        for i, part in enumerate(parts):
            yield packer(part)
            self.on_event("progress", {"done": i + 1, "of": len(parts), "what": what})

    def model_rows(self, context: str) -> list[str]:
        """Return the names of the rows of the models in a context."""
        return [f"model/{context}" + (f"/{seed}" if len(self.models) > 1 else "") for seed in range(len(self.models))]

    def _predict(self, batch: Batch, fitted: Fitted) -> list[np.ndarray]:
        """Return the values of each model; at half depth its linear part is refitted, and what it learned stays.

        Every linear baseline in the table was fitted on halves. The one that the model started from is therefore
        exchanged for the one fitted on halves, which changes nothing for the full-depth target.
        """
        return [self._adapted(predict(model, batch, self.compute), batch, fitted) for model in self.models]

    def _adapted(self, values: np.ndarray, batch: Batch, fitted: Fitted) -> np.ndarray:
        """Return a model's values with its linear part as fitted for a target."""
        if fitted is self.full:
            return values
        return values + self._start(batch, fitted) - self._start(batch, self.full)

    def _start(self, batch: Batch, fitted: Fitted) -> np.ndarray:
        """Return the values of the linear baseline that the model started from, as fitted for a target."""
        warm, offset = self.run.config.warm_start, self.models[0].config.start == "offset"
        if batch.context == "visible":
            return fitted.offsets.gene_start(batch) if offset else fitted.forms.gene_mean[batch.genes[batch.targets]]
        if not offset:
            return fitted.forms.predict(batch)["value ridge" if warm else "gene mean"]
        if self.counts is not None:
            return self._calibrated(batch, fitted, self.counts)
        return fitted.offsets.value_ridge(batch, fitted.offsets.of_cells(batch))

    @staticmethod
    def _calibrated(batch: Batch, fitted: Fitted, counts: CountStart) -> np.ndarray:
        """Return the mean values under the law of counts that a model with a count loss starts from."""
        cells = fitted.offsets.of_cells(batch)
        return counts.values(batch, cells, fitted.offsets.value_ridge(batch, cells))
