"""Whether this user may use a device's node in /dev, and what to do about it when not."""

from __future__ import annotations

import grp
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_UNKNOWN = 65534  # as the kernel shows groups that a user namespace, as the unit has, does not know


def denied(node: Path, name: str) -> tuple[str, str]:
    """Why it may not be read and written, and the next step to take; "" and "" when it may.

    Args:
        node: a path to it.
        name: what to call it.
    """
    if os.access(node, os.R_OK | os.W_OK, effective_ids=True):
        return "", ""
    group = _group_of(node)
    if not group:
        step = f"give inferd's user the group of {name}: SupplementaryGroups= in inferd.service"
        return f"no permission to use {name}", step
    return (
        f"no permission to use {name}, which belongs to the group {group}",
        f"give inferd's user that group: SupplementaryGroups={group} in inferd.service",
    )


def _group_of(node: Path) -> str:
    """Its name; "" when it cannot be told."""
    try:
        number = node.stat().st_gid
        return "" if number == _UNKNOWN else grp.getgrgid(number).gr_name
    except (OSError, KeyError):
        return ""
