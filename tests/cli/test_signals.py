"""SIGTERM and Ctrl-C end a command with one sentence, which says how it goes on."""

import os
import signal
import time

import pytest
from typer.testing import CliRunner

from sckit.cli.app import app
from sckit.errors import DataError


def end_by(number):
    def end(*arguments, **options):
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 1)  # a moment for the signal to be heard

    return end


def end_in_a_reader_by(number):
    """Where any error is taken for one of a file."""

    def end(*arguments, **options):
        try:
            end_by(number)()
        except Exception as error:
            message = "the file cannot be read."
            raise DataError(message) from error

    return end


def end_in_a_callback_by(number):
    """Where Python drops what the handler raises."""

    class Dropped:
        def __del__(self):
            os.kill(os.getpid(), number)

    def end(*arguments, **options):
        Dropped()
        time.sleep(5)

    return end


@pytest.mark.parametrize("end", [end_by, end_in_a_reader_by, end_in_a_callback_by])
@pytest.mark.parametrize(
    ("number", "code", "sentence"),
    [
        pytest.param(
            signal.SIGTERM, 143, "Error: stopped by SIGTERM; the same command goes on from what is written.", id="term"
        ),
        pytest.param(signal.SIGINT, 130, "Interrupted; the same command goes on from what is written.", id="ctrl-c"),
    ],
)
def test_a_signal_is_one_sentence(monkeypatch, tmp_path, end, number, code, sentence):
    monkeypatch.setattr("sckit.data.prepare.prepare", end(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = CliRunner().invoke(app, ["prepare", "--out", str(tmp_path / "s.sckit")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == code
    assert result.stderr.strip().splitlines()[-1] == sentence
    assert "Traceback" not in result.stderr


def test_a_signal_outside_of_what_says_how_to_go_on_is_a_sentence_too(monkeypatch, tmp_path):
    monkeypatch.setattr("sckit.data.store.open_store", end_by(signal.SIGTERM))
    result = CliRunner().invoke(app, ["info", str(tmp_path / "s.sckit")])
    assert result.exit_code == 143
    assert result.stderr.strip().splitlines() == ["Error: stopped by SIGTERM."]


def test_the_signal_means_what_it_did_afterwards(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    CliRunner().invoke(app, ["info", str(tmp_path)])
    assert signal.getsignal(signal.SIGTERM) is before
