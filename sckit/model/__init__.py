"""What the packages after `model` need to build a model of their own on the same trunk."""

from sckit.model.regression import principal_axes
from sckit.model.tokens import Perturbed, Tokens
from sckit.model.transformer import Model
from sckit.model.trunk import Trunk, factor_means

__all__ = ["Model", "Perturbed", "Tokens", "Trunk", "factor_means", "principal_axes"]
