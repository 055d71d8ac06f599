"""The former place of FinetuneConfig, for scripts that import it from here."""

import sys

from sckit.config import FinetuneConfig

__all__ = ["FinetuneConfig"]

print("sckit.perturb_config is sckit.config now: from sckit.config import FinetuneConfig.", file=sys.stderr)
