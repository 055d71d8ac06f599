"""The training loop: steps, validations and checkpoints, in one process or several that share every step."""

import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sckit.data.batch import Hiding, Packer
from sckit.data.loader import Parts, batches_by_tokens, detected_in
from sckit.data.split import TRAIN
from sckit.device import Compute
from sckit.errors import DataError, StoppedError
from sckit.files import write_json
from sckit.model.neighbours import find_neighbours
from sckit.model.tokens import Tokens
from sckit.training.baselines import untrained_model
from sckit.training.checkpoint import load_checkpoint, moments_of, save_checkpoint
from sckit.training.correction import fit_correction
from sckit.training.feed import Feed, FoldBatch, Step
from sckit.training.folders import TRAINED, point_latest
from sckit.training.optimiser import make_optimiser, schedule, take_step
from sckit.training.ranks import Ranks
from sckit.training.run import Run, save_model, training_view
from sckit.training.sharding import Loss, gather, split, whole
from sckit.training.standing import DEFAULT_EPOCHS, METRICS, Pretrained, Progress, end_sentences, resumed, standing
from sckit.training.starts import Starts
from sckit.training.stop import Stop
from sckit.training.validation import validation_row

OnEvent = Callable[[str, dict[str, Any]], None]

_CORRECTION_EPOCH, _CORRECTION_TOKENS = 2**21, 32768  # no epoch of training hides the same values
_VALIDATIONS = 10  # at least this many over the budget, also when epochs are long
_EARLY = 0.5  # share of the budget without patience: scores fall at first, and recover as the learning rate falls
_LOOK = 20  # steps on a GPU between two looks at the loss, for which the GPU has to finish


