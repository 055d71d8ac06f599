"""Where a number comes from: versions, machine, commit, memory."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_PACKAGES = ("sckit", "numpy", "scipy", "numba", "torch", "triton", "anndata")
_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


def package_version(name: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, str]:
    """Return the versions of the packages that decide about numbers, the machine, torch's threads and the time."""
    import torch

    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    found |= {name: package_version(name) for name in _PACKAGES}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found | {"threads": str(torch.get_num_threads()), "time": datetime.now(UTC).isoformat(timespec="seconds")}


def measured_on(device: str, dtype: "torch.dtype") -> dict[str, Any]:
    """Return what a speed means nothing without: time, commit, device, dtype, threads, load, malloc and versions."""
    import torch

    found = environment()
    return {
        "time": found["time"],
        "commit": commit(),
        "device": _processor() if device == "cpu" else torch.cuda.get_device_name(),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "malloc": {name: os.environ[name] for name in _MALLOC if name in os.environ},
    } | {package: found[package] for package in ("sckit", "torch", "triton", "numba")}


def commit() -> str | None:
    """Return the commit of the checkout that this file is in, or None when it is installed elsewhere."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False, cwd=root)
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent process held when it started this one
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _processor() -> str:
    """Return the processor's name, vector width and number of cores."""
    from sckit.kernels.simd import host_width

    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), name)
    return f"{name}, {host_width()} float32 lanes, {os.cpu_count()} cores"
