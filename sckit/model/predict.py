"""Predictions of a model and of the linear baselines for batches of cells."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from sckit.data.batch import Batch, Packer
from sckit.data.loader import batches_by_tokens, detected_in
from sckit.device import Compute
from sckit.model.closed_forms import ClosedForms
from sckit.model.offset_forms import OffsetForms
from sckit.model.tokens import Tokens
from sckit.model.transformer import Model

_BATCH_TOKENS = 32768


def predictions(
    model: Model, packer: Packer, baselines: Sequence[ClosedForms | OffsetForms], cells: np.ndarray, compute: Compute
) -> Iterator[tuple[Batch, dict[str, np.ndarray]]]:
    """Yield batches of the cells with what the linear baselines and the model predict for their targets."""
    detected = replace(packer, context="detected")
    lengths = np.zeros(int(cells.max()) + 1, np.int64)
    lengths[cells] = detected_in(packer.view, packer.vocabulary, cells)
    for part in batches_by_tokens(cells, lengths, _BATCH_TOKENS):
        plain = detected(part)
        seen = plain if packer.context == "detected" else packer(part)
        rows = {name: values for forms in baselines for name, values in forms.predict(plain).items()}
        yield plain, rows | {"model": predict(model, seen, compute)}


def predict(model: Model, batch: Batch, compute: Compute, *, attention: bool = True) -> np.ndarray:
    """Return the model's values for the targets of a batch, float64 [M]; without attention, those it adds to."""
    with torch.inference_mode(), compute.cast():
        return model.values(Tokens.of(batch, compute.device), attention=attention)
