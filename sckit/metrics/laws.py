"""The laws of counts that predictions stand for, and the deviance of counts under them."""

from dataclasses import dataclass

import numpy as np

from sckit.kernels.count_law import counts_of, log_likelihood, rate_of_mean


@dataclass(frozen=True)
class Laws:
    """What each prediction says of the counts of M targets, by predictor, "gene mean" among them."""

    rates: dict[str, np.ndarray]  # [M], of zero-truncated Poisson laws
    noise: dict[str, tuple[np.ndarray, np.ndarray]]  # rate and dispersion [M] of the laws of the noise floor
    totals: np.ndarray  # float64 [M], of each target's cell

    def deviance(self, values: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """Return the Poisson deviance of the counts that values [M] stand for, given rates [M]."""
        return truncated_poisson_deviance(counts_of(values, self.totals), rates)


def truncated_poisson_deviance(counts: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Deviance of counts [N] >= 1 under zero-truncated Poisson laws of the rates [..., N]."""
    saturated = log_likelihood(counts, rate_of_mean(np.maximum(counts, 1 + 1e-9)))
    return 2 * (saturated - log_likelihood(counts, rates))
