"""Configs: the errors of their bounds, files in TOML, former names."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from sckit.config import EvalConfig, FinetuneConfig, PrepareConfig, PretrainConfig
from sckit.config.options import as_documented, from_dict, options, read_toml, sentences, to_toml
from sckit.errors import ConfigError

CONFIGS = [PrepareConfig, PretrainConfig, EvalConfig, FinetuneConfig]
NEEDED = {"condition": "perturbation", "control": "none"}


def finetune(**options):
    return FinetuneConfig(**NEEDED | options)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_its_sentence(config):
    found = sentences(config)
    assert set(found) == set(options(config))
    assert {field.name for field in fields(config)} == {o.name for o in options(config).values() if not o.gone}
    for name, sentence in found.items():
        assert sentence[0].isupper() or sentence.startswith('"'), name
        assert sentence.endswith("."), name


@pytest.mark.parametrize("config", CONFIGS)
def test_every_choice_is_explained_in_its_sentence(config):
    for name, option in options(config).items():
        for bound in option.bounds:
            words = bound.one.partition("choose ")[2].replace(" or ", ", ").split(", ")
            assert all(word in sentences(config)[name] for word in words), name


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PretrainConfig(min_cells=0), "--min-cells must be at least 1, not 0."),
        (lambda: PretrainConfig(lr=0.0), "--lr must be above 0, not 0."),
        (lambda: PretrainConfig(seed=-1), "--seed must be between 0 and 4294967295, not -1."),
        (lambda: PretrainConfig(warmup=1.0), "warmup 1 is not a share of at least 0 and below 1."),
        (lambda: PretrainConfig(mask="half"), "--mask half is not a share above 0 and at most 1, nor uniform."),
        (lambda: PretrainConfig(mask=float("nan")), "--mask nan is not a share above 0 and at most 1, nor uniform."),
        (lambda: PretrainConfig(preset="huge"), "--preset huge is unknown; choose tiny, small, medium, base or large."),
        (lambda: PretrainConfig(epochs=1, steps=2), "--epochs and --steps are all budgets; give one of them."),
        (lambda: PretrainConfig(minutes=-1), "--minutes must be above 0, not -1."),
        (lambda: EvalConfig(masks=(15.0,)), "--mask 15 is not a share above 0 and at most 1; did you mean 0.15?"),
        (lambda: EvalConfig(masks=(0.5, 0.0)), "--mask 0 is not a share above 0 and at most 1."),
        (lambda: EvalConfig(masks=("uniform",)), "--mask uniform is not a share above 0 and at most 1."),
        (lambda: EvalConfig(masks=()), "--mask needs at least one value."),
        (lambda: EvalConfig(components=500), "--components must be between 0 and 200, not 500."),
        (lambda: EvalConfig(penalty=float("inf")), "--penalty must be between 0 and 1000000000, not inf."),
        (lambda: EvalConfig(seed=2**32), "--seed must be between 0 and 4294967295, not 4294967296."),
        (lambda: PretrainConfig(seed=2**64), "--seed must be between 0 and 4294967295, not 18446744073709551616."),
        (lambda: EvalConfig(contexts=("all",)), "--context all is unknown; choose detected or visible."),
        (lambda: EvalConfig(contexts=("detected", "shuffled")), "--context shuffled is gone: the detection set of "
         "another cell is wrong information, so that a model scores below what depth alone explains; leave it out and "
         'compare with the row "gene mean + depth".'),
        (lambda: EvalConfig(max_cells=1), "--max-cells must be at least 2, not 1."),
        (lambda: EvalConfig(halving="nb"), "--halving nb says how --replicate-halves works; give that too."),
        (lambda: finetune(train_shares=(0.0, 1.0)), "--train-shares 0,1 are not all shares above 0 and at most 1."),
        (lambda: finetune(arms=()), "--arms needs at least one value."),
        (lambda: finetune(arms=("pretrained", "best")), "--arms pretrained,best must name some of pretrained, scratch, "
         "frozen, shuffled or start."),
        (lambda: finetune(split="context"), "--split context is unknown; choose auto, perturbation, covariate or "
         "combination."),
        (lambda: finetune(unseen="donor"), "--unseen donor must be one of the columns that --covariates names (none)."),
        (lambda: PrepareConfig(max_mito=1.2), "--max-mito 1.2 is not a share of at least 0 and at most 1."),
        (lambda: PrepareConfig(genes="-3"), "--genes -3 must be at least 1, or 'all', or a file."),
    ],
)  # fmt: skip
def test_errors_say_the_option_as_it_is_typed(make, sentence):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    "config",
    [
        PretrainConfig(mask="uniform", hold_out=("a, b", 'the "c"\n'), group="d\\e", minutes=1.5, warm_start=False),
        PretrainConfig(mask=1.0, epochs=6),
        EvalConfig(masks=(0.15, 1.0), contexts=("detected", "visible"), replicate_halves=True, halving="nb"),
        PrepareConfig(genes=4000, obs_filter="tissue == 'blood'", raw=True),
        finetune(covariates=("cell_type", "donor"), unseen="donor", split="covariate", train_shares=(0.5,)),
    ],
    ids=repr,
)
def test_a_config_comes_back_from_its_toml(config, tmp_path, capsys):
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert read_toml(type(config), tmp_path / "config.toml") == config
    assert capsys.readouterr().err == ""


def test_the_command_line_wins_over_a_file(tmp_path):
    (tmp_path / "a.toml").write_text("seed = 3\nlr = 1\nhold_out = 'x, y'\ngroup = 'g'\n")
    config = read_toml(PretrainConfig, tmp_path / "a.toml", seed=4, mask="0.4")
    assert config == PretrainConfig(seed=4, lr=1, mask=0.4, hold_out=("x, y",), group="g")
    assert read_toml(PretrainConfig, None, mask="uniform") == PretrainConfig(mask="uniform")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("steps = 'ten'", '`steps = "ten"` in a.toml is not a whole number.'),
        ("steps = 1.5", "`steps = 1.5` in a.toml is not a whole number."),
        ("steps = true", "`steps = true` in a.toml is not a whole number."),
        ("warm_start = 'no'", '`warm_start = "no"` in a.toml is not true or false.'),
        ("warm_start = 1", "`warm_start = 1` in a.toml is not true or false."),
        ("hold_out = [1, 2]", "`hold_out = [1, 2]` in a.toml is not a list of texts."),
        ("group = 3", "`group = 3` in a.toml is not a text."),
        ("masks = 0.4", "a.toml sets masks, which is no option; did you mean mask?"),
        ("[pretrain]\nsteps = 3", "a.toml sets pretrain, which is no option"),
        ("steps", "the config file a.toml cannot be read: "),
    ],
)
def test_wrong_files_are_one_sentence(line, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(line)
    with pytest.raises(ConfigError) as caught:
        read_toml(PretrainConfig, Path("a.toml"))
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("config", "old", "new", "sentences"),
    [
        (EvalConfig, {"replicate_split": True}, {"replicate_halves": True},
         ["the option `replicate_split` of a.toml is called `replicate_halves` now."]),
        (EvalConfig, {"replicate_split": True, "split": "nb"}, {"replicate_halves": True, "halving": "nb"},
         ["the option `replicate_split` of a.toml is called `replicate_halves` now.",
          "the option `split` of a.toml is called `halving` now."]),
        (FinetuneConfig, {"context": ["a"], "spare": 0.1, "context_cells": 3},
         {"covariates": ("a",), "validation_share": 0.1, "control_cells": 3},
         ["the option `context` of a.toml is called `covariates` now.",
          "the option `spare` of a.toml is called `validation_share` now.",
          "the option `context_cells` of a.toml is called `control_cells` now."]),
        (FinetuneConfig, {"split": "context"}, {"split": "covariate"},
         ["the value context of the option `split` of a.toml is called covariate now."]),
        (FinetuneConfig, {"level": "pseudobulk"}, {},
         ["the option `level` of a.toml is not needed any more: pseudobulk is the only way now."]),
    ],
)  # fmt: skip
def test_former_names_in_files_work_and_say_so(config, old, new, sentences, capsys):
    needed = NEEDED if config is FinetuneConfig else {}
    assert from_dict(config, needed | old, "a.toml") == config(**needed | new)
    assert capsys.readouterr().err.splitlines() == sentences


def test_level_cell_is_refused():
    with pytest.raises(ConfigError, match=r"the option `level` of a\.toml cannot be cell any more: pseudobulk is the"):
        from_dict(FinetuneConfig, NEEDED | {"level": "cell"}, "a.toml")


def test_result_documents_keep_the_former_names_and_values():
    document = as_documented(finetune(covariates=("donor",), split="covariate", control_cells=3, validation_share=0.1))
    assert document["context"] == ("donor",)
    assert document["split"] == "context"
    assert document["level"] == "pseudobulk"
    assert document["context_cells"] == 3
    assert document["spare"] == 0.1
    assert set(document) == {
        "condition", "control", "task", "level", "exclude", "replicate", "context", "dose", "target_map", "split",
        "unseen", "folds", "genes", "min_cells", "arms", "seeds", "train_shares", "revealed", "panel", "steps",
        "batch_tokens", "lr", "spare", "context_cells", "margin", "bootstraps", "permute", "allow_seen", "workers",
        "seed", "engine", "device", "separator",
    }  # fmt: skip
    assert document["control"] == NEEDED["control"]
    assert as_documented(finetune(control=("a", "b")))["control"] == ("a", "b")


def test_the_former_place_of_finetune_config_works_and_says_so():
    code = "from sckit.perturb_config import FinetuneConfig; print(FinetuneConfig('a', 'b').steps)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "120\n"
    assert done.stderr == "sckit.perturb_config is sckit.config now: from sckit.config import FinetuneConfig.\n"
