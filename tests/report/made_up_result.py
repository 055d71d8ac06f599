"""A made-up result of `finetune` with every kind of row, for tests of what is printed and written."""

import itertools

from sckit.perturbation.summary import Finetuned

METRICS = ("delta_r", "delta_r_perturbed", "weighted_r2", "discrimination", "slope", "de_overlap")
CLOSED = ("no change", "mean", "additive", "ridge on components", "nearest neighbours")
PARTIAL = ("no change", "mean", "additive", "ridge revealed to hidden", "low-rank", "Gaussian conditional")
ARMS = ("shuffled", "pretrained", "scratch", "frozen")
LEVEL = {"pretrained": 0.42, "scratch": 0.40, "frozen": 0.25, "shuffled": 0.3, "additive": 0.1, "low-rank": 0.37}


def made_up(revealed=(None,), train_shares=(0.1, 0.3, 1.0), seeds=5, count=25, interval=0.03):
    """A result with every row there can be; `interval` None leaves every interval unknown."""
    closed = CLOSED if revealed == (None,) else PARTIAL
    result = Finetuned(
        task="response" if revealed == (None,) else "partial", level="pseudobulk", split="unseen perturbation",
        seeds=seeds, margin=0.05, headline="delta_r_perturbed", rows=[], paired=[], ceiling={}, ceilings=[], gap=[],
        cells=[], facts={}, notes=["3 of 25 targets are unknown."],
    )  # fmt: skip
    for (subset, n), share, part in itertools.product(
        (("all", count), ("repeating", count // 2)), train_shares, revealed
    ):
        for name, metric in itertools.product((*closed, *ARMS), METRICS):
            if name in closed and name != "mean" and share < 1:
                continue
            score = LEVEL.get(name, 0.0) * share**0.25 * (0.4 + 0.6 * (part if isinstance(part, float) else 1))
            score += 0.1 * (subset == "repeating") + 0.01 * METRICS.index(metric)
            key = {"revealed": part, "train_share": share, "metric": metric, "subset": subset}
            row = {"predictor": name, **key, "mean": score, "ci": ends(score, interval), "perturbations": n}
            result.rows.append(row)
            result.gap.append({"predictor": name, **key, "baseline": "additive", "share": (score - 0.1) / 0.6})
        for a, b, verdict in (
            ("pretrained", "scratch", "no difference"),
            ("pretrained", "shuffled", "helps"),
            ("pretrained", "low-rank", "hurts"),
        ):
            for metric in METRICS[:2]:
                key = {"metric": metric, "revealed": part, "train_share": share, "subset": subset}
                difference = {"diff": 0.003, "ci": ends(0.003, interval and 0.013), "verdict": verdict}
                result.paired.append({"a": a, "b": b, **key, **difference})
    for subset, kind, metric in itertools.product(("all", "repeating"), ("half-cells", "replicates"), METRICS):
        score = 0.7 if kind == "half-cells" else 0.55
        result.ceilings.append(
            {"kind": kind, "subset": subset, "metric": metric, "mean": score, "ci": ends(score, interval)}
        )
    result.ceiling.update(dict.fromkeys(METRICS, 0.7))
    return result


def ends(middle, reach):
    return [None, None] if reach is None else [middle - reach, middle + reach]
