"""Scores of predicted perturbation effects, one number per unit, and the table of these metrics.

m test units, N candidate units, G genes. Effects are differences of mean log1p(counts per 10,000). The control cells
that predictors see (input half) are not those of the truth against control (reference half), so that both do not share
their noise.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from sckit.errors import DataError
from sckit.metrics.correlation import centred, correlation_of_rows

HEADLINE = "delta_r_specific"
FORMER_HEADLINE = "delta_r_perturbed"
"""Of earlier versions. Prediction and truth are both less one estimate of the mean, so that they share its noise."""
WORST_R2 = -1.0
"""Floor of `weighted_r2` of a unit."""

_FEW_TOP, _MOST_TOP = 5, 50
_BLOCK = 4_000_000  # entries worked on at a time, so that memory does not grow with the number of units
_ROUNDING = 1e-12  # of a sum of squares; what is smaller by this factor is rounding


@dataclass(frozen=True)
class Truth:
    """What predictions of m units are scored against; T and V are disjoint halves of the treated cells."""

    control: np.ndarray  # [m, G], mean of T - control(reference)
    perturbed: np.ndarray  # [m, G], mean of T - control(input) - mean
    mean: np.ndarray  # [m, G], what the mean of the training perturbations says, against control(input)
    se: np.ndarray  # [m, G], standard error of `control`, 0 where it is unknown or no cell detects the gene
    candidates: np.ndarray  # [N, G], truth against control of all units, test and training
    own: np.ndarray  # int [m], each unit's row of `candidates`
    group: np.ndarray | None = None  # int [m], units of a number are centred on their mean; None: all of them are

    def __post_init__(self) -> None:
        shape = self.control.shape
        others = {name: getattr(self, name).shape for name in ("perturbed", "mean", "se")}
        if len(shape) != 2 or any(other != shape for other in others.values()):
            raise DataError(f"the parts of the truth must all be [units, genes], not {others | {'control': shape}}.")
        if self.candidates.ndim != 2 or self.candidates.shape[1] != shape[1] or self.own.shape != shape[:1]:
            raise DataError(
                f"candidates {self.candidates.shape} and own {self.own.shape} do not fit a truth of {shape}: "
                "candidates are [all units, genes], own has one row number a test unit."
            )
        if self.group is not None and self.group.shape != shape[:1]:
            raise DataError(f"the groups of units {self.group.shape} do not fit a truth of {shape}: one number a unit.")
        for name in (*others, "control", "candidates"):
            if not np.isfinite(getattr(self, name)).all():
                raise DataError(f"the truth has values in `{name}` that are not finite; leave such units or genes out.")

    @property
    def groups(self) -> np.ndarray:
        """Return the number of each unit's group from 0, int [m]."""
        return np.unique(np.zeros(len(self.own)) if self.group is None else self.group, return_inverse=True)[1]

    @property
    def group_sizes(self) -> np.ndarray:
        """Return how many units the group of each unit has, itself included, int [m]."""
        return np.bincount(self.groups)[self.groups]


class _Block:
    """Units of some rows that are scored together; tables are 0 at genes that are not scored."""

    def __init__(
        self, predicted: np.ndarray, truth: Truth, rows: slice, genes: np.ndarray, specific: np.ndarray
    ) -> None:
        self.genes = genes if genes.ndim == 1 else genes[rows]  # bool [G] or [b, G]
        self.specific = specific[rows]  # [b]
        self.scored = np.atleast_2d(self.genes)
        self.raw, self.candidates, self.own = predicted[rows], truth.candidates, truth.own[rows]
        self.predicted, self.control, self.perturbed, self.mean = (
            np.where(self.scored, x[rows], 0.0) for x in (predicted, truth.control, truth.perturbed, truth.mean)
        )
        se = truth.se[rows]
        known = self.scored & (se > 0)
        self.predicted_t, self.t = (  # change / standard error, 0 where that is unknown
            np.divide(x, se, out=np.zeros_like(x), where=known) for x in (self.predicted, self.control)
        )


