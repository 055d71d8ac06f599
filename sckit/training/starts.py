"""The linear baselines that a network starts from: each cell has one that was fitted without it."""

from collections.abc import Iterator

import numpy as np
import torch

from sckit.data.loader import Parts, epoch_batches
from sckit.data.split import TRAIN, VALIDATION
from sckit.model.correction import facts_of_genes
from sckit.model.linear import CROSS_FITTED
from sckit.model.offset_forms import OffsetForms
from sckit.model.transformer import Model
from sckit.training.baselines import cross_fits, offset_forms
from sckit.training.run import Run


class Starts:
    """The fits of a run by folds of its training cells, and the model that they are put into."""

    def __init__(self, run: Run, model: Model, device: torch.device) -> None:
        self._model, self.offsets, self.train = model, offset_forms(run), run.cells(TRAIN)
        self._chunks = run.store.chunks(self.train)
        self._fits = cross_fits(run) if model.config.start == "offset" else None
        if self._fits is not None:
            self._whole = {name: getattr(model.linear, name).clone() for name in CROSS_FITTED}
            self._folds = [self._fits.of(number, device) for number in range(len(self._fits.arrays["noise"]))]
            every = [self.offsets, *(self._fits.forms(self.offsets, number) for number in range(len(self._folds)))]
            self._facts = [torch.from_numpy(facts_of_genes(forms)).to(device) for forms in every]
        self.validation = self._validation(run)

    def use(self, fold: int | None) -> None:
        """Give the model the linear baseline that was fitted without this fold of the training cells, or with all."""
        if self._fits is not None:
            self._model.linear.use(self._whole if fold is None else self._folds[fold])
            if self._model.correction is not None:
                self._model.correction.facts.copy_(self._facts[0 if fold is None else 1 + fold])

    def judges(self) -> Iterator[tuple[OffsetForms, np.ndarray]]:
        """Yield the validation cells with the linear baseline that the model starts from, which it then has."""
        for fold, cells in self.validation:
            self.use(fold)
            yield self.offsets if fold is None or self._fits is None else self._fits.forms(self.offsets, fold), cells
        self.use(None)

    def batches(self, lengths: np.ndarray, tokens: int, seed: tuple[int, int]) -> Parts:
        """Return the training batches of an epoch; arguments as in `epoch_batches`."""
        folds = None if self._fits is None else self._fits.fold
        return epoch_batches(self.train, self._chunks, lengths, tokens, seed, folds)

    def _validation(self, run: Run) -> Parts:
        """Return the validation cells; where folds are whole groups, by fold, so that they stand for new groups."""
        cells, groups = run.cells(VALIDATION), run.groups
        if self._fits is None or not run.config.neighbours or groups is None or len({*groups[self.train]}) < 2:
            return [(None, cells)]
        fold_of = dict(zip(groups[self.train], self._fits.fold.tolist(), strict=True))
        fold = np.array([fold_of.get(group, -1) for group in groups[cells]])
        return [(None if number < 0 else int(number), cells[fold == number]) for number in np.unique(fold)]
