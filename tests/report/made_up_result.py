"""A made-up result of `finetune` with every kind of row, for tests of what is printed and written."""

import itertools

import pandas as pd

from sckit.perturbation.summary import COLUMNS, Finetuned

METRICS = ("delta_r", "delta_r_specific", "delta_r_perturbed", "weighted_r2", "discrimination", "slope", "de_overlap")
BASELINES = ("no change", "mean", "additive", "ridge on components", "nearest neighbours")
PARTIAL = ("no change", "mean", "additive", "ridge revealed to hidden", "low-rank", "Gaussian conditional")
ARMS = ("shuffled", "pretrained", "scratch", "frozen")
SIZE = {"pretrained": 0.42, "scratch": 0.40, "frozen": 0.25, "shuffled": 0.3, "additive": 0.1, "low-rank": 0.37}


def made_up(revealed=(None,), train_shares=(0.1, 0.3, 1.0), seeds=5, count=25, interval=0.03, **changes):
    """A result with every row there can be; `interval` None leaves every interval unknown."""
    baselines = BASELINES if revealed == (None,) else PARTIAL
    rows = {name: [] for name in COLUMNS}
    for (subset, n), share, part in itertools.product(
        (("all", count), ("repeating", count // 2)), train_shares, revealed
    ):
        for name, metric in itertools.product((*baselines, *ARMS), METRICS):
            if name in baselines and name != "mean" and share < 1:
                continue
            score = SIZE.get(name, 0.0) * share**0.25 * (0.4 + 0.6 * (1 if part is None else part))
            score += 0.1 * (subset == "repeating") + 0.01 * METRICS.index(metric)
            key = {"revealed": part, "train_share": share, "metric": metric, "subset": subset}
            rows["scores"].append(
                {"predictor": name, **key, "mean": score, **ends(score, interval), "perturbations": n}
            )
            rows["gaps"].append({"predictor": name, **key, "baseline": "additive", "share": (score - 0.1) / 0.6})
        for a, b, verdict in (
            ("pretrained", "scratch", "no difference"),
            ("pretrained", "shuffled", "helps"),
            ("pretrained", "low-rank", "hurts"),
        ):
            for metric in METRICS[:2]:
                key = {"metric": metric, "revealed": part, "train_share": share, "subset": subset}
                difference = {"diff": 0.003, **ends(0.003, interval and 0.013), "verdict": verdict}
                rows["differences"].append({"a": a, "b": b, **key, **difference})
    for subset, kind, metric in itertools.product(("all", "repeating"), ("half-cells", "replicates"), METRICS):
        score = 0.7 if kind == "half-cells" else 0.55
        where = {"kind": kind, "subset": subset, "metric": metric}
        rows["ceilings"].append(where | {"mean": score, **ends(score, interval)})
    facts = {
        "task": "response" if revealed == (None,) else "partial", "split": "unseen perturbation",
        "held_out": "perturbations", "seeds": seeds, "margin": 0.05, "headline": "delta_r_specific", "facts": {},
        "notes": ["3 of 25 targets are unknown."], "intervals": ["intervals: over what is held out"],
    }  # fmt: skip
    tables = {name: pd.DataFrame(found, columns=list(COLUMNS[name])) for name, found in rows.items()}
    return Finetuned(**facts | tables | changes)


def ends(middle, reach):
    return dict(zip(("low", "high"), (None, None) if reach is None else (middle - reach, middle + reach), strict=True))
