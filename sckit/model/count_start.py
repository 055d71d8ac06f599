"""Where a model with a count loss starts: the calibrated law of counts that its linear baseline stands for.

A baseline predicts a value. Given the cell's total, that value is the mean of one zero-truncated Poisson law, whose log
rate is calibrated (`sckit.model.calibration`) and turned into that of a negative binomial law with the same mean count.
All of it is a map from a log rate to a log rate for each stratum of genes, kept as a table, and the dispersions.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import torch
from scipy.stats import nbinom
from torch import Tensor, nn

from sckit.data.batch import Batch
from sckit.kernels.count_law import count_moments, rate_of_mean, value_moments
from sckit.kernels.counts_reference import TARGET_SUM
from sckit.model.calibration import STRATA, Calibration, Noise, calibrate, log_rates, stratum_of
from sckit.model.offset_forms import LOG_RATES, OfCells, OffsetForms

_LEVELS = 257  # of the map from log rate to log rate
_DISPERSIONS = (1e-3, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 4.0)  # the first is Poisson, nearly
_LEAST_ABOVE = 1e-4
_LOG_TOTALS = (math.log(20.0), math.log(2e6), 48)  # of the table of log rates: from, to, knots
_LOG_MEANS = (-13.0, 9.5, 512)
_EVERY_LOG_RATE = (-13.0, 9.5, 400)


@dataclass(frozen=True)
class CountStart:
    """The calibrated law of a baseline's values."""

    levels: np.ndarray  # [strata, levels], log rate of the law over even steps of the log rate by the value
    dispersion: np.ndarray  # [strata], variance of a count before truncation is rate + dispersion * rate^2
    stratum: np.ndarray  # int64 [G], of each gene

    @classmethod
    def fit(cls, forms: OffsetForms, parts: Iterable[tuple[Batch, OfCells, np.ndarray]]) -> "CountStart":
        """Calibrate on batches of cells, with what the baseline predicts for their targets without knowing them."""
        found = [(log_rates(*part), part[0].counts, part[0].genes[part[0].targets]) for part in parts]
        log_rate, counts, genes = (np.concatenate(each) for each in zip(*found, strict=True))
        calibration, stratum = calibrate(log_rate, counts), stratum_of(forms.mean_count)
        return cls._of(calibration, _likeliest(calibration(log_rate), counts, stratum[genes]), stratum)

    @classmethod
    def _of(cls, calibration: Calibration, dispersion: np.ndarray, stratum: np.ndarray) -> "CountStart":
        rates, middle = calibration(np.linspace(*LOG_RATES, _LEVELS)), np.array(STRATA[:-1]) + 1e-6
        law = Noise(dispersion)
        levels = [np.log(law.law(rates, np.full(_LEVELS, mean))[0]) for mean in middle]
        return cls(np.stack(levels), dispersion, stratum)

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor], genes: int) -> "CountStart":
        """Take the law out of a model's weights. Raises ValueError where it does not fit G genes."""
        arrays = {field.name: weights[f"counts.{field.name}"].double().numpy() for field in fields(cls)}
        arrays["stratum"] = arrays["stratum"].astype(np.int64)
        strata = len(STRATA) - 1
        shapes = {"levels": (strata, _LEVELS), "dispersion": (strata,), "stratum": (genes,)}
        known = arrays["stratum"].size == 0 or (arrays["stratum"].min() >= 0 and arrays["stratum"].max() < strata)
        if {name: array.shape for name, array in arrays.items()} != shapes or not known:
            message = "the law of counts of the model does not fit its genes"
            raise ValueError(message)
        return cls(**arrays)

    def values(self, batch: Batch, cells: OfCells, predicted: np.ndarray) -> np.ndarray:
        """Return the mean values [M] under the law that the predicted values of the targets stand for."""
        log_rate = log_rates(batch, cells, predicted)
        stratum = self.stratum[batch.genes[batch.targets]]
        place = np.clip((log_rate - LOG_RATES[0]) / (LOG_RATES[1] - LOG_RATES[0]), 0, 1) * (_LEVELS - 1)
        low = np.minimum(place.astype(np.int64), _LEVELS - 2)
        level = self.levels[stratum, low] * (low + 1 - place) + self.levels[stratum, low + 1] * (place - low)
        totals = np.exp(cells.log_total)[batch.target_cells]
        return value_moments(np.exp(level), totals, self.dispersion[stratum])[0]


