"""Compare arms and linear baselines on the same units, seeds and folds, with intervals, ceilings and a verdict."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import joblib
import numpy as np
import torch

from sckit.config import FinetuneConfig, ReadingConfig
from sckit.data import read_gene_list
from sckit.device import Compute, choose_compute
from sckit.errors import ConfigError, DataError, WriteError
from sckit.perturbation.arms import Arms, make_arms, overlap
from sckit.perturbation.baselines import response_baselines
from sckit.perturbation.baselines_partial import partial_baselines
from sckit.perturbation.examples import fixed_panel
from sckit.perturbation.finished import BASELINES, NOTHING_FINISHED, Finished, Part, Plan, begin
from sckit.perturbation.fit import arm_predictor, train_arm
from sckit.perturbation.fold import FoldData
from sckit.perturbation.questions import CEILING, Question, Score, ask, other_half, scores_of
from sckit.perturbation.screen import Screen, read_screen
from sckit.perturbation.splits import make_fold, split_name
from sckit.perturbation.summary import Finetuned, summarise
from sckit.provenance import environment
from sckit.training import Run, find_run, open_run

Found: TypeAlias = tuple[list[Score], list[dict[str, Any]]]
CURVE = ("pretrained", "scratch")
"""Arms that are trained at every share of the training data; the others only at the largest."""


@dataclass(frozen=True)
class Job:
    """A fold, by the number of its seed, at a share of the training data; and the arms to train on it."""

    seed: int
    share: float
    arms: tuple[str, ...]


def finetune(
    run: str | Path | None,
    data: str | Path,
    config: FinetuneConfig,
    *,
    runs: str | Path = "runs",
    reading: ReadingConfig | None = None,
    work: str | Path | None = None,
    on_event: Callable[[str, dict[str, Any]], None] = lambda _kind, _facts: None,
) -> Finetuned:
    """Compare arms that start from a run (path or name; the latest one by default) on perturbation data.

    data: a store, or anything `prepare` reads, as `reading` says. work: a folder in which each arm is kept as soon as
    it is finished; a call with the same run, data and options goes on from there. on_event(kind, facts) hears "note",
    "cells" (the table of cells per condition and covariate group, before anything is trained) and "progress" events.
    Raises ConfigError and DataError.
    """
    opened = open_run(find_run(run, Path(runs)))
    choose_compute(config.device, config.engine)  # refuse before the work
    reading = reading or ReadingConfig()
    finished = begin(None if work is None else Path(work), Plan(str(opened.path), str(data), config, reading), opened)
    try:
        return _compared(opened, data, config, reading, finished, on_event)
    except (ConfigError, DataError) as error:
        if not isinstance(error, WriteError):
            finished.forget_plan()
        raise


def _compared(
    opened: Run,
    data: str | Path,
    config: FinetuneConfig,
    reading: ReadingConfig,
    finished: Finished,
    on_event: Callable,
) -> Finetuned:
    """Make a comparison, or what is left of it; arguments as in `finetune`."""
    if finished.number:
        on_event("note", {"text": f"going on: {finished.number} parts of this comparison are finished"})
    compute = choose_compute(config.device, config.engine)
    screen = read_screen(data, config, reading, run=opened, on_event=on_event)
    on_event("cells", {"rows": list(screen.table)})
    for note in screen.notes:
        on_event("note", {"text": note})
    split = split_name(screen, config)
    folds = [make_fold(screen, split, config, seed) for seed in range(config.seeds)]  # refuse before the work
    panel = fixed_panel(screen, config)
    notes = _notes(opened, screen, config)
    if panel is not None and config.panel is not None:
        listed = len(read_gene_list(config.panel, "--panel"))
        notes.append(
            f"{len(panel):,} of the {listed:,} genes of --panel are among the predicted ones, and are revealed"
        )
    if split == "covariate":
        tested = {screen.unseen_of_covariates[screen.units[u].covariates] for fold in folds for u in fold.test}
        notes.append(f"tested on covariate values that were held out: {', '.join(sorted(tested))}")
    for note in notes:
        on_event("note", {"text": note})
    arms = make_arms(opened, screen, config, on_event=on_event)
    facts: dict[str, Any] = {"run": str(opened.path), "data": str(data), "compute": str(compute)}
    facts |= {"environment": environment()} | overlap(arms.table, screen)
    if config.target_map and not facts["targets_in_run"] + facts["targets_predicted"]:
        raise ConfigError(
            f"--target-map {config.target_map} names no gene that the run or the data know; the perturbations are "
            f"{', '.join(screen.perturbations[:5])}; give a file of condition and gene, or leave the option out."
        )
    on_event("note", {"text": _overlap_line(facts)})
    jobs = _jobs(config)
    scores, trained = [], []
    workers = config.workers or (os.cpu_count() or 1 if compute.device.type == "cpu" else 1)
    for done, (found, how) in enumerate(_run(workers, jobs, screen, config, split, arms, finished)):
        scores, trained = scores + found, trained + how
        on_event("progress", {"done": done + 1, "of": len(jobs), "what": f"{config.task}, seeds x training shares"})
    facts["trained"] = sorted(trained, key=lambda row: (row["arm"], row["train_share"], row["seed"]))
    return summarise(screen, config, split, scores, facts=facts, notes=[_overlap_line(facts), *screen.notes, *notes])


def _jobs(config: FinetuneConfig) -> list[Job]:
    """Return the jobs, those of the largest share first, because they take longest."""
    shares, every = sorted(set(config.train_shares), reverse=True), tuple(dict.fromkeys(config.arms))
    arms = {share: tuple(arm for arm in every if arm in CURVE) for share in shares} | {shares[0]: every}
    return [Job(seed, share, arms[share]) for share in shares for seed in range(config.seeds)]


def _run(workers: int, jobs: list[Job], *given: Any) -> Iterator[Found]:
    """Yield the result of each job as it ends; the numbers do not depend on how many run at a time."""
    # BLAS rounds differently with another number of threads, so workers get as many as this process has.
    with joblib.parallel_config("loky", inner_max_num_threads=torch.get_num_threads()):
        parallel = joblib.Parallel(min(workers, len(jobs)), return_as="generator_unordered")
    yield from parallel(joblib.delayed(_work)(os.getpid(), job, *given) for job in jobs)  # type: ignore[misc]


def _work(parent: int, job: Job, *given: Any) -> Found:
    if os.getpid() != parent:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    return score_job(job, *given)


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone: joblib would first let it finish the job, which can take hours."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def score_job(
    job: Job, screen: Screen, config: FinetuneConfig, split: str, arms: Arms, finished: Finished = NOTHING_FINISHED
) -> Found:
    """Train the arms of a job and score every predictor; returns the scores, and how each training went.

    What is finished is taken as it is, and each further part is kept as it ends.
    """
    at = {"share": job.share, "seed": job.seed}
    parts = {name: finished.take(name, **at) for name in (BASELINES, *job.arms)}
    lacking = [name for name, part in parts.items() if part is None]
    compute = choose_compute(config.device, config.engine)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, sums are rounded differently
    try:
        if lacking:
            fold = FoldData(screen, config, split, arms.table, seed=job.seed, share=job.share)
            questions = ask(fold)
            for name in lacking:
                parts[name] = finished.keep(_part(name, fold, questions, arms, compute), name, **at)
    finally:
        torch.set_num_threads(threads)
    whole = [part for part in parts.values() if part is not None]
    return [score for part in whole for score in part.scores], [row for part in whole for row in part.trained]


def _part(name: str, fold: FoldData, questions: list[Question], arms: Arms, compute: Compute) -> Part:
    """Score the baselines and the ceiling, or train an arm and score it."""
    trained = []
    if name == BASELINES:
        predictors = response_baselines() if fold.config.task == "response" else partial_baselines()
        predictors |= {CEILING: other_half}
    else:
        arm = train_arm(name, arms, fold, compute)
        predictors = {name: arm_predictor(arm, compute)}
        about = {"seed": fold.seed, "train_share": fold.share}
        trained = [{"arm": name} | about | {"best_step": arm.best_step, "validation": arm.validation}]
    return Part([s for name, predict in predictors.items() for s in scores_of(name, predict, fold, questions)], trained)


def _notes(run: Run, screen: Screen, config: FinetuneConfig) -> list[str]:
    """Return what a reader of the numbers has to know; refuses a run that was trained on the treated cells."""
    if run.config.shuffle_values:
        raise ConfigError(f"{run.path} was itself trained on shuffled values; name the run that it is the control of.")
    notes = []
    treated = np.concatenate([unit.cells for unit in screen.units])
    if screen.seen is None:
        notes.append(f"the store of {run.path} is gone, so it is unknown whether it held treated cells")
    else:
        seen, unknown = int(screen.seen.found[treated].sum()), int((~screen.seen.compared[treated]).sum())
        if seen:
            text = f"{seen:,} treated cells have the same counts as cells that {run.path.name} was pretrained on"
            if not config.allow_seen:
                raise DataError(
                    f"{text}, so it knows their values; pretrain on control cells (sckit prepare --obs-filter "
                    f'"{config.condition} in {list(config.control)}"), or go on with --allow-seen.'
                )
            notes.append(f"LEAK: {text}")
        if 2 * unknown > len(treated):
            notes.append(
                f"{unknown:,} of the {len(treated):,} treated cells have too few counts in the genes of the store of "
                f"{run.path} to say whether it held them"
            )
    combined = sorted({unit.name for unit in screen.units if len(unit.parts) > 1})
    if combined:
        notes.append(f"read as combinations: {', '.join(combined[:5])}{', ...' if len(combined) > 5 else ''}")
    if config.permute:
        notes.append("control: perturbation labels were exchanged between treated cells; nothing is left to learn")
    unknown = [p for p, t in zip(screen.perturbations, screen.target_genes, strict=True) if t is None]
    if unknown and config.task == "response":
        few = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        notes.append(f"perturbations without a target gene: {len(unknown)} ({few}); before training they are all alike")
    return notes


def _overlap_line(facts: dict[str, Any]) -> str:
    line = f"{facts['genes_in_run']:,} of the {facts['genes']:,} genes predicted are known to the run"
    if facts["targets_named"]:
        known = f"{facts['targets_in_run']} are known to it and {facts['targets_predicted']} predicted"
        line += f"; of {facts['perturbations']} targets {known}"
    return line + "; what it does not know starts at random"
