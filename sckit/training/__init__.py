"""The run folder and the training step, for the packages after `training`; `pretrain` is in a file of its name."""

from sckit.training.baselines import untrained_model
from sckit.training.folders import find_run
from sckit.training.optimiser import schedule, take_step
from sckit.training.run import Run, open_run

__all__ = ["Run", "find_run", "open_run", "schedule", "take_step", "untrained_model"]
