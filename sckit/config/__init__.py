"""One frozen dataclass per stage, checked once; TOML in, resolved TOML out."""

import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from sckit.errors import ConfigError

PRESETS = {
    "tiny": {"width": 64, "layers": 2, "heads": 2},
    "small": {"width": 128, "layers": 4, "heads": 4},
    "medium": {"width": 256, "layers": 6, "heads": 8},
    "base": {"width": 384, "layers": 8, "heads": 12},
    "large": {"width": 512, "layers": 12, "heads": 8},
}
"""Width, layers and heads by name; "large" has the size of the published 51-million-parameter models."""

C = TypeVar("C")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the lean model."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    knots: int = 32
    """Knots of the piecewise-linear value embedding, evenly spaced in log1p of counts per 10,000."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 0 or self.heads < 1 or self.knots < 2:
            raise ConfigError(f"the model needs width, heads >= 1, layers >= 0 and knots >= 2, not {asdict(self)}.")
        if self.width % self.heads or self.width // self.heads % 8:
            raise ConfigError(
                f"width {self.width} over {self.heads} heads must give a head width that is a multiple of 8."
            )


@dataclass(frozen=True)
class PretrainConfig:
    """One masked pretraining run."""

    mask: float | str = 0.15
    """Share of the detected values hidden, in (0, 1], or "uniform": drawn per cell, 1 for three cells in ten."""
    context: str = "detected"
    """What a hidden token shows to the others: "detected" its gene, "visible" nothing."""
    visible_share: float = 0.1
    """With context "detected": share of the batches trained in the "visible" context, so that both can be evaluated."""
    known_depth: bool = False
    """Give the exact total counts of every cell at every rate."""
    shuffle_values: bool = False
    """Control: exchange the counts among the detected genes of each cell, so that only detection and depth are left."""
    preset: str = "tiny"
    warm_start: bool = True
    """Start from the closed forms; otherwise only the gene means are given."""
    components: int = 11
    """Principal components of the binary detection matrix."""
    factors: int = 8
    """Factors of the visible values in the closed forms."""
    min_cells: int = 1
    """Keep genes detected in at least so many training cells."""
    max_genes: int = 4096
    """A cell with more detected genes is cut to a random so many."""
    group: str | None = None
    """Column of obs whose values never sit on both sides of the split."""
    hold_out: tuple[str, ...] = ()
    """Values of the group column held out; without them a fifth of the groups, or of the cells."""
    batch_tokens: int = 8192
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    lr: float = 5e-4
    gene_lr: float = 0.1
    """Learning rate of the gene embedding and the heads, as a share of lr."""
    linear_lr: float = 0.02
    """Learning rate of the closed-form coefficients, as a share of lr."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of the budget in which the learning rate rises to lr; then it falls on a cosine."""
    clip: float = 1.0
    epochs: float | None = None
    steps: int | None = None
    minutes: float | None = None
    """Wall clock of the training loop; the schedule fits itself to it."""
    validate_cells: int = 256
    """At most so many training cells are set aside for the line per epoch and early stopping."""
    patience: int = 5
    """Stop after so many validations without a better one."""
    checkpoint_steps: int = 200
    seed: int = 0
    engine: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        check_mask(self.mask)
        check_budget(self.epochs, self.steps, self.minutes)
        if self.context not in ("detected", "visible"):
            raise ConfigError(f"--context {self.context} cannot be trained; choose detected or visible.")
        if self.preset not in PRESETS:
            raise ConfigError(f"--preset {self.preset} is unknown; choose one of {', '.join(PRESETS)}.")
        if self.hold_out and not self.group:
            raise ConfigError(f"--hold-out {','.join(self.hold_out)} names values of a column; say which with --group.")
        for name in ("min_cells", "max_genes", "batch_tokens", "accumulate", "patience", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        for name in ("validate_cells", "lr", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}.")
        for name in ("seed", "components", "factors", "gene_lr", "linear_lr", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}.")
        for name in ("warmup", "visible_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is a share in [0, 1), not {getattr(self, name)}.")

    @property
    def model(self) -> ModelConfig:
        """The shape that the preset names."""
        return ModelConfig(**PRESETS[self.preset])


@dataclass(frozen=True)
class EvalConfig:
    """One evaluation of a run on its held-out cells."""

    masks: tuple[float, ...] = (1.0,)
    contexts: tuple[str, ...] = ("detected",)
    label: str | None = None
    """Column of obs for the row "label + depth"."""
    replicate_split: bool = False
    """Split each held-out cell's counts into halves and add the rows on the half-depth target."""
    split: str = "binomial"
    """How counts are split: "binomial", or "nb" for overdispersed genes."""
    known_depth: bool = False
    group: str | None = None
    """Bootstrap over the values of this column of obs; by default the run's own group column."""
    max_cells: int | None = None
    """Score a seeded random so many of the held-out cells."""
    bootstraps: int = 1000
    batch_tokens: int = 32768
    seed: int = 0
    """Seed of the scored set, the split into halves and the bootstrap."""
    engine: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for mask in self.masks:
            check_mask(mask)
        for context in self.contexts:
            if context not in ("detected", "visible", "shuffled"):
                raise ConfigError(f"--context {context} is unknown; choose detected, visible or shuffled.")
        if self.split not in ("binomial", "nb"):
            raise ConfigError(f"--split {self.split} is unknown; choose binomial or nb.")
        if self.seed < 0 or self.bootstraps < 1:
            raise ConfigError(f"--seed {self.seed} must not be negative and --bootstraps {self.bootstraps} at least 1.")
        if self.split != "binomial" and not self.replicate_split:
            raise ConfigError(f"--split {self.split} says how --replicate-split works; give that too.")
        if self.max_cells is not None and self.max_cells < 2:
            raise ConfigError(f"--cells must be at least 2, not {self.max_cells}.")


def check_mask(mask: float | str) -> None:
    """Raise ConfigError unless the mask is a share in (0, 1] or "uniform"."""
    if mask != "uniform" and not (isinstance(mask, int | float) and 0 < mask <= 1):
        raise ConfigError(f"--mask {mask} is not a share above 0 and up to 1, nor 'uniform'.")


def check_budget(epochs: float | None, steps: int | None, minutes: float | None) -> None:
    """Raise ConfigError when more than one budget is given, or one that is not positive."""
    given = {k: v for k, v in {"--epochs": epochs, "--steps": steps, "--minutes": minutes}.items() if v is not None}
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are all budgets; give one of them.")
    for name, value in given.items():
        if not value > 0:
            raise ConfigError(f"{name} must be positive, not {value}.")


def read_toml(config: type[C], path: Path, **overrides: Any) -> C:
    """A config of the type from a TOML file, with what the command line gave on top."""
    try:
        loaded = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the config file {path} cannot be read: {error}.") from error
    return from_dict(config, {**loaded, **overrides}, str(path))


def from_dict(config: type[C], values: dict[str, Any], origin: str) -> C:
    """A config of the type from plain values; lists become tuples; an unknown name is a ConfigError."""
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{origin} sets {', '.join(unknown)}, which {config.__name__} does not have.")
    try:
        return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise ConfigError(f"{origin} gives an option a value of the wrong type: {error}.") from error


def to_toml(config: Any) -> str:
    """The resolved config as TOML; options that are None are left out."""
    lines = []
    for name, value in asdict(config).items():
        if value is not None:
            lines.append(f"{name} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)


__all__ = [
    "PRESETS", "EvalConfig", "ModelConfig", "PretrainConfig", "check_budget", "check_mask", "from_dict", "read_toml",
    "replace", "to_toml",
]  # fmt: skip
