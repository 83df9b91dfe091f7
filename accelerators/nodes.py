"""Files by a pattern for their names, at a price that may be paid every second."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_WILDCARDS = frozenset("*?[")


def find_nodes(root: Path, pattern: str) -> list[Path]:
    """The files in order of their names; none where the folder cannot be read.

    Args:
        pattern: a path below `root`; only its last part may hold wildcards.
    """
    folder, _, name = pattern.rpartition("/")
    base = root / folder
    if not _WILDCARDS.intersection(name):
        return [base / name] if os.path.lexists(base / name) else []
    try:
        names = os.listdir(base)  # noqa: PTH208 (no Path for each of hundreds)
    except OSError:
        return []
    return [base / each for each in sorted(names) if fnmatchcase(each, name)]
