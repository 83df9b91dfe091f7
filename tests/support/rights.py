"""Having fewer rights for a while: tests that run as root would find nothing forbidden."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be nobody, where this is root; else stay who this is."""
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        os.setegid(_NOBODY - 1)  # a group of nobody, and not the one that stands for unknown ones
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        os.setegid(group)
