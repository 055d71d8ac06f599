"""README and docs: the commands run as printed, links lead somewhere, and every figure has its file."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), ROOT / "bench" / "README.md"])


def commands_without_own_data():
    """The `sckit` commands of the README in order, as argument lists, but for blocks that need a user's own files.

    Such files are written in capitals, as in SCREEN.h5ad.
    """
    for block in re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE):
        if not re.search(r"\b[A-Z]{4}[A-Z_0-9]*\b", re.sub(r"#.*", "", block)):
            for line in block.splitlines():
                if line.startswith("sckit "):
                    yield shlex.split(line, comments=True)[1:]


@pytest.mark.slow
def test_every_command_of_the_readme_runs_as_printed(tmp_path):
    commands = list(commands_without_own_data())
    assert [command[0] for command in commands[:2]] == ["pretrain", "eval"]
    assert {"prepare", "info", "embed", "bench"} <= {command[0] for command in commands}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT)}
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "sckit", *command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"sckit {shlex.join(command)}\n{done.stdout}\n{done.stderr}"


def test_the_readme_can_be_read_in_a_few_minutes():
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else str(page.parent.name))
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page.name} links to {link}"


def test_every_file_that_the_results_name_is_kept():
    names = re.findall(r"`([\w.*-]+\.jsonl?)`", (ROOT / "docs" / "results.md").read_text())
    assert len(names) > 5
    for name in names:
        assert list((ROOT / "bench" / "results").glob(name)), name
