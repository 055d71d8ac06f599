"""Fine-tune an arm on one fold and predict with it. Every arm is shown the same examples in the same order."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from sckit.device import Compute
from sckit.perturbation.arms import Arms
from sckit.perturbation.examples import FoldExamples
from sckit.perturbation.fold import FoldData
from sckit.perturbation.questions import Predictor, Question, blind
from sckit.perturbation.responder import Example, Responder, pack_examples
from sckit.training import schedule, take_step

_WARMUP = 0.1
_CLIP = 1.0
_WEIGHT_DECAY = 0.01
_CHECKS = 5  # of the validation error after the one before the first step
_VALIDATION_EXAMPLES = 12  # per validation unit
_ENOUGH = 5  # training groups from which on some are validation groups


@dataclass(frozen=True)
class FittedArm:
    """A trained arm and how its training went."""

    model: Responder
    examples: FoldExamples  # of the units that it learned from; its outputs are in units of their scale
    best_step: int  # the step whose weights these are
    validation: list[float]  # mean squared error at each check; predicting the mean has about 1


def train_arm(name: str, arms: Arms, fold: FoldData, compute: Compute) -> FittedArm:
    """Build an arm and train it on a fold."""
    seed, noise = 1000 * fold.key[0] + fold.key[1], fold.examples.cell_rms**2
    model = arms.build(name, fold.config, seed=seed, engine=compute.engine, noise=noise)
    return fit(model, fold.examples, compute, frozen=name == "frozen", seed=fold.key)


def arm_predictor(arm: FittedArm, compute: Compute) -> Predictor:
    """Return the predictor that a trained arm is."""
    if arm.examples.config.task == "response":
        return blind(lambda fold: predict_response(arm, fold, compute))
    return lambda fold, question: predict_profiles(arm, fold, question, compute)


def fit(
    model: Responder, examples: FoldExamples, compute: Compute, *, frozen: bool, seed: tuple[int, ...]
) -> FittedArm:
    """Train for `config.steps` steps and keep the weights with the least error on the validation units.

    The error is checked six times, first before any step: an arm that never beats the mean on the validation
    perturbations keeps predicting the mean. Without validation units the last weights are kept. seed: of the examples,
    the same for all arms. Raises DataError when the gradient is not finite.
    """
    config = examples.config
    model.to(compute.device)
    optimiser = _optimiser(model, config.lr, frozen=frozen)
    train, validation = _split_units(examples, np.random.default_rng((*seed, 1)))
    generator, chooser = (np.random.default_rng((*seed, i)) for i in (2, 3))
    own = examples.only(train) if validation else examples
    cells = examples.trainable
    checks = [own.example(u, cells[u], chooser) for u in validation for _ in range(_VALIDATION_EXAMPLES)]
    best_step, best, kept, errors = 0, np.inf, None, []
    for step in range(config.steps + 1):
        if checks and step % max(1, config.steps // _CHECKS) == 0:
            errors.append(_error(model, checks, own, compute))
            if errors[-1] < best:
                best_step, best = step, errors[-1]
                kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if step == config.steps:
            break
        scheduled = schedule(step / config.steps, _WARMUP)
        with compute.cast():
            loss = model.loss(pack_examples(_draw(own, generator), own.expected, compute.device))
        take_step(model, optimiser, [loss], step=step, lr=config.lr, scheduled=scheduled, clip=_CLIP)
    if kept is not None:
        model.load_state_dict(kept)
    return FittedArm(model, own, config.steps if kept is None else best_step, errors)


def predict_response(arm: FittedArm, fold: FoldData, compute: Compute) -> np.ndarray:
    """Predict the deltas [m, G] of the test units: means over `config.control_cells` input controls of their strata."""
    generator = np.random.default_rng((*fold.key, 4))
    queries, count = np.arange(len(fold.screen.genes)), fold.config.control_cells
    found = []
    for u in fold.view.test:
        cells = fold.examples.control_cells(u, count, generator)
        sequences = [fold.examples.control_cell(c, u, queries) for c in cells]
        found.append(_predict(arm.model, sequences, arm.examples, compute).reshape(count, -1).mean(0))
    return fold.view.mean + arm.examples.scale * np.array(found)


def predict_profiles(arm: FittedArm, fold: FoldData, question: Question, compute: Compute) -> np.ndarray:
    """Predict deltas [m, G] from the visible profiles of a question; NaN for genes that no panel predicts."""
    found = np.full(question.visible.shape, np.nan)
    for panel in question.panels:
        rows = zip(question.visible, question.units, strict=True)
        sequences = [arm.examples.shown_profile(profile, u, panel) for profile, u in rows]
        predicted = _predict(arm.model, sequences, arm.examples, compute)
        found[:, panel.scored] = predicted.reshape(len(sequences), -1)
    return fold.view.mean + arm.examples.scale * found


def _draw(examples: FoldExamples, generator: np.random.Generator) -> list[Example]:
    """Draw examples up to the tokens of a batch, at least one."""
    drawn, tokens = [], 0
    while tokens < examples.config.batch_tokens:
        drawn.append(examples.draw(generator))
        tokens += len(drawn[-1])
    return drawn


def _predict(model: Responder, sequences: list[Example], examples: FoldExamples, compute: Compute) -> np.ndarray:
    """Return the model's outputs for all queries in order, float64."""
    parts = []
    for batch in _batches(sequences, 4 * examples.config.batch_tokens):
        with torch.inference_mode(), compute.cast():
            parts.append(model(pack_examples(batch, examples.expected, compute.device)).double().cpu().numpy())
    return np.concatenate(parts)


def _batches(sequences: list[Example], tokens: int) -> Iterable[list[Example]]:
    batch, size = [], 0
    for example in sequences:
        if batch and size + len(example) > tokens:
            yield batch
            batch, size = [], 0
        batch.append(example)
        size += len(example)
    yield batch


def _split_units(examples: FoldExamples, generator: np.random.Generator) -> tuple[list[int], list[int]]:
    """Split the training units into (train, validation).

    Whole perturbations go to one side; with a single perturbation, whole covariate groups do.
    """
    units = examples.screen.units
    groups = {u: units[u].parts for u in examples.trainable}
    if len(set(groups.values())) == 1:
        groups = {u: (units[u].covariates,) for u in examples.trainable}
    names = sorted(set(groups.values()))
    if len(names) < _ENOUGH:
        return list(groups), []
    order = generator.permutation(len(names))
    chosen = {names[i] for i in order[: round(examples.config.validation_share * len(names))]}
    return [u for u in groups if groups[u] not in chosen], [u for u in groups if groups[u] in chosen]


def _error(model: Responder, checks: list[Example], examples: FoldExamples, compute: Compute) -> float:
    truth = np.concatenate([example.truth for example in checks if example.truth is not None])
    return float(np.mean((_predict(model, checks, examples, compute) - truth) ** 2))


def _optimiser(model: Responder, lr: float, *, frozen: bool) -> torch.optim.AdamW:
    """Make AdamW with weight decay on matrices other than gene tables; a frozen arm learns its new parameters only."""
    new, tables = model.new_parameters(), {"gene.weight", "loadings"}
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in new or not frozen)
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 and name not in tables else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
