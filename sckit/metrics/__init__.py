"""Scores of perturbation effects and the rule for intervals, for the packages after `metrics`."""

from sckit.metrics.correlation import centred, correlation_of_sums
from sckit.metrics.effects import HEADLINE, METRICS, Truth, discrimination, score
from sckit.metrics.intervals import Estimate, Resampling, Sample, gap_closed, interval, verdict

__all__ = [
    "HEADLINE",
    "METRICS",
    "Estimate",
    "Resampling",
    "Sample",
    "Truth",
    "centred",
    "correlation_of_sums",
    "discrimination",
    "gap_closed",
    "interval",
    "score",
    "verdict",
]
