"""How the arms of a perturbation task are trained and compared."""

from dataclasses import dataclass

from sckit.errors import ConfigError

ARMS = ("pretrained", "scratch", "frozen", "shuffled", "start")
"""Starting points of fine-tuning; "start" is the run's own closed-form start, before any masked training."""


@dataclass(frozen=True)
class FinetuneConfig:
    """One comparison of arms and baselines on perturbation data."""

    condition: str = ""
    """Column of obs that names each cell's perturbation; has to be given."""
    control: str = ""
    """Has to be given: label of the untreated cells in that column."""
    task: str = "response"
    """"response": from control cells and the perturbation's name; "partial": from some of its post-treatment values."""
    level: str = "pseudobulk"
    """Of the partial task: "pseudobulk" (visible and target values from different cells) or "cell" (count halves)."""
    exclude: tuple[str, ...] = ()
    """Labels of the condition column to leave out, like unassigned."""
    replicate: str | None = None
    context: tuple[str, ...] = ()
    """Columns of obs that make the context (cell type, donor), combined."""
    dose: str | None = None
    target_map: str | None = None
    """"same" (a condition is named after the gene it perturbs), or a file of condition and gene, two columns."""
    split: str = "auto"
    """What the test has not seen: "perturbation", "context" or "combination"; "auto": the first possible one."""
    unseen: str | None = None
    """Of the context columns, the one whose values the context split holds out; by default the whole context."""
    folds: int = 5
    """Seed s tests fold s of the perturbations (or contexts), so that five seeds test each once."""
    genes: int = 1000
    """Genes predicted: so many of the highest variance over all cells compared, labels unseen; all if fewer."""
    min_cells: int = 10
    """Fewest treated cells, and control cells, of a unit (perturbation in a context)."""
    arms: tuple[str, ...] = ("pretrained", "scratch", "frozen", "shuffled")
    seeds: int = 5
    train_shares: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Shares of the training perturbations (with one perturbation: of its cells) of the learning curve."""
    revealed: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.9)
    """Shares of the genes revealed in the partial task."""
    panel: str | None = None
    """File with one gene a line, revealed instead of random shares."""
    steps: int = 120
    """Training steps of every arm."""
    batch_tokens: int = 4096
    lr: float = 1e-2
    spare: float = 0.2
    """Share of the training perturbations (or contexts) that picks the moment to stop, if five; 0: the last step."""
    context_cells: int = 16
    """Cells of a unit that predictions are averaged over (response), or that are scored (partial, level cell)."""
    margin: float = 0.05
    """Of the headline metric: differences within it, both ways, count as none. Stated before the run."""
    bootstraps: int = 2000
    permute: bool = False
    """Control: exchange the perturbation labels between treated cells, so that nothing is left to learn."""
    allow_seen: bool = False
    """Go on although the run was pretrained on treated cells of these data; the result then says so."""
    workers: int = 0
    """Processes that train at the same time; 0 for one a core on CPU, one on a GPU."""
    seed: int = 0
    engine: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("condition", "control"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is missing: --condition names a column of obs, --control a label in it.")
        choices = {
            "task": ("response", "partial"),
            "level": ("pseudobulk", "cell"),
            "split": ("auto", "perturbation", "context", "combination"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"--{name} {getattr(self, name)} is unknown; choose one of {', '.join(known)}.")
        unknown = [arm for arm in self.arms if arm not in ARMS]
        if unknown or not self.arms:
            raise ConfigError(f"--arms {','.join(self.arms)} must name some of {', '.join(ARMS)}.")
        if self.level == "cell" and self.task == "response":
            raise ConfigError(f"--level {self.level} belongs to --task partial, not to --task {self.task}.")
        if self.unseen is not None and self.unseen not in self.context:
            raise ConfigError(f"--unseen {self.unseen} must be one of the context columns {', '.join(self.context)}.")
        for name in ("genes", "seeds", "steps", "batch_tokens", "context_cells", "bootstraps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        for name in ("lr", "margin"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name} must be above 0, not {getattr(self, name)}.")
        for name, least in {"min_cells": 4, "folds": 2, "seed": 0, "workers": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}.")
        if not 0 <= self.spare <= 0.5:
            raise ConfigError(f"--spare {self.spare} is a share from 0 to 0.5.")
        if not self.train_shares or not all(0 < share <= 1 for share in self.train_shares):
            raise ConfigError(f"--train-shares {self.train_shares} are shares above 0 and up to 1.")
        if not self.revealed or not all(0 <= share <= 0.9 for share in self.revealed):
            raise ConfigError(f"--revealed {self.revealed} are shares from 0 to 0.9.")
