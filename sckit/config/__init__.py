"""The options of every command, each written once: name, type, default, bounds and help text."""

from sckit.config.evaluate import EvalConfig
from sckit.config.finetune import ARMS, FinetuneConfig
from sckit.config.options import as_documented, from_dict, read_configs, read_toml, to_toml
from sckit.config.prepare import PrepareConfig
from sckit.config.pretrain import PRESETS, ModelConfig, PretrainConfig, check_mask
from sckit.config.reading import ReadingConfig
from sckit.config.simulate import SimulateConfig

__all__ = [
    "ARMS", "PRESETS", "EvalConfig", "FinetuneConfig", "ModelConfig", "PrepareConfig", "PretrainConfig",
    "ReadingConfig", "SimulateConfig", "as_documented", "check_mask", "from_dict", "read_configs", "read_toml",
    "to_toml",
]  # fmt: skip
