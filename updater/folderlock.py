"""Keeps a second updater out of the state folder: one writer, as `updater/atomic.py` wants it.

The lock is the kernel's and ends with the process, however that ends. Its file stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from updater import atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have the folder for oneself; it is made when it is missing.

    Raises:
        BlockingIOError: another updater has it.
        OSError: the disk refused.
    """
    atomic.make_folder(folder)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            message = f"another inferd-updater is at work in {folder}"
            raise BlockingIOError(exc.errno, message) from None
        yield
    finally:
        os.close(descriptor)
