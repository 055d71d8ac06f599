"""sckit: what masked pretraining on single-cell counts really gives, compared with cheap baselines and a replicate."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from sckit.config import EvalConfig, FinetuneConfig, PrepareConfig, PretrainConfig, ReadingConfig, SimulateConfig
    from sckit.data.prepare import prepare
    from sckit.data.simulate import simulate
    from sckit.data.store import open_store
    from sckit.evaluation.embed import embed
    from sckit.evaluation.embedded import write_embedding
    from sckit.evaluation.evaluate import evaluate
    from sckit.perturbation.finetune import finetune
    from sckit.training.folds import pretrain_folds
    from sckit.training.pretrain import load_model, pretrain

_API = {
    "prepare": "sckit.data.prepare",
    "simulate": "sckit.data.simulate",
    "open_store": "sckit.data.store",
    "pretrain": "sckit.training.pretrain",
    "pretrain_folds": "sckit.training.folds",
    "load_model": "sckit.training.pretrain",
    "evaluate": "sckit.evaluation.evaluate",
    "finetune": "sckit.perturbation.finetune",
    "embed": "sckit.evaluation.embed",
    "write_embedding": "sckit.evaluation.embedded",
} | dict.fromkeys(
    ("PrepareConfig", "PretrainConfig", "EvalConfig", "FinetuneConfig", "ReadingConfig", "SimulateConfig"),
    "sckit.config",
)

__all__ = [
    "EvalConfig", "FinetuneConfig", "PrepareConfig", "PretrainConfig", "ReadingConfig", "SimulateConfig",
    "__version__", "embed", "evaluate", "finetune", "load_model", "open_store", "prepare", "pretrain",
    "pretrain_folds", "simulate", "write_embedding",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the function on first use, so that `import sckit` and `sckit --help` stay fast."""
    if name == "__version__":
        return import_module("sckit.provenance").package_version("sckit")
    if name in _API:
        return getattr(import_module(_API[name]), name)
    message = f"module 'sckit' has no attribute {name!r}"
    raise AttributeError(message)
