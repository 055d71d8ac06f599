"""Masked pretraining: one loop with a budget in epochs, steps or minutes, resumable bit for bit on a CPU."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sckit.config import PretrainConfig, ReadingConfig
from sckit.data.batch import Hiding, Packer
from sckit.data.loader import batches_by_tokens, detected_in
from sckit.data.split import TRAIN
from sckit.device import Compute, choose_compute
from sckit.errors import ConfigError, DataError
from sckit.files import write_json
from sckit.model.neighbours import find_neighbours
from sckit.model.tokens import Tokens
from sckit.model.transformer import Model
from sckit.training.baselines import untrained_model
from sckit.training.checkpoint import load_checkpoint, save_checkpoint
from sckit.training.correction import fit_correction
from sckit.training.folders import TRAINED, create_run, find_run, point_latest
from sckit.training.optimiser import make_optimiser, schedule, take_step
from sckit.training.run import Run, open_run, save_model, training_view
from sckit.training.setting import open_data, prepare_run
from sckit.training.standing import DEFAULT_EPOCHS, METRICS, Progress, end_sentences, resumed, standing
from sckit.training.starts import Parts, Starts
from sckit.training.validation import validation_row

_CORRECTION_EPOCH, _CORRECTION_TOKENS = 2**21, 32768  # no epoch of training hides the same values
_VALIDATIONS = 10  # at least this many over the budget, also when epochs are long
_EARLY = 0.5  # share of the budget without patience: scores fall at first, and recover as the learning rate falls


@dataclass(frozen=True)
class Pretrained:
    """Result of `pretrain`: the run folder, the speed, and the validation row of the best model."""

    run: Path
    tokens_per_s: float
    cells_per_s: float
    wall_s: float
    epochs: int
    best: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        return {**vars(self), "run": str(self.run)}


def pretrain(
    data: str | Path | Sequence[str | Path] | None = None,
    config: PretrainConfig | None = None,
    *,
    name: str | None = None,
    runs: str | Path = "runs",
    resume: str | Path | None = None,
    reading: ReadingConfig | None = None,
    on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _facts: None,
) -> Pretrained:
    """Train the model to fill in hidden values, and return the run folder and its best validation row.

    data: a store, or anything `prepare` reads, as `reading` says; None for the PBMC sample inside scanpy. resume: a run
    to go on with, whose own configuration then holds. on_event(kind, facts) is called with "note", "step" and
    "validation" events. Raises DataError and ConfigError.
    """
    if resume is not None:
        path = find_run(resume, Path(runs))
    else:
        config = config or PretrainConfig()
        if config.folds:
            raise ConfigError(f"{config.folds} folds are several runs; call pretrain_folds for them.")
        choose_compute(config.device, config.engine)  # refuse before the work
        path = create_run(config, name, Path(runs))
        try:
            store = open_data(path, data, reading or ReadingConfig(), on_event)
            prepare_run(path, store, config, on_event)
        except BaseException:
            shutil.rmtree(path)  # nothing was trained, and a half-made run must not become the latest
            raise
    return train(path, on_event)


def load_model(run: str | Path | None = None, *, runs: str | Path = "runs", device: str = "cpu") -> Model:
    """Load the model of a run by path or name, by default of the latest one, in evaluation mode."""
    return open_run(find_run(run, Path(runs))).model(device)


def train(path: Path, on_event: Callable[[str, dict[str, Any]], None]) -> Pretrained:
    """Train the run in a folder from where it stands."""
    run = open_run(path)
    compute = choose_compute(run.config.device, run.config.engine)
    on_event("note", {"text": str(compute)})
    return _Trainer(run, compute, on_event).fit()


class _Trainer:
    """The training loop. It draws no random numbers: batches and masks are functions of (seed, epoch)."""

    def __init__(self, run: Run, compute: Compute, on_event: Callable) -> None:
        self.run, self.config, self.compute, self.on_event = run, run.config, compute, on_event
        store = run.store
        self.view = training_view(store, self.config)
        self.lengths = np.zeros(store.n_cells, np.int64)
        cells = np.flatnonzero(run.seen)
        self.lengths[cells] = detected_in(store, run.vocabulary, cells)
        self._batches = lru_cache(1)(self._batches_of)
        self.model = untrained_model(run, self.config.training_seed).to(compute.device)
        self.model.engine = compute.engine
        self.starts = Starts(run, self.model, compute.device)
        self.neighbours = None
        if self.config.neighbours:
            of = self.starts.offsets, self._packer(0, "detected"), cells, run.cells(TRAIN), run.groups
            self.neighbours = find_neighbours(*of, self.config.neighbours, self.config.seed)
            if (few := self.neighbours.table.shape[1]) < self.config.neighbours:
                self.on_event("note", {"text": f"only {few} cells can be neighbours"})
        self.optimiser = make_optimiser(self.model, self.config)
        self.at = Progress()
        self.begun_s = 0.0

    def fit(self) -> Pretrained:
        """Train until the budget is spent or validation stops improving; the best model is what stays in the run."""
        (self.run.path / TRAINED).unlink(missing_ok=True)
        state = load_checkpoint(self.run.path, self.model, self.optimiser)
        lines = self.run.path / METRICS
        if state is not None:
            self.at = resumed(self.run.path, state)
            if not self._ended():
                self.on_event("note", {"text": f"resuming {self.run.path} after step {self.at.step}"})
        elif lines.exists():
            text = f"{self.run.path} was interrupted before its first checkpoint; it begins again at step 0"
            self.on_event("note", {"text": text})
            lines.unlink()
        self.begun_s = time.monotonic() - self.at.elapsed_s
        if state is None:
            self._validate()
        if self.model.correction is not None and not self.at.correction_s:
            self._correct()
        if not self.config.shuffle_values and not self.config.folds:  # neither is what a user evaluates next
            point_latest(self.run.path)
        begun_at = self.at.step
        while not self._ended():
            self._train_one_step()
            if self.share() >= min(self.at.next_validation, 1.0) - 1e-9:
                self._validate()
            if self.at.step % self.config.checkpoint_steps == 0:
                self._checkpoint()
        self._checkpoint()
        write_json(self.run.path / TRAINED, {"step": self.at.step})
        best = json.loads((self.run.path / "model.json").read_text())["score"]
        self._say_how_it_ended(best, trained=self.at.step > begun_at)
        at, seconds = self.at, self.at.network_s
        return Pretrained(self.run.path, at.tokens / seconds, at.cells / seconds, at.elapsed_s, at.epoch, best)

    def _correct(self) -> None:
        """Train the correction of the linear baseline, and score the model with it.

        It learns from all mask rates, whatever the run's own is, so that no rate lies outside of what it has seen.
        """
        config, at = self.config, self.at
        validation = [
            (fold, part)
            for fold, cells in self.starts.validation
            for part in batches_by_tokens(cells, self.lengths, _CORRECTION_TOKENS)
        ]

        def draw(number: int) -> Iterator[Tokens]:
            return self._drawn(number, self._batches_of(_CORRECTION_EPOCH + number, _CORRECTION_TOKENS))

        cells_of_gene = torch.from_numpy(self.starts.offsets.cells.astype(np.float32))
        steps = {"steps": config.correction_steps, "seed": config.training_seed}
        fitted = fit_correction(
            self.model, draw, lambda number: self._drawn(number, validation), cells_of_gene, **steps
        )
        before, at.elapsed_s = at.elapsed_s, time.monotonic() - self.begun_s
        at.correction_s = at.elapsed_s - before
        kept = "none made validation cells better, so there is none"
        if fitted.penalty is not None:
            kept = f"validation cells chose {fitted.penalty:,.0f}"
        text = f"trained a correction of the linear baseline, without attention, {fitted.steps} steps with each penalty"
        self.on_event("note", {"text": f"{text}, {at.correction_s:.0f} s; {kept}"})
        self._validate()
        self._checkpoint()

    def _drawn(self, number: int, batches: Sequence[tuple[int | None, np.ndarray]]) -> Iterator[Tokens]:
        """Yield the tokens of batches with what this draw hides; the linear baseline is the fit without their cells."""
        hiding = Hiding("uniform", self.config.training_seed, _CORRECTION_EPOCH + number)
        packer = replace(self._packer(0, "detected"), hiding=hiding, neighbours=None)
        for fold, cells in batches:
            self.starts.use(fold)
            yield Tokens.of(packer(cells), self.compute.device)

    def _ended(self) -> bool:
        return self.share() >= 1 or self.at.worse >= self.config.patience

    def _say_how_it_ended(self, kept: dict[str, Any], *, trained: bool) -> None:
        place = standing(self.config, self.at.step, self._epoch(), self.at.elapsed_s)
        for text in end_sentences(self.config, place, kept, patience=self.share() < 1, trained=trained):
            self.on_event("note", {"text": text})

    def _epoch(self) -> float:
        return self.at.epoch + self.at.batch / max(len(self._batches(self.at.epoch)), 1)

    def share(self) -> float:
        """Return the share of the budget that is spent."""
        config, at = self.config, self.at
        if config.minutes is not None:
            return self.at.network_s / max(60 * config.minutes - at.correction_s, 1e-9)
        if config.steps is not None:
            return at.step / config.steps
        groups = -(-len(self._batches(at.epoch)) // config.accumulate)
        return (at.epoch + at.batch / config.accumulate / groups) / (config.epochs or DEFAULT_EPOCHS)

    def _train_one_step(self) -> None:
        config, at = self.config, self.at
        batches = self._batches(at.epoch)
        chosen = range(at.batch, min(at.batch + config.accumulate, len(batches)))
        scheduled = schedule(self.share(), config.warmup)
        losses = (self._loss(i, *batches[i]) / len(chosen) for i in chosen)
        loss = take_step(
            self.model, self.optimiser, losses, step=at.step, lr=config.lr, scheduled=scheduled, clip=config.clip
        )
        at.step += 1
        at.batch += len(chosen)
        if at.batch >= len(batches):
            at.epoch, at.batch = at.epoch + 1, 0
        at.elapsed_s = time.monotonic() - self.begun_s
        self.on_event(
            "step",
            {"share": self.share(), "loss": loss, "tokens_per_s": at.tokens / self.at.network_s, "step": at.step},
        )

    def _loss(self, number: int, fold: int | None, cells: np.ndarray) -> Tensor:
        """Return the loss of batch `number` of the epoch, which holds these cells, and count what is in it."""
        at = self.at
        self.starts.use(fold)
        batch = self._packer(at.epoch, self._context(number))(cells)
        at.tokens, at.cells, at.cut = at.tokens + len(batch.genes), at.cells + len(batch.cells), at.cut + batch.cut
        with self.compute.cast():
            return self.model.loss(Tokens.of(batch, self.compute.device))

    def _batches_of(self, epoch: int, tokens: int | None = None) -> Parts:
        """Return the batches of an epoch, each with the fold that its cells are of, or None."""
        seed = self.config.training_seed, epoch
        return self.starts.batches(self.lengths, tokens or self.config.batch_tokens, seed)

    def _context(self, batch: int) -> str:
        """Return the "visible" context for an evenly spread `visible_share` of the batches, else "detected"."""
        share = self.config.visible_share if self.config.context == "detected" else 1.0
        count = self.at.epoch * len(self._batches(self.at.epoch)) + batch
        return "visible" if math.floor((count + 1) * share) > math.floor(count * share) else "detected"

    def _packer(self, epoch: int, context: str) -> Packer:
        config = self.config
        hiding, vocabulary = Hiding(config.mask, config.training_seed, epoch), self.run.vocabulary
        return Packer(
            self.view, vocabulary, hiding, context, known_depth=config.known_depth, max_genes=config.max_genes,
            neighbours=self.neighbours,
        )  # fmt: skip

    def _validate(self) -> None:
        """Score the validation cells with model and linear baselines; save the model when it is the best so far."""
        at, config = self.at, self.config
        row = validation_row(self.model, self.run, self._packer(0, config.context), self.starts.judges(), self.compute)
        row |= {"epoch": self._epoch(), "step": at.step, "corrected": at.correction_s > 0}
        with (self.run.path / METRICS).open("a") as lines:
            lines.write(json.dumps(row | {"tokens": at.tokens, "cut": at.cut, "wall_s": round(at.elapsed_s, 3)}) + "\n")
        if row["r2_gene_mean"] is None:
            raise DataError(f"the validation score is not a number at step {at.step}; lower --lr and try again.")
        better = row["r2_gene_mean"] > at.best
        early = self.share() <= max(config.warmup, _EARLY)
        at.best, at.worse = max(at.best, row["r2_gene_mean"]), 0 if better or early else at.worse + 1
        if better:
            save_model(self.run.path, self.model, row)
        per_epoch = 1 / (config.epochs or DEFAULT_EPOCHS) if config.minutes is None and config.steps is None else 1.0
        at.next_validation = self.share() + min(per_epoch, 1 / _VALIDATIONS)
        at.elapsed_s = time.monotonic() - self.begun_s
        self.on_event("validation", row | {"better": better})

    def _checkpoint(self) -> None:
        save_checkpoint(self.run.path, vars(self.at).copy(), self.model, self.optimiser)
