"""The options of `finetune`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sckit.config.options import above, at_least, check, mark, one_of, share, was
from sckit.errors import ConfigError

_SPLITS = ("auto", "perturbation", "covariate", "combination")
ARMS = ("pretrained", "scratch", "frozen", "shuffled", "start")
"""Starting points of fine-tuning; "start" is the run's own linear start, before any masked training."""


@dataclass(frozen=True)
class FinetuneConfig:
    """One comparison of arms and baselines on perturbation data."""

    condition: Annotated[str, mark(panel="Data")] = ""
    """Column of obs that names the perturbation of each cell; it has to be given."""
    control: Annotated[tuple[str, ...], mark(labels=True, documented_alone=True)] = ()
    """Label of the untreated cells in that column; it has to be given, and may be repeated."""
    exclude: Annotated[tuple[str, ...], mark(labels=True)] = ()
    """Label of that column to leave out, such as unassigned; may be repeated."""
    separator: str = "+"
    """What stands between the perturbations that a label combines, as in A+B."""
    covariates: Annotated[tuple[str, ...], was(context="--context-column")] = ()
    """Columns of obs, such as cell_type,donor, within whose values treated cells are compared with controls."""
    replicate: str | None = None
    """Column of obs that names the replicate of each cell; the agreement between replicates is then printed too."""
    dose: str | None = None
    """Column of obs with the dose of each cell."""
    target_map: str | None = None
    """Gene that each condition perturbs: "same" when it is the condition's name, or a file of condition and gene."""
    genes: Annotated[int, at_least(1)] = 1000
    """Number of genes to predict: those with the highest variance over the cells compared, whatever their labels."""
    min_cells: Annotated[int, at_least(4)] = 10
    """Leave out a perturbation in a covariate group with fewer treated cells, or fewer control cells, than this."""
    task: Annotated[str, one_of("response", "partial"), mark(panel="Task and split")] = "response"
    """What is predicted, and from what: the response to a perturbation from its name and control cells (response), or
    the other genes from some of its own post-treatment values (partial)."""
    level: ClassVar[Annotated[str, mark(gone=True)]] = "pseudobulk"
    """Predictions are of mean profiles; result documents still name this."""
    split: Annotated[str, one_of(*_SPLITS), mark(former_values={"context": "covariate"})] = "auto"
    """What the test has not seen: "perturbation", "covariate" (a covariate group) or "combination" (of perturbations,
    or of a perturbation and a covariate group); "auto": perturbations if there are at least five, else covariates."""
    unseen: str | None = None
    """The covariate whose values the covariate split holds out; by default all covariates combined."""
    folds: Annotated[int, at_least(2)] = 5
    """Folds of the perturbations (or covariate groups). Each seed tests one fold, so five seeds test all five. A fold
    holds out two perturbations at least, because the score is about what tells the units of a fold apart."""
    train_shares: Annotated[tuple[float, ...], share("(0, 1]")] = (0.1, 0.3, 1.0)
    """Points of the learning curve: shares of the training perturbations, or of the cells of a single perturbation."""
    revealed: Annotated[tuple[float, ...], share("[0, 0.9]")] = (0.0, 0.1, 0.25, 0.5, 0.9)
    """Shares of the genes that the partial task reveals."""
    panel: str | None = None
    """File with one gene per line, revealed in the partial task instead of random shares."""
    arms: Annotated[tuple[str, ...], one_of(*ARMS), mark(panel="Arms and intervals")] = ARMS[:4]
    """Starting points to compare: pretrained, scratch, frozen, shuffled and start (the linear start of the run)."""
    seeds: Annotated[int, at_least(1)] = 5
    """Number of repeats, each with another fold and other halves of the cells."""
    margin: Annotated[float, above(0)] = 0.05
    """Differences of the headline metric up to this size count as no difference; to be set before the run."""
    bootstraps: Annotated[int, at_least(1)] = 2000
    """Bootstrap draws for each interval."""
    permute: bool = False
    """Control: exchange the perturbation labels between treated cells, so that nothing is left to learn."""
    allow_seen: bool = False
    """Go on although the run was pretrained on treated cells of these data; the result then says so."""
    steps: Annotated[int, at_least(1), mark(panel="Training")] = 120
    """Training steps of every arm."""
    batch_tokens: Annotated[int, at_least(1)] = 4096
    """Tokens per batch."""
    lr: Annotated[float, above(0)] = 1e-2
    """Peak learning rate."""
    validation_share: Annotated[float, share("[0, 0.5]"), was(spare="--spare")] = 0.2
    """Share of the training perturbations (or covariate groups) that are set aside to choose the step to stop at, if
    there are at least five; with 0 the last step is taken."""
    control_cells: Annotated[int, at_least(1), was(context_cells="--context-cells")] = 16
    """Number of control cells that a prediction of the response task is averaged over."""
    workers: Annotated[int, at_least(0), mark(panel="Running")] = 0
    """Processes that train at the same time; 0 means one per core on a CPU and one on a GPU."""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of everything that is random."""
    engine: Annotated[str, one_of("auto", "reference", "numba", "triton")] = "auto"
    """Attention engine: auto, reference, numba or triton."""
    device: str = "auto"
    """Device to compute on: auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name in ("control", "exclude"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        if not self.separator.strip() or self.separator.isalnum():
            raise ConfigError(f"--separator {self.separator!r} must be a sign such as + or _.")
        for name in ("condition", "control"):
            if not getattr(self, name) or getattr(self, name) == ("",):
                raise ConfigError(f"--{name} is missing: --condition names a column of obs, --control a label in it.")
        check(self)
        if self.unseen is not None and self.unseen not in self.covariates:
            known = ", ".join(self.covariates) or "none"
            raise ConfigError(f"--unseen {self.unseen} must be one of the columns that --covariates names ({known}).")
