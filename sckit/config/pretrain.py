"""The options of `pretrain` and the shapes of the network."""

from dataclasses import asdict, dataclass
from typing import Annotated

from sckit.config.options import LARGEST_SEED, above, at_least, between, check, mark, one_of, share
from sckit.errors import ConfigError

PRESETS = {
    "tiny": {"width": 64, "layers": 2, "heads": 2},
    "small": {"width": 128, "layers": 4, "heads": 4},
    "medium": {"width": 256, "layers": 6, "heads": 8},
    "base": {"width": 384, "layers": 8, "heads": 12},
    "large": {"width": 512, "layers": 12, "heads": 8},
}
"""Width, layers and heads by name; "large" has the size of the published 51-million-parameter models."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the lean model."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    knots: int = 32
    """Knots of the piecewise-linear value embedding, evenly spaced in log1p of counts per 10,000."""

    start: Annotated[str, one_of("ridge", "offset")] = "ridge"
    """Linear baseline that the model starts from."""
    loss: Annotated[str, one_of("squared", "count")] = "squared"
    """What the model is trained to lower."""
    hidden_sum: bool = False
    """Whether the network sees the sum of the hidden counts, where the total is known."""
    correction: bool = False
    """Whether a small network corrects the linear baseline entry by entry before attention adds to it."""
    neighbours: bool = False
    """Whether attention also sees the values of other cells."""

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

    mask: Annotated[float | str, share("(0, 1]", "uniform"), mark(panel="Masking")] = 0.15
    """Share of the detected values to hide, above 0 and at most 1, or "uniform": a share drawn for each cell, with all
    values hidden in three cells of ten."""
    context: Annotated[str, one_of("detected", "visible")] = "detected"
    """What a hidden token shows to the other tokens: its gene ("detected") or nothing ("visible")."""
    visible_share: Annotated[float, share("[0, 1)"), mark(file_only=True)] = 0.1
    """Share of a "detected" run's batches that are trained in the context "visible", so that both can be evaluated."""
    known_depth: bool = False
    """Give the model the exact total counts of every cell, at every mask rate."""
    shuffle_values: bool = False
    """Control: exchange the counts among the detected genes of each cell, so that only detection and depth are left."""
    min_cells: Annotated[int, at_least(1), mark(panel="Data and split")] = 1
    """Keep the genes that are detected in at least this many training cells."""
    max_genes: Annotated[int, at_least(1)] = 4096
    """Cut a cell with more detected genes than this to a random subset of them."""
    group: str | None = None
    """Column of obs whose values never appear on both sides of the split."""
    hold_out: Annotated[tuple[str, ...], mark(labels=True)] = ()
    """Value of the group column to hold out; may be repeated. By default a random fifth of the groups, or of the cells.
    """
    folds: Annotated[int | None, at_least(2)] = None
    """Leave this many parts of the cells (with --group: of its groups) out in turn; the runs are NAME/fold-I-seed-J."""
    seeds: Annotated[int, at_least(1)] = 1
    """With --folds: train this many networks on each part; they differ in nothing but their seed."""
    fold: Annotated[int | None, at_least(0), mark(file_only=True)] = None
    """The part that this run leaves out, of those that `folds` makes."""
    replica: Annotated[int, at_least(0), mark(file_only=True)] = 0
    """Number of this network among those that `seeds` trains on one part."""
    preset: Annotated[str, one_of(*PRESETS), mark(panel="Model")] = "tiny"
    """Size of the network: tiny, small, medium, base or large."""
    warm_start: bool = True
    """Start from the linear baselines; otherwise only the mean of each gene is given."""
    start: Annotated[str, one_of("offset", "ridge"), mark(file_only=True)] = "offset"
    """Baseline to start from: the value offset ridge, or the value ridge as runs of before."""
    loss: Annotated[str, one_of("squared", "count")] = "squared"
    """Train on the squared error of the values, or on the likelihood of the counts (negative binomial, without zeros).
    """
    hidden_sum: Annotated[bool, mark(file_only=True)] = True
    """Give the network the sum of a cell's hidden counts, which its total and its visible values give away."""
    correction_steps: Annotated[int, at_least(0), mark(file_only=True)] = 4000
    """Train the correction of the linear baseline for at most this many steps, before the network; 0 for none."""
    neighbours: Annotated[int, at_least(0)] = 0
    """Let attention also see the values of this many other cells, those whose detected genes are most alike."""
    components: Annotated[int, at_least(0)] = 11
    """Components of the detection matrix in the ridges; the offset baselines choose their own."""
    factors: Annotated[int, at_least(0)] = 8
    """Factors of the visible values in the value ridge; the offset baselines choose their own."""
    epochs: Annotated[float | None, above(0), mark(panel="Budget")] = None
    """Train for this many passes over the training cells; 5 when no budget is given."""
    steps: Annotated[int | None, above(0)] = None
    """Train for this many steps."""
    minutes: Annotated[float | None, above(0)] = None
    """Train for this many minutes; the learning rate follows the clock."""
    patience: Annotated[int, at_least(1)] = 5
    """Stop after this many validations in a row without an improvement, counted in the second half of the budget."""
    validate_cells: Annotated[int, at_least(1), mark(file_only=True)] = 256
    """Set aside at most this many training cells for the validation line of each epoch and for early stopping."""
    batch_tokens: Annotated[int, at_least(1), mark(panel="Training")] = 2048
    """Tokens per batch; small ones take more steps, which is what counts on small data, and large ones fill a GPU."""
    accumulate: Annotated[int, at_least(1)] = 1
    """Batches whose gradients are added up before each step."""
    lr: Annotated[float, above(0)] = 1e-3
    """Peak learning rate."""
    gene_lr: Annotated[float, at_least(0), mark(file_only=True)] = 0.0
    """Learning rate of the vectors of single genes, as a share of lr; they learn libraries by heart where they may."""
    linear_lr: Annotated[float, at_least(0), mark(file_only=True)] = 0.02
    """Learning rate of the coefficients of the linear baseline inside the model, as a share of lr."""
    weight_decay: Annotated[float, at_least(0), mark(file_only=True)] = 0.01
    """Weight decay of the network."""
    warmup: Annotated[float, share("[0, 1)"), mark(file_only=True)] = 0.1
    """Share of the budget in which the learning rate rises to lr, before it falls on a cosine."""
    clip: Annotated[float, above(0), mark(file_only=True)] = 1.0
    """Largest norm of the gradient; longer gradients are scaled down to it."""
    checkpoint_steps: Annotated[int, at_least(1)] = 200
    """Steps between checkpoints."""
    seed: Annotated[int, between(0, LARGEST_SEED), mark(panel="Running")] = 0
    """Seed of everything that is random."""
    shard: bool = False
    """Split the network, its gradients and what the optimiser remembers over the processes of torchrun (FSDP2)."""
    engine: Annotated[str, one_of("auto", "reference", "numba", "triton")] = "auto"
    """Attention engine: auto, reference, numba or triton."""
    device: str = "auto"
    """Device to compute on: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        check(self)
        budgets = [f"--{name}" for name in ("epochs", "steps", "minutes") if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ConfigError(f"{' and '.join(budgets)} are all budgets; give one of them.")
        if self.hold_out and not self.group:
            raise ConfigError(f"--hold-out {','.join(self.hold_out)} names values of a column; say which with --group.")

        if self.loss == "count" and not self.warm_start:
            raise ConfigError(f"--loss {self.loss} starts from the linear baselines; leave out --no-warm-start.")
        if self.folds and self.hold_out:
            raise ConfigError(
                f"--folds {self.folds} leaves every part out in turn, and --hold-out names one; give one."
            )
        if self.neighbours and self.context == "visible":
            raise ConfigError(
                f"--neighbours {self.neighbours} looks for cells with like detected genes, which --context visible "
                "hides; leave out one of them."
            )
        if self.shard and self.start == "ridge":
            raise ConfigError(
                f"--shard leaves the linear baseline whole; start = {self.start} trains it; leave out one."
            )
        if self.seeds > 1 and not self.folds:
            raise ConfigError(f"--seeds {self.seeds} trains several networks on each part; say how many with --folds.")

    @property
    def training_seed(self) -> int:
        """Seed of the network's start, its batches and what is hidden in them; `seed` alone decides about the split."""
        return self.seed + 100_003 * self.replica

    @property
    def model(self) -> ModelConfig:
        """The shape that the preset names."""
        start = self.start if self.warm_start else "ridge"
        corrected = self.correction_steps > 0 and start == "offset" and self.context == "detected" and self.hidden_sum
        more = {"hidden_sum": self.hidden_sum, "correction": corrected, "neighbours": self.neighbours > 0}
        return ModelConfig(**PRESETS[self.preset], start=start, loss=self.loss, **more)


def check_mask(mask: float | str) -> None:
    """Raise ConfigError unless the mask is a share in (0, 1] or "uniform"."""
    PretrainConfig(mask=mask)