def score(predicted: np.ndarray, truth: Truth, genes: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Score each unit by every metric of METRICS, name -> [m].

    predicted: effects against control(input) [m, G]; genes: which are scored, bool [G] or [m, G] (for instance the
    hidden ones, or all but the gene that was perturbed). All scores are finite, except a discrimination without other
    candidates and the headline of a unit that is alone in its group, which are NaN.

    A correlation without variance on one side is 0: a predictor that says the same of every gene knows nothing.

    Raises DataError where a prediction is not finite, has another shape than the truth, or no gene is scored.
    """
    shape = truth.control.shape
    if predicted.shape != shape:
        raise DataError(f"the prediction is {predicted.shape}, the truth {shape}; both must be [units, genes].")
    if not np.isfinite(predicted).all():
        bad = int(np.flatnonzero(~np.isfinite(predicted).all(1))[0])
        raise DataError(f"the prediction of unit {bad} is not finite; a training that diverged has no score.")
    scored = np.ones(shape[1], bool) if genes is None else np.asarray(genes, bool)
    if scored.shape not in (shape, shape[1:]):
        raise DataError(f"the scored genes are {scored.shape}, wanted {shape[1:]} or {shape}.")
    if not scored.any(-1).all():
        bad = int(np.argmin(np.broadcast_to(scored, shape).any(1)))
        raise DataError(f"unit {bad} has no scored gene; leave such units out.")
    predicted, step = predicted.astype(np.float64), max(1, _BLOCK // max(shape[1], 1))
    specific = specific_correlation(predicted, truth, np.broadcast_to(scored, shape))
    found: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] for name in METRICS}
    for start in range(0, shape[0], step):
        block = _Block(predicted, truth, slice(start, start + step), scored, specific)
        for name, metric in METRICS.items():
            found[name].append(metric.of(block))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def specific_correlation(predicted: np.ndarray, truth: Truth, genes: np.ndarray) -> np.ndarray:
    """Score [m] of what a prediction says of its own unit and not of the others of the group; NaN for a unit alone.

    predicted [m, G]; genes: which are scored for each unit, bool [m, G]. Prediction and truth are each less their own
    mean over the group, at each gene over the units for which it is scored, so that a gene that one unit perturbs tells
    nothing of the others. From the correlation over genes the mean of those of all predictions of the group with the
    same truth is subtracted: the score is 0 for a prediction that is the same for all units, and exactly 0 on average
    over all ways to deal the predictions to the units, for instance the effect of a strong perturbation to any of them.
    No estimate is subtracted from both sides.
    """

    def in_group(values: np.ndarray) -> np.ndarray:
        total = np.zeros((truth.groups.max(initial=-1) + 1, values.shape[1]))
        np.add.at(total, truth.groups, values)
        return total[truth.groups]  # [m, G], sums over the units of each unit's group

    count = in_group(genes)
    shared = genes & (count > 1)

    def about_group(effects: np.ndarray) -> np.ndarray:
        """Return effects less their mean over the group, each unit's centred over genes and of length 1, or all 0."""
        known = np.where(shared, effects, 0.0)
        about = np.where(shared, known - in_group(known) / np.maximum(count, 1), 0.0)
        about[(about**2).sum(1) <= _ROUNDING * (known**2).sum(1)] = 0.0
        about = centred(about, shared)
        length = np.sqrt((about**2).sum(1, keepdims=True))
        return np.divide(about, length, out=np.zeros_like(about), where=length > 0)

    said, size = about_group(predicted), truth.group_sizes
    score = ((said - in_group(said) / size[:, None]) * about_group(truth.control)).sum(1)
    return np.where(size > 1, score, np.nan)


def weighted_r2(predicted: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Share [m] of the weighted squared error of the training mean that the prediction removes: 0 the mean, 1 perfect.

    predicted, truth: both less what the mean says [m, G], so the truth is the one against the perturbed; weight [m, G]:
    squared t statistics of the truth against control, so that genes with a real change decide. After R2w(delta) of
    Mejia et al. 2025 (arXiv 2506.22641); there the t statistics are against all other perturbations and scaled to
    [0, 1] before squaring, and the error is compared with that of one constant for all genes.

    Floored at `WORST_R2`: a perturbation without effect is the mean but for noise, its denominator is next to nothing,
    and a few such units would decide the average over all. 0 where prediction and mean are both without error.
    """
    error = (weight * (truth - predicted) ** 2).sum(1)
    reference = (weight * truth**2).sum(1)
    ratio = np.divide(error, reference, out=np.full(len(error), np.inf), where=reference > 0)
    ratio[(reference == 0) & (error == 0)] = 1.0
    return np.maximum(1 - ratio, WORST_R2)


def discrimination(
    predicted: np.ndarray, candidates: np.ndarray, own: np.ndarray, genes: np.ndarray | None = None
) -> np.ndarray:
    """How often [m] the prediction is closer to its own unit's truth than to another's: 1 always, 0.5 chance, 0 never.

    predicted [m, G], candidates [N, G], own int [m], genes bool [G] or [m, G]; distances are L1. NaN when N is 1.
    The perturbation discrimination score of cell-eval 0.8.2, with two differences. Candidates as far as the own one
    count half, instead of in the order of sorting. The rank is over N - 1, instead of N, so that any constant
    prediction averages 0.5 over the N units (there (N + 1) / 2N): theirs = 1 - (1 - ours) (N - 1) / N. cell-eval leaves
    out the gene that was perturbed in the unit, and by that favours the right answer: it loses its largest change, the
    others keep theirs, and even no change at all scores above chance. One mask [G] without any perturbed gene is fair.
    """
    n = len(candidates)
    if n < 2:
        return np.full(len(predicted), np.nan)
    distance = _distances(predicted, candidates, np.ones(predicted.shape[1], bool) if genes is None else genes)
    right = np.take_along_axis(distance, own[:, None], 1)
    tied = np.abs(distance - right) <= 1e-9 * right
    nearer = ((distance < right) & ~tied).sum(1) + (tied.sum(1) - 1) / 2
    return 1 - nearer / (n - 1)


def slope(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Size of the predicted effect [m] as a share of the true one: regression of prediction on truth [m, G], no offset.

    1 is the right size, below 1 too small; noise of the truth makes it smaller. 0 where the truth is all zero.
    """
    squares = (truth**2).sum(1)
    return np.divide((predicted * truth).sum(1), squares, out=np.zeros(len(truth)), where=squares > 0)


def de_overlap(predicted: np.ndarray, truth: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Share [m] of the top genes of the truth that are among the top genes of the prediction.

    predicted, truth: |effect| / standard error [m, G]; genes: bool [1 or m, G]. The top are a tenth of the scored
    genes, at least 5 and at most 50 (or all). Genes that tie for the last places are drawn, each side by itself, and
    the overlap is what is expected of that: no change at all scores chance.
    """
    counts = np.broadcast_to(genes.sum(1), len(truth))
    top = np.minimum(np.clip(counts // 10, _FEW_TOP, _MOST_TOP), counts)
    return (_in_top(predicted, genes, top) * _in_top(truth, genes, top)).sum(1) / top


def _partial_correlation(block: _Block) -> np.ndarray:
    """Correlation [b] over genes of the prediction with the truth against the perturbed, given the mean.

    A multiple of the mean, no change included, scores 0. If only the mean itself were subtracted, a prediction that
    shrinks the mean, by however little, would get the score of no change at all.
    """
    along = centred(block.mean, block.scored)
    size = (along**2).sum(1, keepdims=True)
    rows = [centred(x, block.scored) for x in (block.predicted, block.perturbed)]
    a, b = (
        x - along * np.divide((x * along).sum(1, keepdims=True), size, out=np.zeros_like(size), where=size > 0)
        for x in rows
    )
    return correlation_of_rows(a, b, block.scored, removed=(block.mean**2).sum(1))


def _distances(predicted: np.ndarray, candidates: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """L1 distances [m, N] over the scored genes, bool [G] or [m, G]."""
    if genes.ndim == 1:
        return _l1(predicted, candidates, genes)
    masks, group = np.unique(genes, axis=0, return_inverse=True)
    group = group.reshape(-1)
    # Where most genes are scored it is less work to take the few others away from the whole distance.
    mostly = masks.mean(1) > 0.5
    distance = np.zeros((len(predicted), len(candidates)))
    whole = mostly[group]
    distance[whole] = cdist(predicted[whole], candidates, "cityblock")
    for number, mask in enumerate(masks):
        rows, sign = np.flatnonzero(group == number), -1 if mostly[number] else 1
        part = ~mask if mostly[number] else mask
        if part.any():
            distance[rows] += sign * _l1(predicted[rows], candidates, part)
    return distance


def _l1(a: np.ndarray, b: np.ndarray, genes: np.ndarray) -> np.ndarray:
    # Picking columns leaves them far apart in memory, which cdist takes ten times as long over.
    return cdist(np.ascontiguousarray(a[:, genes]), np.ascontiguousarray(b[:, genes]), "cityblock")


def _in_top(key: np.ndarray, genes: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Probability [m, G] that a gene is among the `top` [m] largest keys [m, G] of the scored genes, ties at random."""
    key = np.where(genes, key, -1.0)
    most = int(top.max(initial=1))
    leading = -np.sort(np.partition(-key, most - 1, axis=1)[:, :most], axis=1)
    last = np.take_along_axis(leading, top[:, None] - 1, 1)
    above, tied = key > last, key == last
    share = (top - above.sum(1)) / tied.sum(1)
    return above + tied * share[:, None]


@dataclass(frozen=True)
class Metric:
    """One way to score a predicted effect."""

    label: str  # for people
    description: str
    of: Callable[[_Block], np.ndarray]  # scores [b] of the units of a block


METRICS = {
    HEADLINE: Metric(
        "pearson_delta, specific", "correlation over genes of prediction and truth, each less its own mean over the "
        "units tested together, and less what the predictions of all of them correlate on average, so that one that "
        "does not tell them apart scores 0",
        lambda b: b.specific),
    FORMER_HEADLINE: Metric(
        "pearson_delta, perturbed", "the headline of earlier versions: both less the mean of the training "
        "perturbations and its direction", _partial_correlation),
    "delta_r": Metric(
        "pearson_delta", "the same correlation of the changes against control (delta_r in JSON)",
        lambda b: correlation_of_rows(b.predicted, b.control, b.scored)),
    "weighted_r2": Metric(
        "weighted R²", "over genes weighted by their effect, 0 for the mean",
        lambda b: weighted_r2(b.predicted - b.mean, b.perturbed, b.t**2)),
    "discrimination": Metric(
        "discrim.", "share of the other perturbations that are farther from the prediction than the right one (0.5: "
        "chance)", lambda b: discrimination(b.raw, b.candidates, b.own, b.genes)),
    "slope": Metric(
        "slope", "size of the predicted effect as a share of the true one", lambda b: slope(b.predicted, b.control)),
    "de_overlap": Metric(
        "DE overlap", "share of the top differential genes that are predicted as such",
        lambda b: de_overlap(np.abs(b.predicted_t), np.abs(b.t), b.scored)),
}  # fmt: skip
"""By name in JSON and CSV, the headline first. Higher is better, but for the slope, which should be 1."""
