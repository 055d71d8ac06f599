import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sckit.config import PretrainConfig
from sckit.config.finetune import ARMS
from sckit.errors import DataError
from sckit.perturbation import fit
from sckit.perturbation.arms import Arms, make_arms, overlap, token_table
from sckit.training.pretrain import pretrain
from sckit.training.run import open_run

from .small_screens import CONFIG, as_anndata, fold_of, predictions, small_screen

SMALL = PretrainConfig(
    engine="numba", batch_tokens=2000, components=3, factors=2, validate_cells=20, steps=2, correction_steps=30
)
TARGETS = {"A": "GENE3", "B": "GENE44", "C": "NOWHERE", "D": "GENE3", "E": "ENSG00000000007"}


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    return open_run(pretrain(simulated.path, SMALL, name="run", runs=tmp_path_factory.mktemp("runs")).run)


@pytest.fixture
def screen(rng):
    return small_screen(rng, genes=20, targets=TARGETS)


@pytest.fixture
def table(run, screen):
    return token_table(run.genes, screen)


def run_genes(names, ids=None):
    return pd.DataFrame({"id": [""] * len(names) if ids is None else ids, "symbol": names})


def test_genes_and_targets_are_matched_by_id_before_symbol(screen):
    ids = [f"ENSG{g:011d}" for g in range(20)]
    screen = replace(screen, genes=pd.DataFrame({"id": ids, "symbol": [f"GENE{g}" for g in range(20)]}))
    genes = run_genes(["GENE44", "GENE5", "old name", "GENE2"], ["", "", ids[7], ids[5]])
    table = token_table(genes, screen)
    expected = np.full(20, -1)
    expected[[5, 7]] = [3, 2]  # the id of gene 5 wins over its symbol, and over the symbol of gene 2
    np.testing.assert_array_equal(table.run_genes[:20], expected)
    # A and D hit a gene predicted, E is found by its id, B only the run knows, C and F are unknown
    assert table.perturbations.tolist() == [3, 20, 21, 3, 7, 22]
    assert table.run_genes[20:].tolist() == [0, -1, -1]
    assert table.n_genes == 20
    assert overlap(table, screen) == {
        "genes": 20, "genes_in_run": 2, "perturbations": 6,
        "targets_named": 5, "targets_in_run": 2, "targets_predicted": 3,
    }  # fmt: skip


def test_a_run_of_other_genes_is_refused(screen):
    with pytest.raises(DataError, match="none of the 20 genes of the data is among the 2 of the run"):
        token_table(run_genes(["Gene1", "Gene2"]), screen)


@pytest.mark.parametrize("task", ["response", "partial"])
def test_arms_share_all_that_no_pretraining_brings(run, table, task):
    arms = Arms(run.path, run.path, table)
    config = replace(CONFIG, task=task)
    built = {name: arms.build(name, config, seed=5, engine="numba") for name in ARMS}
    first = built["scratch"]
    unknown = torch.from_numpy(table.run_genes < 0)
    for name, model in built.items():
        for parameter in set(dict(model.named_parameters())) & model.new_parameters():
            torch.testing.assert_close(model.get_parameter(parameter), first.get_parameter(parameter), msg=name)
        torch.testing.assert_close(model.gene.weight[unknown], first.gene.weight[unknown], rtol=0, atol=0)
        assert model.engine == "numba"
        assert (model.loadings is None) == (task == "response")
    state, frozen = built["pretrained"].state_dict(), built["frozen"].state_dict()
    assert all(torch.equal(state[name], frozen[name]) for name in state)
    weights = run.model()
    torch.testing.assert_close(built["pretrained"].blocks[1].down.weight, weights.blocks[1].down.weight)
    assert not torch.equal(built["start"].blocks[1].down.weight, weights.blocks[1].down.weight)
    assert not torch.equal(first.blocks[1].down.weight, weights.blocks[1].down.weight)
    again = arms.build("scratch", config, seed=6, engine="numba").state_dict()
    assert not torch.equal(again["blocks.1.down.weight"], first.blocks[1].down.weight)


def test_from_scratch_nothing_of_the_run_is_left(run, table, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run.path, other)
    generator = np.random.default_rng(0)
    for name in ("model.safetensors", "forms.safetensors", "offset_forms.safetensors"):
        with safe_open(other / name, "np") as file:
            kept = file.metadata()
        arrays = load_file(other / name)
        noisy = {k: (v + generator.normal(size=v.shape)).astype(v.dtype) for k, v in arrays.items()}
        save_file(noisy, other / name, kept)
    config = replace(CONFIG, task="partial")
    for name in ("scratch", "pretrained", "start"):
        one, two = (Arms(path, None, table).build(name, config, seed=5, engine="numba").state_dict()
                    for path in (run.path, other))  # fmt: skip
        same = {key for key in one if torch.equal(one[key], two[key])}
        assert (same == set(one)) == (name == "scratch"), name
        if name == "pretrained":
            fixed = {"perturbed", "per_dose", "head.weight", "shared_head", "gain", "log_noise_scale"}
            assert same == fixed


def test_the_shuffled_arm_starts_from_the_shuffled_run(run, table, tmp_path):
    shutil.copytree(run.path, tmp_path / "other")
    arrays = load_file(tmp_path / "other" / "model.safetensors")
    save_file({k: v + np.float32(1) for k, v in arrays.items()}, tmp_path / "other" / "model.safetensors")
    arms = Arms(run.path, tmp_path / "other", table)
    shuffled, pretrained = (arms.build(n, CONFIG, seed=0, engine="numba") for n in ("shuffled", "pretrained"))
    torch.testing.assert_close(shuffled.curve, pretrained.curve + 1)


