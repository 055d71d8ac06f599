"""The linear baselines in count space of a run: fitted once, and kept in its folder."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from torch import Tensor

from sckit.data.batch import Batch, Hiding, Packer
from sckit.data.split import TRAIN
from sckit.data.views import CountsView, CutView
from sckit.files import replacing
from sckit.model.count_start import CountStart
from sckit.model.linear import CROSS_FITTED, Start
from sckit.model.offset_fit import cross_fitted, fit_offset_forms
from sckit.model.offset_forms import OfCells, OffsetForms
from sckit.model.regression import TrainingCells
from sckit.model.transformer import Model
from sckit.training.run import CROSS_FITS, OFFSET_FORMS, Run, training_view

_OF_FOLDS = (*CROSS_FITTED, "cells", "deviation")
_CALIBRATION_CELLS = 1500
_CALIBRATION_EPOCH = 2**20  # no epoch of training hides the same values
_VERSION = {"version": "2"}
"""Raised when the fit changes, so that a run gets its baselines again."""


def training_cells(run: Run, view: CountsView) -> TrainingCells:
    """Return the run's training cells, cut as in training, with the values of its group column."""
    cells = run.cells(TRAIN)
    groups = None if run.groups is None else run.groups[cells]
    cut = CutView(view, run.vocabulary, run.config.max_genes, run.config.seed)
    return TrainingCells(cut, run.vocabulary, cells, groups, run.config.seed)


