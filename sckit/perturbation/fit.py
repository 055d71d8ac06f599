"""Fine-tuning of one arm on one lesson, and its predictions. Every arm gets the same examples in the same order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sckit.device import Compute
from sckit.errors import DataError
from sckit.perturbation.batch import Example, pack
from sckit.perturbation.examples import Lesson, Panel
from sckit.perturbation.responder import Responder
from sckit.training.optimiser import schedule

_WARMUP = 0.1
_CLIP = 1.0
_WEIGHT_DECAY = 0.01
_CHECKS = 5  # looks at the validation units over the budget
_VALIDATION_EXAMPLES = 12  # a validation unit
_ENOUGH = 5  # training groups, for some of them to be spared for validation


@dataclass(frozen=True)
class Fitted:
    """A trained arm and how it went."""

    model: Responder
    lesson: Lesson  # of the units that it learned from, in whose units it speaks
    best_step: int  # whose weights these are
    validation: list[float]  # mean squared error on the validation units at each check, 1 is the mean baseline's size


def fit(model: Responder, lesson: Lesson, compute: Compute, *, frozen: bool, seed: tuple[int, ...]) -> Fitted:
    """Train for `config.steps` steps; of five training groups some are spared and pick the best of six moments.

    The first of the moments is before any step, where the model is its starting point: the mean baseline. seed: of the
    examples, the same for all arms. Raises DataError when the gradient is no number.
    """
    config = lesson.config
    model.to(compute.device)
    optimiser = _optimiser(model, config.lr, frozen=frozen)
    learners, spared = _spare(lesson, np.random.default_rng((*seed, 1)))
    generator, chooser = (np.random.default_rng((*seed, i)) for i in (2, 3))
    own = lesson.only(learners) if spared else lesson
    checks = [own.example(u, lesson.trainable[u], chooser) for u in spared for _ in range(_VALIDATION_EXAMPLES)]
    best_step, best, kept, errors = 0, np.inf, None, []
    for step in range(config.steps + 1):
        if checks and step % max(1, config.steps // _CHECKS) == 0:
            errors.append(_error(model, checks, own, compute))
            if errors[-1] < best:
                best_step, best = step, errors[-1]
                kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if step == config.steps:
            break
        for group in optimiser.param_groups:
            group["lr"] = config.lr * schedule(step / config.steps, _WARMUP)
        with compute.cast():
            loss = model.loss(pack(_draw(own, generator), own.guess, compute.device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        if not torch.isfinite(norm):
            raise DataError(f"the gradient is {float(norm)} at step {step}; lower --lr ({config.lr}) and try again.")
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    if kept is None:
        return Fitted(model, own, config.steps, errors)
    model.load_state_dict(kept)
    return Fitted(model, own, best_step, errors)


def predict_response(fitted: Fitted, lesson: Lesson, units: Sequence[int], compute: Compute, seed: tuple) -> np.ndarray:
    """Predicted deltas [len(units), G]: the mean over `config.control_cells` input controls of each unit's strata."""
    generator = np.random.default_rng((*seed, 4))
    queries = np.arange(lesson.table.n_genes)
    count = lesson.config.control_cells
    found = []
    for u in units:
        cells = lesson.control_cells(u, count, generator)
        flat = _predict(fitted.model, [lesson.control_cell(c, u, queries) for c in cells], fitted.lesson, compute)
        found.append(flat.reshape(count, -1).mean(0))
    return lesson.mean + fitted.lesson.scale * np.array(found)


def predict_profiles(
    fitted: Fitted, lesson: Lesson, visible: np.ndarray, units: Iterable[int], panels: Sequence[Panel], compute: Compute
) -> np.ndarray:
    """Predicted deltas [N, G] from visible profiles [N, G] of the units [N]; NaN for genes that no panel predicts."""
    found = np.full(visible.shape, np.nan)
    for panel in panels:
        examples = [fitted.lesson.shown_profile(row, u, panel) for row, u in zip(visible, units, strict=True)]
        found[:, panel.scored] = _predict(fitted.model, examples, fitted.lesson, compute).reshape(len(visible), -1)
    return lesson.mean + fitted.lesson.scale * found


def predict_cells(
    fitted: Fitted, lesson: Lesson, cells: np.ndarray, _: Iterable[int], panels: Sequence[Panel], compute: Compute
) -> np.ndarray:
    """Predicted deltas [N, G] of single cells [N] from the visible halves of their counts; NaN where not predicted."""
    found = np.full((len(cells), lesson.table.n_genes), np.nan)
    for panel in panels:
        examples = [lesson.shown_cell(int(cell), panel) for cell in cells]
        found[:, panel.scored] = _predict(fitted.model, examples, fitted.lesson, compute).reshape(len(cells), -1)
    return lesson.mean + fitted.lesson.scale * found


def _draw(lesson: Lesson, generator: np.random.Generator) -> list[Example]:
    """Examples up to the batch's tokens, one at least."""
    examples, tokens = [], 0
    while tokens < lesson.config.batch_tokens:
        examples.append(lesson.draw(generator))
        tokens += _length(examples[-1])
    return examples


def _predict(model: Responder, examples: list[Example], lesson: Lesson, compute: Compute) -> np.ndarray:
    """Model outputs of all queries in order, float64."""
    parts = []
    for batch in _filled(examples, 4 * lesson.config.batch_tokens):
        with torch.inference_mode(), compute.cast():
            parts.append(model(pack(batch, lesson.guess, compute.device)).double().cpu().numpy())
    return np.concatenate(parts)


def _filled(examples: list[Example], tokens: int) -> Iterable[list[Example]]:
    batch, size = [], 0
    for example in examples:
        if batch and size + _length(example) > tokens:
            yield batch
            batch, size = [], 0
        batch.append(example)
        size += _length(example)
    yield batch


def _length(example: Example) -> int:
    return len(example.genes) + len(example.perturbations) + len(example.queries)


def _spare(lesson: Lesson, generator: np.random.Generator) -> tuple[list[int], list[int]]:
    """Training units to learn from, and those spared for validation: a share of the perturbations, or contexts."""
    units = lesson.screen.units
    groups = {u: units[u].parts for u in lesson.trainable}
    if len(set(groups.values())) == 1:
        groups = {u: (units[u].context,) for u in lesson.trainable}
    names = sorted(set(groups.values()))
    if len(names) < _ENOUGH:
        return list(lesson.trainable), []
    spared = {names[i] for i in generator.permutation(len(names))[: round(lesson.config.validation_share * len(names))]}
    return [u for u in groups if groups[u] not in spared], [u for u in groups if groups[u] in spared]


def _error(model: Responder, examples: list[Example], lesson: Lesson, compute: Compute) -> float:
    truth = np.concatenate([example.truth for example in examples if example.truth is not None])
    return float(np.mean((_predict(model, examples, lesson, compute) - truth) ** 2))


def _optimiser(model: Responder, lr: float, *, frozen: bool) -> torch.optim.AdamW:
    """AdamW, decay on matrices that are no gene tables; of a frozen arm only what is new learns."""
    new, tables = model.new_parameters(), {"table.weight", "loadings"}
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in new or not frozen)
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 and name not in tables else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