class Trainer:
    """The training loop. It draws no random numbers: batches and masks are functions of (seed, epoch).

    Of several processes each computes its share of every step. The first one validates, writes and speaks.
    """

    def __init__(self, run: Run, compute: Compute, on_event: OnEvent, ranks: Ranks) -> None:
        self.run, self.config, self.compute, self.on_event, self.ranks = run, run.config, compute, on_event, ranks
        store = run.store
        self.view = training_view(store, self.config)
        self.lengths = np.zeros(store.n_cells, np.int32)
        cells = np.flatnonzero(run.seen)
        self.lengths[cells] = detected_in(store, run.vocabulary, cells)
        self._batches = lru_cache(2)(self._batches_of)  # the next epoch's may be packed already
        self.model = untrained_model(run, self.config.training_seed).to(compute.device)
        self.model.engine = compute.engine
        self.network = split(self.model) if self.config.shard and ranks.count > 1 else self.model
        self.loss: nn.Module = Loss(self.network)
        if self.network is self.model:
            self.loss = ranks.wrapped(self.loss, some_unused=self.config.neighbours > 0)
        elif not ranks.is_first:
            self.model = self.network  # one process has a whole model, for validation
        self.starts = Starts(run, self.model, compute.device)
        self.neighbours = None
        if self.config.neighbours:
            of = self.starts.offsets, self._packer(0, "detected"), cells, run.cells(TRAIN), run.groups
            self.neighbours = find_neighbours(*of, self.config.neighbours, self.config.seed)
            if (few := self.neighbours.table.shape[1]) < self.config.neighbours:
                self.on_event("note", {"text": f"only {few} cells can be neighbours"})
        self.optimiser = make_optimiser(self.network, self.config)
        self.at = Progress()
        self.begun_s = self.seen_loss = 0.0
        self.stop = Stop()
        share = self.config.visible_share if self.config.context == "detected" else 1.0
        self.feed = Feed(self._batches, self._packer, self.config.accumulate, share, ranks, compute.device)

    def fit(self) -> Pretrained:
        """Train until the budget is spent or validation stops improving; the best model is what stays in the run."""
        state = load_checkpoint(self.run.path, {self.model, self.network}, self.optimiser)
        self.at = Progress(**self.ranks.first(lambda: vars(self._resume(state))))
        self.begun_s = time.monotonic() - self.at.elapsed_s
        if state is None:
            self._validate()
        if self.model.correction is not None and not self.at.correction_s:
            self._correct()
        if self.ranks.is_first and not self.config.shuffle_values and not self.config.folds:
            point_latest(self.run.path)  # neither of those is what a user evaluates next
        begun_at = self.at.step
        steps = self.feed.steps(self.at.epoch, self.at.batch)
        with self.stop, closing(steps):
            while not self._ended() and not self.stop.agreed:
                self.take(next(steps))
                if self.share() >= min(self.at.next_validation, 1.0) - 1e-9:
                    self._validate()
                if self.at.step % self.config.checkpoint_steps == 0:
                    self._checkpoint()
        self._checkpoint()
        if self.stop.agreed and not self._ended():
            raise StoppedError(f"stopped after step {self.at.step}; go on with --resume {self.run.path}.")
        best = self.ranks.first(self._finish)
        self._say_how_it_ended(best, trained=self.at.step > begun_at)
        at, seconds = self.at, self.at.network_s
        return Pretrained(self.run.path, at.tokens / seconds, at.cells / seconds, at.elapsed_s, at.epoch, best)

    def _resume(self, state: dict[str, Any] | None) -> Progress:
        """Return where training begins, and put the files of the run into the state of that moment."""
        (self.run.path / TRAINED).unlink(missing_ok=True)
        lines = self.run.path / METRICS
        if state is not None:
            self.at = resumed(self.run.path, state)
            if not self._ended():
                self.on_event("note", {"text": f"resuming {self.run.path} after step {self.at.step}"})
        elif lines.exists():
            text = f"{self.run.path} was interrupted before its first checkpoint; it begins again at step 0"
            self.on_event("note", {"text": text})
            lines.unlink()
        return self.at

    def _finish(self) -> dict[str, Any]:
        """Mark the run as trained to its end, and return the validation row of its best model."""
        write_json(self.run.path / TRAINED, {"step": self.at.step})
        return json.loads((self.run.path / "model.json").read_text())["score"]

    def _correct(self) -> None:
        """Train the correction of the linear baseline, and score the model with it.

        It learns from all mask rates, whatever the run's own is, so that no rate lies outside of what it has seen.
        """
        said = self.ranks.first(self._fit_correction)
        assert self.model.correction is not None
        self.ranks.copy(self.model.correction.state_dict().values())
        self.at.elapsed_s, self.at.correction_s = said["elapsed_s"], said["correction_s"]
        self.on_event("note", {"text": said["text"]})
        self._validate()
        self._checkpoint()

    def _fit_correction(self) -> dict[str, Any]:
        """Train the correction; return how long it took, and what is to be said of it."""
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
        elapsed_s = time.monotonic() - self.begun_s
        correction_s = elapsed_s - at.elapsed_s
        kept = "none made validation cells better, so there is none"
        if fitted.penalty is not None:
            kept = f"validation cells chose {fitted.penalty:,.0f}"
        text = f"trained a correction of the linear baseline, without attention, {fitted.steps} steps with each penalty"
        text = f"{text}, {correction_s:.0f} s; {kept}"
        return {"elapsed_s": elapsed_s, "correction_s": correction_s, "text": text}

    def _drawn(self, number: int, batches: Sequence[tuple[int | None, np.ndarray]]) -> Iterator[Tokens]:
        """Yield the tokens of batches with what this draw hides; the linear baseline is the fit without their cells."""
        hiding = Hiding("uniform", self.config.training_seed, _CORRECTION_EPOCH + number)
        packer = replace(self._packer(0, "detected"), hiding=hiding, neighbours=None)
        for fold, cells in batches:
            self.starts.use(fold)
            yield Tokens.of(packer(cells), self.compute.device)

    def _elapsed_s(self) -> float:
        """Return the time that training has taken; where it decides when training ends, that of the first process."""
        own = time.monotonic() - self.begun_s
        return own if self.config.minutes is None else self.ranks.sum([own if self.ranks.is_first else 0.0])[0]

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
        together = config.accumulate * self.ranks.count
        groups = -(-len(self._batches(at.epoch)) // together)
        return (at.epoch + at.batch / together / groups) / (config.epochs or DEFAULT_EPOCHS)

    def take(self, step: Step) -> None:
        """Take a training step, and note where the next one begins."""
        config, at = self.config, self.at
        own = [each.batch for each in step.batches if each.is_own]
        facts = (sum(map(len, each)) for each in zip(*((b.targets, b.genes, b.cells) for b in own), strict=True))
        numbers = [*(facts if own else (0, 0, 0)), sum(batch.cut for batch in own), self.stop.asked]
        targets, tokens, cells, cut, self.stop.agreed = self.ranks.sum(numbers)
        at.tokens, at.cells, at.cut = at.tokens + int(tokens), at.cells + int(cells), at.cut + int(cut)
        scheduled = schedule(self.share(), config.warmup)
        losses = self._losses(step.batches, max(targets, 1.0))
        look = self.compute.device.type == "cpu" or at.step % _LOOK == 0
        loss = take_step(
            self.network, self.optimiser, losses, step=at.step, lr=config.lr, scheduled=scheduled, clip=config.clip,
            look=look,
        )  # fmt: skip
        if look:
            self.seen_loss = self.ranks.sum([float(loss)])[0] / self.ranks.count
        at.step += 1
        at.epoch, at.batch = step.epoch, step.next_batch
        at.elapsed_s = self._elapsed_s()
        self.on_event(
            "step",
            {
                "share": self.share(),
                "loss": self.seen_loss,
                "tokens_per_s": at.tokens / self.at.network_s,
                "step": at.step,
            },
        )

    def _losses(self, batches: Sequence[FoldBatch], targets: float) -> Generator[Tensor]:
        """Yield the losses of this process's batches; over all processes they add up to the mean over all targets."""
        for number, each in enumerate(batches):
            self.starts.use(each.fold)
            weight = len(each.batch.targets) / targets if each.is_own else 0.0
            network, together = self.loss, number == len(batches) - 1  # gradients are exchanged once a step
            several = isinstance(network, DistributedDataParallel)
            with network.no_sync() if several and not together else nullcontext():
                with self.compute.cast():
                    loss = network(each.tokens)
                yield loss * (weight * self.ranks.count)  # torch takes the mean over processes

    def _batches_of(self, epoch: int, tokens: int | None = None) -> Parts:
        """Return the batches of an epoch, each with the fold that its cells are of, or None."""
        seed = self.config.training_seed, epoch
        return self.starts.batches(self.lengths, tokens or self.config.batch_tokens, seed)

    def _packer(self, epoch: int, context: str) -> Packer:
        config = self.config
        hiding, vocabulary = Hiding(config.mask, config.training_seed, epoch), self.run.vocabulary
        return Packer(
            self.view, vocabulary, hiding, context, known_depth=config.known_depth, max_genes=config.max_genes,
            neighbours=self.neighbours,
        )  # fmt: skip

    def _validate(self) -> None:
        """Score the validation cells with model and linear baselines; save the model when it is the best so far."""
        gather(self.network, self.model)
        self.at = Progress(**self.ranks.first(lambda: vars(self._validated())))

    def _validated(self) -> Progress:
        """Validate, and return where training then stands."""
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
        return at

    def _checkpoint(self) -> None:
        if not all(bool(torch.isfinite(whole(p)).all()) for p in self.network.parameters()):  # between two looks
            raise DataError(f"a weight is not a number at step {self.at.step}; lower --lr and go on with --resume.")
        gather(self.network, self.model)
        moments = moments_of(self.optimiser)
        if self.ranks.is_first:
            save_checkpoint(self.run.path, vars(self.at).copy(), self.model, moments)
