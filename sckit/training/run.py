"""The run folder: configuration, environment, split, linear baselines, metrics, model and checkpoints, no pickle."""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save

from sckit.config import ModelConfig, PretrainConfig, from_dict, read_toml
from sckit.data.genes import GeneIndex
from sckit.data.manifest import MANIFEST
from sckit.data.split import HELD_OUT, LEFT_OUT, TRAIN, VALIDATION
from sckit.data.store import Store, open_store
from sckit.data.views import CountsView, CutView, ShuffledView
from sckit.errors import ConfigError, DataError, said
from sckit.files import checksum, matches, replacing, write_json
from sckit.model.closed_forms import ClosedForms, fit_closed_forms
from sckit.model.count_start import CountStart
from sckit.model.linear import Start
from sckit.model.transformer import Model
from sckit.training.checkpoint import load_weights

OFFSET_FORMS = "offset_forms.safetensors"
CROSS_FITS = "cross_fits.safetensors"
SETTING = ("forms.safetensors", "genes.parquet", "split.npy", "vocabulary.npy")


@dataclass(frozen=True)
class Run:
    """What a training run left behind, as far as evaluation and fine-tuning need it."""

    path: Path
    config: PretrainConfig
    genes: pd.DataFrame  # [G] columns id, symbol: the model's vocabulary
    forms: ClosedForms
    split: np.ndarray  # int8 [cells of the store], TRAIN, VALIDATION, HELD_OUT or LEFT_OUT
    vocabulary: np.ndarray  # int32 [genes of the store], number in the model or -1

    @property
    def store(self) -> Store:
        """Open the store that the run was trained on. Raises DataError when it has moved or changed."""
        try:
            where = json.loads((self.path / "data.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{self.path / 'data.json'} is damaged ({said(error)}); train again.") from error
        if not matches(where, {"store": str, "inside": bool, "manifest_sha256": str}):
            raise DataError(f"{self.path / 'data.json'} is damaged: it does not say where the store is; train again.")
        path = self.path / where["store"] if where["inside"] else Path(where["store"])
        try:
            outside = where["inside"] and not path.resolve().is_relative_to(home(self.path, self.config))
        except (OSError, ValueError) as error:  # of a name that no file system has
            raise DataError(f"{self.path / 'data.json'} is damaged ({said(error)}); train again.") from error
        if outside:
            raise DataError(f"{self.path / 'data.json'} names a store outside of the run as inside; train again.")
        store = open_store(path)
        same = checksum(store.path / MANIFEST) == where["manifest_sha256"]
        if not same or (store.n_cells, store.n_genes) != (len(self.split), len(self.vocabulary)):
            raise DataError(
                f"the store {store.path} is not the one {self.path} was trained on; restore it or train again."
            )
        return store

    def model(self, device: torch.device | str = "cpu") -> Model:
        """Load the best model of the run, in evaluation mode."""
        if not (self.path / "model.json").exists() and not (self.path / "checkpoints").exists():
            raise DataError(f"the run {self.path} stopped before its first model; go on with --resume {self.path}.")
        try:
            written = json.loads((self.path / "model.json").read_text(encoding="utf-8"))
            weights = load_file(self.path / "model.safetensors")
            shape = from_dict(ModelConfig, written["model"], str(self.path / "model.json"))
            # Before anything of that size is made: what the file says has to be what it holds.
            sizes = {"gene.weight": (len(self.genes), shape.width), "curve": (shape.knots, shape.width)}
            layers = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
            if {name: tuple(weights[name].shape) for name in sizes} != sizes or len(layers) != shape.layers:
                msg = "model.json and model.safetensors are of different models"
                raise ValueError(msg)
            counts = CountStart.of_weights(weights, len(self.genes)) if shape.loss == "count" else None
            model = Model(shape, Start.of_weights(weights, len(self.genes)), counts)
            load_weights(model, weights)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ConfigError) as error:
            raise DataError(
                f"the run {self.path} has no whole model ({said(error)}); go on with --resume {self.path}."
            ) from error
        return model.to(device).eval()

    @property
    def kept_step(self) -> int | None:
        """Return the step of the best model, 0 for the start of training; None where the run does not say."""
        score = self._score
        return score["step"] if matches(score, {"step": int}) else None

    @property
    def untrained(self) -> bool:
        """Whether the best model is the linear start; one of step 0 may hold a trained correction of it."""
        return self.kept_step == 0 and not self._score.get("corrected")

    @property
    def _score(self) -> dict[str, Any]:
        written = json.loads((self.path / "model.json").read_text(encoding="utf-8"))
        return written["score"] if matches(written, {"score": {}}) else {}

    def numbers_in(self, store: Store) -> np.ndarray:
        """Number in the model of each gene of another store, int32 [genes of the store], -1 for genes it does not know.

        Genes are matched by id, those that are left over by symbol, and no number is given twice.
        Raises DataError when nothing matches.
        """
        known = GeneIndex(self.genes["id"], self.genes["symbol"])
        found = known.match(store.genes["id"], store.genes["symbol"]).astype(np.int32)
        if found.max() < 0:
            raise DataError(
                f"no gene of the data ({', '.join(store.genes['symbol'][:3])}, ...) is among the {len(self.genes)} "
                f"that {self.path} was trained on ({', '.join(self.genes['symbol'][:3])}, ...); give data of the "
                "same species that name genes alike, by ids or by symbols."
            )
        return found

    def cells(self, part: int) -> np.ndarray:
        """Return the row numbers of the cells of one part of the split, ascending."""
        return np.flatnonzero(self.split == part)

    @property
    def groups(self) -> np.ndarray | None:
        """The group of each cell of the store, int32 [cells], -1 for none, where the run has a group column."""
        return self.store.labels(self.config.group).codes if self.config.group else None

    @property
    def seen(self) -> np.ndarray:
        """Whether each cell of the store took part in training, as a training or validation cell, bool [cells]."""
        return np.isin(self.split, (TRAIN, VALIDATION))


