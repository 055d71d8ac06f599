"""Fine-tuning of one arm on one material, and its predictions. Every arm gets the same examples in the same order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sckit.device import Compute
from sckit.perturbation.examples import FoldExamples, Panel
from sckit.perturbation.responder import Example, Responder, pack_examples
from sckit.training.optimiser import schedule, take_step

_WARMUP = 0.1
_CLIP = 1.0
_WEIGHT_DECAY = 0.01
_CHECKS = 5  # looks at the validation units over the budget
_VALIDATION_EXAMPLES = 12  # a validation unit
_ENOUGH = 5  # training groups, for some of them to be spared for validation


@dataclass(frozen=True)
class FittedArm:
    """A trained arm and how it went."""

    model: Responder
    material: FoldExamples  # of the units that it learned from, in whose units it speaks
    best_step: int  # whose weights these are
    validation: list[float]  # mean squared error on the validation units at each check, 1 is the mean baseline's size


def fit(
    model: Responder, material: FoldExamples, compute: Compute, *, frozen: bool, seed: tuple[int, ...]
) -> FittedArm:
    """Train for `config.steps` steps; of five training groups some are spared and pick the best of six moments.

    The first of the moments is before any step, where the model is its starting point: the mean baseline. seed: of the
    examples, the same for all arms. Raises DataError when the gradient is no number.
    """
    config = material.config
    model.to(compute.device)
    optimiser = _optimiser(model, config.lr, frozen=frozen)
    learners, spared = _spare(material, np.random.default_rng((*seed, 1)))
    generator, chooser = (np.random.default_rng((*seed, i)) for i in (2, 3))
    own = material.only(learners) if spared else material
    checks = [own.example(u, material.trainable[u], chooser) for u in spared for _ in range(_VALIDATION_EXAMPLES)]
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
        losses = [_loss(model, own, generator, compute)]
        take_step(model, optimiser, losses, step=step, lr=config.lr, scheduled=scheduled, clip=_CLIP)
    if kept is None:
        return FittedArm(model, own, config.steps, errors)
    model.load_state_dict(kept)
    return FittedArm(model, own, best_step, errors)


def predict_response(
    fitted: FittedArm, material: FoldExamples, units: Sequence[int], compute: Compute, seed: tuple
) -> np.ndarray:
    """Predicted deltas [len(units), G]: the mean over `config.context_cells` input controls of each unit's strata."""
    generator = np.random.default_rng((*seed, 4))
    queries = np.arange(material.table.n_genes)
    count = material.config.context_cells
    found = []
    for u in units:
        cells = material.control_cells(u, count, generator)
        flat = _predict(fitted.model, [material.control_cell(c, u, queries) for c in cells], fitted.material, compute)
        found.append(flat.reshape(count, -1).mean(0))
    return material.mean + fitted.material.scale * np.array(found)


def predict_profiles(
    fitted: FittedArm,
    material: FoldExamples,
    visible: np.ndarray,
    units: Iterable[int],
    panels: Sequence[Panel],
    compute: Compute,
) -> np.ndarray:
    """Predicted deltas [N, G] from visible profiles [N, G] of the units [N]; NaN for genes that no panel predicts."""
    found = np.full(visible.shape, np.nan)
    for panel in panels:
        examples = [fitted.material.shown_profile(row, u, panel) for row, u in zip(visible, units, strict=True)]
        found[:, panel.scored] = _predict(fitted.model, examples, fitted.material, compute).reshape(len(visible), -1)
    return material.mean + fitted.material.scale * found


def _loss(model: Responder, material: FoldExamples, generator: np.random.Generator, compute: Compute) -> torch.Tensor:
    with compute.cast():
        return model.loss(pack_examples(_draw(material, generator), material.expected, compute.device))


def _draw(material: FoldExamples, generator: np.random.Generator) -> list[Example]:
    """Examples up to the batch's tokens, one at least."""
    examples, tokens = [], 0
    while tokens < material.config.batch_tokens:
        examples.append(material.draw(generator))
        tokens += len(examples[-1])
    return examples


def _predict(model: Responder, examples: list[Example], material: FoldExamples, compute: Compute) -> np.ndarray:
    """Model outputs of all queries in order, float64."""
    parts = []
    for batch in _filled(examples, 4 * material.config.batch_tokens):
        with torch.inference_mode(), compute.cast():
            parts.append(model(pack_examples(batch, material.expected, compute.device)).double().cpu().numpy())
    return np.concatenate(parts)


def _filled(examples: list[Example], tokens: int) -> Iterable[list[Example]]:
    batch, size = [], 0
    for example in examples:
        if batch and size + len(example) > tokens:
            yield batch
            batch, size = [], 0
        batch.append(example)
        size += len(example)
    yield batch


def _spare(material: FoldExamples, generator: np.random.Generator) -> tuple[list[int], list[int]]:
    """Training units to learn from, and those spared for validation: a share of the perturbations, or contexts."""
    units = material.screen.units
    groups = {u: units[u].parts for u in material.trainable}
    if len(set(groups.values())) == 1:
        groups = {u: (units[u].covariates,) for u in material.trainable}
    names = sorted(set(groups.values()))
    if len(names) < _ENOUGH:
        return list(material.trainable), []
    spared = {names[i] for i in generator.permutation(len(names))[: round(material.config.spare * len(names))]}
    return [u for u in groups if groups[u] not in spared], [u for u in groups if groups[u] in spared]


def _error(model: Responder, examples: list[Example], material: FoldExamples, compute: Compute) -> float:
    truth = np.concatenate([example.truth for example in examples if example.truth is not None])
    return float(np.mean((_predict(model, examples, material, compute) - truth) ** 2))


def _optimiser(model: Responder, lr: float, *, frozen: bool) -> torch.optim.AdamW:
    """AdamW, decay on matrices that are no gene tables; of a frozen arm only what is new learns."""
    new, tables = model.new_parameters(), {"gene.weight", "loadings"}
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in new or not frozen)
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 and name not in tables else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