def _likeliest(rates: np.ndarray, counts: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """Return for each stratum the dispersion under which its counts are likeliest, given rates of Poisson laws [M].

    The variance of the counts would be a poor guide: a single large count of a gene that is one elsewhere decides it.
    """
    found, mean = np.full(len(STRATA) - 1, _DISPERSIONS[0]), np.maximum(count_moments(rates)[0], 1 + 1e-9)
    for each in np.unique(stratum):
        k, m = counts[stratum == each], mean[stratum == each]
        likelihoods = []
        for dispersion in _DISPERSIONS:
            size, rate = 1 / dispersion, rate_of_mean(m, dispersion)
            law = size, size / (size + rate)
            likelihoods.append((nbinom.logpmf(k, *law) - nbinom.logsf(0, *law)).sum())
        found[each] = _DISPERSIONS[int(np.argmax(likelihoods))]
    return found


class CountLaw(nn.Module):
    """The same map in torch, for log rates that a network adds to, and the loss."""

    levels: Tensor
    dispersion: Tensor
    stratum: Tensor
    table: Tensor

    def __init__(self, start: CountStart) -> None:
        super().__init__()
        self.levels = nn.Buffer(torch.from_numpy(start.levels.astype(np.float32)))
        self.dispersion = nn.Buffer(torch.from_numpy(start.dispersion.astype(np.float32)))
        self.stratum = nn.Buffer(torch.from_numpy(start.stratum.astype(np.int64)))
        self.table = nn.Buffer(torch.from_numpy(_table()), persistent=False)

    def start(self, above: Tensor, log_total: Tensor, genes: Tensor) -> Tensor:
        """Return the log rates [M] of values that lie `above` [M] a single count, in cells of these totals [M]."""
        scale = TARGET_SUM * torch.exp(-log_total)
        means = torch.log((1 + scale) / scale * torch.expm1(above.clamp(min=_LEAST_ABOVE)))
        row, column = _place(log_total, *_LOG_TOTALS), _place(means, *_LOG_MEANS)
        log_rate = _bilinear(self.table, row, column)
        level = _place(log_rate, *LOG_RATES, _LEVELS)
        return _bilinear(self.levels, self.stratum[genes].to(level.dtype), level)

    def losses(self, log_rate: Tensor, counts: Tensor, genes: Tensor) -> Tensor:
        """Return the negative log likelihoods [M] of counts [M] >= 1."""
        size = 1 / self.dispersion[self.stratum[genes]]
        log_rate = log_rate.clamp(*LOG_RATES)
        zero = size * torch.log1p(torch.exp(log_rate) / size)  # less the log of the probability of a zero
        log_likelihood = torch.lgamma(counts + size) - torch.lgamma(size) - torch.lgamma(counts + 1) - zero
        log_likelihood = log_likelihood + counts * (log_rate - torch.log(size + torch.exp(log_rate)))
        log_likelihood = log_likelihood - torch.log(-torch.expm1(-zero))
        return -log_likelihood

    def values(self, log_rate: np.ndarray, totals: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return the mean values [M] of log rates [M] in cells of these totals [M]."""
        dispersion = self.dispersion.double().cpu().numpy()[self.stratum.cpu().numpy()[genes]]
        return value_moments(np.exp(np.clip(log_rate, *LOG_RATES)), totals, dispersion)[0]


def _place(values: Tensor, low: float, high: float, knots: int) -> Tensor:
    """Return where values lie among even knots, from 0 to knots - 1."""
    return ((values - low) / (high - low)).clamp(0, 1) * (knots - 1)


def _bilinear(table: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Interpolate a table at rows and columns [M] that need not be whole numbers."""
    r, c = (place.floor().clamp(max=size - 2).long() for place, size in zip((row, column), table.shape, strict=True))
    down, right = row - r, column - c
    above = table[r, c] * (1 - right) + table[r, c + 1] * right
    below = table[r + 1, c] * (1 - right) + table[r + 1, c + 1] * right
    return above * (1 - down) + below * down


@cache
def _table() -> np.ndarray:
    """Return log rates of zero-truncated Poisson laws by log total and log of (mean count - 1), float32 [48, 512].

    The mean count is the one that the mean value stands for, (exp(value) - 1) / scale, so that the table is smooth.
    """
    log_rates_of = np.linspace(*_EVERY_LOG_RATE)
    rows = []
    for log_total in np.linspace(*_LOG_TOTALS):
        total = np.full(len(log_rates_of), np.exp(log_total))
        scale = TARGET_SUM / total[0]
        above = value_moments(np.exp(log_rates_of), total)[0] - np.log1p(scale)
        means = np.log(np.maximum((1 + scale) / scale * np.expm1(above), 1e-300))
        rows.append(np.interp(np.linspace(*_LOG_MEANS), means, log_rates_of))
    return np.stack(rows).astype(np.float32)