def training_view(store: Store, config: PretrainConfig) -> CountsView:
    """Return the counts that a run is trained on."""
    return ShuffledView(store, config.seed) if config.shuffle_values else store


def fit_baselines(
    view: CountsView,
    vocabulary: np.ndarray,
    cells: np.ndarray,
    config: PretrainConfig,
    *,
    log: Callable[[str], None] = lambda _: None,
) -> ClosedForms:
    """Fit the linear baselines of a run on cells that are cut to its `max_genes`; arrays as in `Run`."""
    cut = CutView(view, vocabulary, config.max_genes, config.seed)
    sizes = {"components": config.components, "factors": config.factors}
    return fit_closed_forms(cut, vocabulary, cells, seed=config.seed, log=log, **sizes)


def home(path: Path, config: PretrainConfig) -> Path:
    """Return the folder that a run may keep its store in: its own, or the one that all folds are in."""
    return path.resolve().parent if config.folds else path.resolve()


def save_model(path: Path, model: Model, score: Mapping[str, Any]) -> None:
    """Write the model, and next to it its shape and score."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with replacing(path / "model.safetensors") as unfinished:
        unfinished.write_bytes(save(tensors))  # save_file makes a file of its own, which a kill leaves behind
    write_json(path / "model.json", {"model": asdict(model.config), "score": dict(score)})


def open_run(path: Path) -> Run:
    """Read a run back. Raises DataError when it is incomplete or damaged."""
    for name in (*SETTING, "data.json"):
        if not (path / name).is_file():
            raise DataError(f"the run {path} lacks {name}; it did not get as far as training: train again.")
    try:
        forms = ClosedForms(**load_arrays(path / "forms.safetensors"))
        genes, split = pd.read_parquet(path / "genes.parquet"), _array(path / "split.npy")
        vocabulary, config = _array(path / "vocabulary.npy"), read_toml(PretrainConfig, path / "config.toml")
        written = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        if "mask" not in written:
            msg = "config.toml does not hold the options of the run"
            raise ValueError(msg)
        former = {
            "start": "ridge",
            "hidden_sum": False,
            "correction_steps": 0,
        }  # of runs that were made before there was a choice
        config = replace(config, **{name: value for name, value in former.items() if name not in written})
        _check_setting(genes, forms, split, vocabulary)
        return Run(path, config, genes, forms, split, vocabulary)
    except Exception as error:  # of numpy, pandas, safetensors and tomllib, which have many kinds
        raise DataError(f"the run {path} is damaged ({said(error)}); train again.") from error


def _array(path: Path) -> np.ndarray:
    """Read an array that is as large as its file, whatever its head says."""
    return np.array(np.load(path, mmap_mode="r"))


def _check_setting(genes: pd.DataFrame, forms: ClosedForms, split: np.ndarray, vocabulary: np.ndarray) -> None:
    """Raise ValueError where the arrays of a run do not belong together; arrays as in `Run`."""
    if not all(type(name) is str for column in ("id", "symbol") for name in genes[column]):
        msg = "genes.parquet holds names that are no text"
        raise ValueError(msg)
    arrays, g = vars(forms), len(genes)
    k, j = (arrays[name].shape[-1] if arrays[name].ndim == 2 else -1 for name in ("axes", "loadings"))
    shapes = {
        **{"gene_mean": (g,), "depth": (g, 2), "axes": (g, k), "origin": (k,), "ridge": (g, k + 2)},
        **{"total": (g, k + 3), "loadings": (g, j), "noise": (g,), "total_of_x": (k + 2,), "scales": (4,)},
    }
    if {name: array.shape for name, array in arrays.items()} != shapes:
        msg = "forms.safetensors does not fit genes.parquet"
        raise ValueError(msg)
    if not all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays.values()):
        msg = "forms.safetensors holds values that are no numbers"
        raise ValueError(msg)
    if split.ndim != 1 or split.dtype != np.int8 or not np.isin(split, (TRAIN, VALIDATION, HELD_OUT, LEFT_OUT)).all():
        msg = "split.npy is no split of cells"
        raise ValueError(msg)
    known = vocabulary[vocabulary != -1] if vocabulary.ndim == 1 and vocabulary.dtype == np.int32 else []
    if not np.array_equal(known, np.arange(g)):
        msg = "vocabulary.npy does not number the genes of genes.parquet"
        raise ValueError(msg)
