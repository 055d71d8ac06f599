"""Guards of the layout: what the wheel holds, whose name `kernels` is, which way imports point, what loads at start."""

import ast
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [
    ["errors"],
    ["config"],
    ["sources"],
    ["genes", "counts"],
    ["store"],
    ["batch"],
    ["regression", "baselines", "halves", "metrics"],
    ["model", "device"],
    ["run"],
    ["split", "predict", "optimise"],
    ["train"],
    ["evaluation", "embedding"],
    ["perturb"],
    ["report", "progress"],
    ["bench"],
    ["cli"],
]


def room_of(module):
    """Position in the flow of a file by its name, or by the part before an underscore: sources_h5ad is with sources."""
    for position, names in enumerate(ROOMS):
        if module in names or module.split("_")[0] in names:
            return position
    pytest.fail(f"{module} is in no room of tests/test_layout.py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "sckit")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "sckit").glob("*.py")), ids=lambda p: p.stem)
def test_imports_point_one_way(path):
    if path.stem == "__init__":
        return
    own = room_of(path.stem)
    for name in imported(path):
        parts = name.split(".")
        if (
            parts[0] == "sckit"
            and len(parts) > 1
            and parts[1] != "kernels"
            and (ROOT / "sckit" / f"{parts[1]}.py").exists()
        ):
            assert room_of(parts[1]) <= own, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "sckit" / "kernels").glob("*.py")), ids=lambda p: p.stem)
def test_kernels_know_nothing_of_cells(path):
    strangers = [name for name in imported(path) if name.startswith("sckit") and not name.startswith("sckit.kernels")]
    assert strangers == []


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "sckit").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]), ids=lambda p: p.stem
)
def test_files_are_short(path):
    limit = 400 if path.stem.endswith(("_triton", "_numba")) or path.stem in ("simd", "cli") else 300
    assert len(path.read_text().splitlines()) <= limit


def test_a_bare_kernels_is_not_ours():
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or ROOT not in Path(spec.origin).parents
    assert not (ROOT / "sckit" / "kernels" / "__init__.py").exists()


def test_the_wheel_holds_the_kernels(tmp_path):
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    (wheel,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()
    assert "sckit/kernels/attention.py" in names
    assert "sckit/py.typed" in names
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "bench/"))]


def test_help_needs_no_heavy_import():
    heavy = ("torch", "numba", "scanpy", "tiledbsoma", "anndata")
    code = f"import sys, sckit.cli.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_api_has_the_names_of_the_commands():
    import sckit

    for name in sckit.__all__:
        assert getattr(sckit, name) is not None
        assert getattr(sckit, name) is getattr(sckit, name)
    assert callable(sckit.pretrain)
    assert callable(sckit.evaluate)
    assert callable(sckit.embed)
    assert callable(sckit.finetune)
