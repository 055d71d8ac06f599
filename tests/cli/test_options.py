"""Options made from the configs: none is missing, each says what its field says, former names work."""

import pytest
import typer
from typer.testing import CliRunner

import sckit.data.prepare
import sckit.evaluation.evaluate
import sckit.training.folders
from sckit.cli.app import app
from sckit.config import EvalConfig, FinetuneConfig, PrepareConfig, PretrainConfig
from sckit.config.options import options, sentences

COMMANDS = {"prepare": PrepareConfig, "pretrain": PretrainConfig, "eval": EvalConfig, "finetune": FinetuneConfig}


def commands(command=None, name="sckit"):
    """Every command and group by name, as objects of click."""
    command = command or typer.main.get_command(app)
    yield name, command
    for key, one in getattr(command, "commands", {}).items():
        yield from commands(one, f"{name} {key}")


def parameters(command):
    """The parameters of a command by option."""
    return {opt: one for one in dict(commands())[f"sckit {command}"].params for opt in one.opts}


@pytest.fixture
def heard(monkeypatch, tmp_path):
    """The config that reached a stand-in for the work of `eval` or `prepare`, which then stops."""
    configs = []

    def stop(*arguments, **options):
        configs.extend(one for one in (*arguments, options.get("config")) if type(one) in COMMANDS.values())
        raise typer.Exit(0)

    monkeypatch.setattr(sckit.evaluation.evaluate, "evaluate", stop)
    monkeypatch.setattr(sckit.data.prepare, "prepare", stop)
    monkeypatch.setattr(sckit.training.folders, "folder_of", lambda *_: tmp_path / "run")
    return configs


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.mark.parametrize(("command", "config"), COMMANDS.items())
def test_every_field_is_an_option_with_its_sentence_as_help(command, config):
    shown = parameters(command)
    for name, option in options(config).items():
        if option.gone or option.file_only:
            assert option.flag not in shown or shown[option.flag].hidden
            continue
        help_, _, default = shown[option.flag].help.replace(r"\[", "[").partition(" [default: ")
        assert help_ == sentences(config)[name]
        plain = ",".join(map(str, option.default)) if option.many else str(option.default)
        assert default in ("", f"{plain}]", f"{name.replace('_', '-')}]")
        assert bool(default) == (option.default is not False and option.default not in (None, "", ()))
        assert not shown[option.flag].hidden
    assert "--config" in shown


def test_nothing_lacks_its_sentence():
    for name, command in commands():
        assert (command.help or "").strip(), name
        for parameter in command.params:
            assert getattr(parameter, "hidden", False) or parameter.help.strip(), f"{name} {parameter.opts}"
            assert getattr(parameter, "hidden", False) or parameter.help.endswith((".", "]")), (
                f"{name} {parameter.opts}"
            )


@pytest.mark.parametrize(
    ("arguments", "expected", "sentences"),
    [
        (["eval", "--replicate-split", "--split", "nb", "--cells", "9"],
         EvalConfig(replicate_halves=True, halving="nb", max_cells=9),
         ["--cells is called --max-cells now.", "--replicate-split is called --replicate-halves now.",
          "--split is called --halving now."]),
        (["eval", "--cells", "9", "--max-cells", "8"], EvalConfig(max_cells=8), ["--cells is called --max-cells now."]),
        (["eval", "--mask", "0.15", "--mask", "1", "--context", "visible", "--context", "visible"],
         EvalConfig(masks=(0.15, 1.0), contexts=("visible",)), []),
        (["eval", "--decompose"], EvalConfig(masks=(0.15,), decompose=True), []),
        (["eval", "--decompose", "--mask", "1"], EvalConfig(masks=(1.0,), decompose=True), []),
        (["prepare", "--out", "a.sckit", "--genes", "400", "--raw"], PrepareConfig(genes=400, raw=True), []),
    ],
    ids=["former names", "today's name wins", "repeated options", "decompose", "decompose at a share", "prepare"],
)  # fmt: skip
def test_what_is_typed_reaches_the_config(heard, arguments, expected, sentences):
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    assert heard == [expected]
    assert [line for line in result.stderr.splitlines() if line] == sentences


@pytest.mark.parametrize(
    ("arguments", "text", "expected"),
    [
        (["eval", "--seed", "5"], "seed = 4\nmasks = [0.5, 1.0]\n", EvalConfig(seed=5, masks=(0.5, 1.0))),
        (["eval", "--sweep"], "masks = [0.5]", EvalConfig(masks=(0.15, 0.3, 0.5, 0.75, 0.9, 1.0))),
        (["prepare", "--out", "a.sckit"], "min_genes = 200", PrepareConfig(min_genes=200)),
    ],
)
def test_eval_and_prepare_read_config_files(heard, tmp_path, arguments, text, expected):
    (tmp_path / "options.toml").write_text(text)
    result = run(*arguments, "--config", tmp_path / "options.toml")
    assert result.exit_code == 0, result.stderr
    assert heard == [expected]


@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        (["--context-column", "cell_type"], ["--context-column is called --covariates now."]),
        (
            ["--covariates", "cell_type", "--split", "context"],
            ["the value context of --split is called covariate now."],
        ),
        (["--spare", "0"], ["--spare is called --validation-share now."]),
        (["--context-cells", "3"], ["--context-cells is called --control-cells now."]),
        (["--level", "pseudobulk"], ["--level is not needed any more: pseudobulk is the only way now."]),
        (["--level", "cell"], ["Error: --level cannot be cell any more: pseudobulk is the only way now."]),
    ],
    ids=lambda value: " ".join(value[:2]) if value[0].startswith("--") and len(value) > 1 else "",
)
def test_former_options_of_finetune_say_so(tmp_path, options, sentences):
    needed = ["--data", "screen.h5ad", "--condition", "gene", "--control", "none", "--runs", tmp_path]
    result = run("finetune", *needed, *options)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[: len(sentences)] == sentences
    assert "there is no run" in result.stderr or options == ["--level", "cell"]


@pytest.mark.parametrize("command", ["prepare", "pretrain", "eval", "finetune"])
@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_fits_the_terminal_and_hides_former_names(command, columns):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": columns})
    assert max(map(len, result.stdout.splitlines())) <= int(columns)
    for former in ("--level", "--spare", "--context-column", "--replicate-split", "--cells ", "--context-cells"):
        assert former not in result.stdout
