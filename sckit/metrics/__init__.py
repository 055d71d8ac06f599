"""Scores of perturbation effects and the rule for intervals, for the packages after `metrics`."""

from sckit.metrics.correlation import correlation_of_rows
from sckit.metrics.effects import FORMER_HEADLINE, HEADLINE, METRICS, Truth, discrimination, score
from sckit.metrics.intervals import Estimate, Resampling, Sample, gap_closed, interval, verdict

__all__ = [
    "FORMER_HEADLINE",
    "HEADLINE",
    "METRICS",
    "Estimate",
    "Resampling",
    "Sample",
    "Truth",
    "correlation_of_rows",
    "discrimination",
    "gap_closed",
    "interval",
    "score",
    "verdict",
]
