"""Fetches one bundle, as patiently as a test likes."""

from __future__ import annotations

import hashlib
import socket
import time
from typing import TYPE_CHECKING

import pytest
from support.inferctl import TIMEOUT_S

from updater.errors import FetchFailed
from updater.fetch import Limits, fetch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


NAME = "targets/digits/0f.digits-2.bundle"


CONTENT = hashlib.shake_128(b"a bundle").digest(300_000)


LENGTH = len(CONTENT)


PATIENT = Limits(connect_timeout_s=10, least_rate_bytes_s=0, rate_window_s=30, deadline_s=60)


IMPATIENT = Limits(connect_timeout_s=10, least_rate_bytes_s=1e6, rate_window_s=0.3, deadline_s=60)


HURRIED = Limits(connect_timeout_s=10, least_rate_bytes_s=0, rate_window_s=30, deadline_s=0.3)


HTML = b"<html><body>Please accept our terms.</body></html>"


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def take(
    source: object,
    part: Path,
    *,
    name: str = NAME,
    content: bytes = CONTENT,
    limits: Limits = PATIENT,
    cancelled: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Fetch what should be `content`."""
    fetch(
        str(source),
        name,
        part,
        length=len(content),
        sha256=sha256_of(content),
        limits=limits,
        on_progress=on_progress,
        cancelled=cancelled,
    )


def failure(source: object, part: Path, **how: object) -> FetchFailed:
    """How fetching fails."""
    with pytest.raises(FetchFailed) as failed:
        take(source, part, **how)
    return failed.value


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_until(holds: Callable[[], bool]) -> None:
    """Look again and again, for a bounded time, at what no event tells of."""
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
