"""The files of a report, and what all its figures share."""

from pathlib import Path
from typing import Any

import pandas as pd

from sckit.files import replacing, write_json

OUTSIDE = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False, "fontsize": 8}
"""Place of a legend to the right of a panel."""


def save_report(folder: Path, name: str, document: Any, table: pd.DataFrame, figure: Any) -> list[Path]:
    """Write `name`.json, .csv, .png and .svg into a folder, which is made if needed; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("json", "csv")]
    write_json(paths[0], document)
    with replacing(paths[1]) as unfinished:
        table.to_csv(unfinished, index=False)
    return paths + save_figure(folder, name, figure)


def save_figure(folder: Path, name: str, figure: Any) -> list[Path]:
    """Write `name`.png and .svg into a folder; returns the paths."""
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        with replacing(path) as unfinished:
            figure.savefig(unfinished, dpi=150, format=path.suffix[1:])
    return paths


def clean(axis: Any, grid: str = "both") -> None:
    """Draw a light grid along "x", "y" or "both", and no line above and to the right of the panel."""
    axis.grid(visible=True, axis=grid, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
