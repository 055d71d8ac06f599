"""The validation line of a training run: how model and linear baselines predict its validation cells."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from sckit.data.batch import Hiding, Packer
from sckit.device import Compute
from sckit.errors import DataError
from sckit.files import to_json
from sckit.metrics.values import Scores, json_row
from sckit.model.offset_forms import OFFSET_PREDICTORS, OffsetForms
from sckit.model.predict import predictions
from sckit.model.transformer import Model
from sckit.training.run import Run


def validation_row(
    model: Model, run: Run, packer: Packer, parts: Iterable[tuple[OffsetForms, np.ndarray]], compute: Compute
) -> dict[str, Any]:
    """Return the row of the model, with the R2 of each linear baseline, at the run's mask rate; half for "uniform".

    packer: as in training; parts: validation cells, rows of the store, with the baselines that the model then starts
    from. Raises DataError where no value of a validation cell is hidden.
    """
    config = run.config
    rate = 0.5 if config.mask == "uniform" else float(config.mask)
    packer = replace(packer, hiding=Hiding(rate, config.seed), scored=rate >= 0.15)
    scores = Scores(len(run.genes), seed=config.seed)
    for offsets, cells in parts:
        for batch, predicted in predictions(model, packer, (run.forms, offsets), cells, compute):
            scores.add(batch, predicted)
    if not scores.entries:
        more = "give more cells" if rate == 1.0 else "hide more, or give more cells"
        raise DataError(f"no validation value is hidden with --mask {config.mask}; {more}.")
    where = {"rate": rate, "context": config.context, "known_depth": config.known_depth}
    baselines = {f"r2 {name}": scores.r2(name) for name in scores.predictors if name != "model"}
    by_fold = config.neighbours > 0 and config.group is not None  # where the other ridges know the cells' own groups
    among = OFFSET_PREDICTORS if by_fold else scores.predictors
    best = max((name for name in among if name != "model"), key=scores.r2)
    return to_json(json_row(scores.full_row("model", best, None, **where)) | baselines)