@pytest.mark.parametrize("task", ["response", "partial"])
def test_every_arm_is_shown_the_same_examples_in_the_same_order(run, screen, task, monkeypatch):
    fold = fold_of(screen, task=task, revealed=(0.5,))
    shown, seeds = {}, set()
    plain, build = fit.pack_examples, Arms.build

    def noted(self, *arguments, seed, **others):
        seeds.add(seed)
        return build(self, *arguments, seed=seed, **others)

    monkeypatch.setattr(Arms, "build", noted)
    for name in ("pretrained", "scratch", "frozen"):
        mine = shown.setdefault(name, [])

        def pack(examples, *rest, mine=mine):
            mine += [value for example in examples for value in vars(example).values()]
            return plain(examples, *rest)

        monkeypatch.setattr(fit, "pack_examples", pack)
        predictions(fold, run.path, (name,))
    assert len(seeds) == 1
    assert len(shown["scratch"]) > 100
    for name in ("pretrained", "frozen"):
        assert len(shown[name]) == len(shown["scratch"])
        for one, other in zip(shown[name], shown["scratch"], strict=True):
            np.testing.assert_array_equal(one, other)


# ---- the run on shuffled values


@pytest.fixture
def own_run(run, tmp_path):
    """A copy of the run in a folder of its own."""
    shutil.copytree(run.path, tmp_path / "runs" / "run")
    return open_run(tmp_path / "runs" / "run")


def shuffled_of(run, screen, heard=None):
    on_event = quiet if heard is None else (lambda _, facts: heard.append(facts["text"]))
    return make_arms(run, screen, replace(CONFIG, arms=("pretrained", "shuffled")), on_event=on_event).shuffled


def test_the_shuffled_run_is_made_once_beside_the_run(own_run, screen):
    heard = []
    path = shuffled_of(own_run, screen, heard)
    assert path == own_run.path.with_name("run-shuffled")
    assert heard == [f"arm shuffled: pretraining {path} on shuffled values, 2 steps as in run"]
    made = open_run(path)
    assert made.config == replace(SMALL, shuffle_values=True)
    np.testing.assert_array_equal(made.split, own_run.split)
    assert not np.allclose(made.forms.loadings, own_run.forms.loadings)
    stamp = (path / "model.safetensors").stat().st_mtime_ns
    assert shuffled_of(own_run, screen, heard) == path
    assert len(heard) == 1
    assert (path / "model.safetensors").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in own_run.path.parent.iterdir()) == ["run", "run-shuffled"]


def test_without_the_arm_nothing_is_pretrained(own_run, screen):
    assert make_arms(own_run, screen, replace(CONFIG, arms=("scratch",)), on_event=quiet).shuffled is None
    assert not own_run.path.with_name("run-shuffled").exists()


def test_a_run_with_its_store_inside_finds_its_shuffled_run_again(screen, tmp_path, rng):
    counts = rng.poisson(2.0, (60, 20))
    as_anndata(counts, {"condition": "control"}).write_h5ad(tmp_path / "controls.h5ad")
    run = open_run(pretrain(tmp_path / "controls.h5ad", SMALL, name="run", runs=tmp_path / "runs").run)
    assert json.loads((run.path / "data.json").read_text())["inside"]
    assert shuffled_of(run, screen) == shuffled_of(run, screen)
    assert (tmp_path / "runs" / "latest").resolve() == run.path.resolve()


def damage(path, how):
    """What a folder at the place of the shuffled run can be instead."""
    if how == "of plain values":
        shutil.copytree(path.with_name("run"), path)
        return
    if how == "empty":
        path.mkdir()
        return
    shutil.copytree(path.with_name("run"), path)
    config = (path / "config.toml").read_text().replace("shuffle_values = false", "shuffle_values = true")
    if how == "of other cells":
        where = json.loads((path / "data.json").read_text())
        (path / "data.json").write_text(json.dumps(where | {"manifest_sha256": "0"}))
    if how == "of other steps":
        config = config.replace("steps = 2", "steps = 1")
    if how == "of another seed":
        config = config.replace("seed = 0", "seed = 1")
    if how == "never finished":
        (path / "model.safetensors").unlink()
    (path / "config.toml").write_text(config)


@pytest.mark.parametrize(
    "how",
    ["of plain values", "empty", "of other cells", "of other steps", "of another seed", "never finished"],
    ids=lambda how: how.replace(" ", "-"),
)
def test_a_foreign_folder_in_its_place_is_refused(own_run, screen, how):
    path = own_run.path.with_name("run-shuffled")
    damage(path, how)
    with pytest.raises(DataError, match="run-shuffled is not run on shuffled values, 2 steps; move it away"):
        shuffled_of(own_run, screen)


def test_what_a_killed_pretraining_left_is_no_shuffled_run(own_run, screen):
    left = own_run.path.with_name("run-shuffled.partial")
    shutil.copytree(own_run.path, left)
    path = shuffled_of(own_run, screen)
    assert open_run(path).config.shuffle_values
    assert not left.exists()


def test_a_run_without_steps_has_no_shuffled_twin(own_run, screen):
    (own_run.path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(DataError, match="took no step; give it a budget, or leave the arm shuffled out of --arms"):
        shuffled_of(own_run, screen)
