"""Files that sckit reads and the other reader refuses, where sckit's reading is right: which ones, and why."""

from __future__ import annotations

import re

EXPLAINED: tuple[tuple[str, str, str, str], ...] = ()
"""(format, edits, what the other reader says, why sckit is right); the first three are regular expressions."""


def explanation(name: str, edits: list[str], said: str) -> str | None:
    """Return why sckit is right to read a file that the other reader refuses, None when nothing explains it."""
    for formats, edited, saying, why in EXPLAINED:
        if re.fullmatch(formats, name) and re.search(edited, "; ".join(edits)) and re.search(saying, said):
            return why
    return None