def offset_forms(
    run: Run,
    *,
    components: int | None = None,
    penalty: float | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> OffsetForms:
    """Return the baselines of a run; what inner validation chooses is kept in the run's folder for the next time.

    A run that was made before these baselines existed gets them as well.
    """
    chosen = components is None and penalty is None
    if chosen and (kept := _kept(run)) is not None:
        return kept
    forms = fit_offset_forms(
        training_cells(run, training_view(run.store, run.config)), components=components, penalty=penalty, log=log
    )
    if chosen:
        _keep(run.path / OFFSET_FORMS, vars(forms))
    return forms


def untrained_model(run: Run, seed: int) -> Model:
    """Return the model of a run before its first step; `seed` draws the weights that its linear start does not set."""
    shape = run.config.model
    start = Start.of(run.forms if shape.start == "ridge" else offset_forms(run))
    counts = count_start(run) if shape.loss == "count" else None
    return Model(shape, start if run.config.warm_start else start.without(), counts, seed=seed)


def count_start(run: Run) -> CountStart:
    """Calibrate the law of counts of the value offset ridge on training cells, by the fits that left them out."""
    config, forms, fits = run.config, offset_forms(run), cross_fits(run)
    view, cells = training_view(run.store, config), run.cells(TRAIN)
    hiding = Hiding(config.mask, config.seed, _CALIBRATION_EPOCH)
    packer = Packer(view, run.vocabulary, hiding, known_depth=config.known_depth, max_genes=config.max_genes)
    drawn = np.random.default_rng(config.seed).permutation(len(cells))[:_CALIBRATION_CELLS]

    def parts() -> Iterator[tuple[Batch, OfCells, np.ndarray]]:
        for number in np.unique(fits.fold[drawn]):
            batch = packer(np.sort(cells[drawn[fits.fold[drawn] == number]]))
            fit = fits.forms(forms, number)
            of_cells = fit.of_cells(batch)
            yield batch, of_cells, fit.value_ridge(batch, of_cells)

    return CountStart.fit(forms, parts())


@dataclass(frozen=True)
class CrossFits:
    """Linear baselines that were fitted without a fold of the training cells each.

    On the cells that a baseline was fitted on, what it leaves is too small. A model that is trained on it learns to
    trust the baseline more than it may on new cells.
    """

    fold: np.ndarray  # int64 [training cells], in the order of `Run.cells`
    arrays: dict[str, np.ndarray]  # by name as in _OF_FOLDS, float32 [folds, ...]

    def forms(self, like: OffsetForms, number: int) -> OffsetForms:
        """Return the baselines that left out a fold; what does not differ between folds is that of `like`."""
        return replace(like, **{name: array[number].astype(np.float64) for name, array in self.arrays.items()})

    def of(self, number: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the arrays of the fit that left out a fold, for the linear baseline inside a model."""
        return {name: torch.from_numpy(self.arrays[name][number]).to(device) for name in CROSS_FITTED}


def cross_fits(run: Run, log: Callable[[str], None] = lambda _: None) -> CrossFits:
    """Return the baselines of a run's training cells by folds; they are kept in its folder for the next time."""
    forms = offset_forms(run)
    if (kept := _kept_cross_fits(run, forms)) is not None:
        return kept
    log("offset baselines: fitted without each fold of the training cells")
    training = training_cells(run, training_view(run.store, run.config))
    fold, fits = cross_fitted(training, forms, whole_groups=run.config.neighbours > 0)
    arrays = {name: np.stack([getattr(fit, name) for fit in fits]).astype(np.float32) for name in _OF_FOLDS}
    _keep(run.path / CROSS_FITS, arrays | {"fold": fold})
    return CrossFits(fold, arrays)


def refit_offset_forms(run: Run, view: CountsView, like: OffsetForms, log: Callable[[str], None]) -> OffsetForms:
    """Fit the baselines on the run's training cells in another view of their counts, with the same choices."""
    components, factors, penalty, count_penalty = like.chosen
    sizes = {"components": int(components), "factors": int(factors)}
    return fit_offset_forms(training_cells(run, view), penalty=penalty, count_penalty=count_penalty, log=log, **sizes)


def _keep(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of today's version into a run's folder, if it lies where something can be written."""
    with suppress(OSError), replacing(path) as unfinished:
        # In order: safetensors writes memory as it lies.
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, unfinished, _VERSION)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read arrays of today's version. Raises OSError or SafetensorError where there are none."""
    with safe_open(path, "np") as file:
        if file.metadata() != _VERSION:
            raise OSError(f"{path} is of another version")
    return load_file(path)


def _kept_cross_fits(run: Run, forms: OffsetForms) -> CrossFits | None:
    """Read the fits without a fold in the run's folder; None where there are none that fit the run."""
    with suppress(OSError, SafetensorError, KeyError):
        arrays = _read(run.path / CROSS_FITS)
        fold = arrays.pop("fold")
        folds = len(arrays["noise"])
        shapes = {name: (folds, *getattr(forms, name).shape) for name in _OF_FOLDS}
        whole = fold.shape == run.cells(TRAIN).shape and np.isin(fold, np.arange(folds)).all()
        finite = all(np.isfinite(array).all() for array in arrays.values())
        if whole and finite and {name: array.shape for name, array in arrays.items()} == shapes:
            return CrossFits(fold, arrays)
    return None


def _kept(run: Run) -> OffsetForms | None:
    """Read the baselines in the run's folder; None where there are none that fit the run."""
    try:
        forms = OffsetForms(**_read(run.path / OFFSET_FORMS))
        g, f, j = len(run.genes), 2 + forms.axes.shape[1], forms.loadings.shape[1]
    except (OSError, SafetensorError, TypeError, IndexError):
        return None
    shapes = {
        **{"axes": (g, f - 2), "origin": (f - 2,), "total_of_x": (f,), "scales": (4,), "chosen": (4,)},
        **{name: (g,) for name in ("cells", "gene_mean", "mean_above", "deviation", "log_rate", "mean_count")},
        **{"noise": (g,), "excess": (g,)},
        **{"ridge": (g, f), "total": (g, f + 1), "loadings": (g, j), "counts": (g, f + 1 + j)},
    }
    arrays = vars(forms)
    fits = all(arrays[name].shape == shape and np.isfinite(arrays[name]).all() for name, shape in shapes.items())
    return forms if fits else None
