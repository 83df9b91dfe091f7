"""Reads small documents of a repository: from a web server, or from a folder such as a USB stick.

Nothing here is believed; it is only bounded, so that no server, no stick and no captive portal can
hold the updater or fill its memory:

1. At most `limit_bytes` are taken.
2. The whole reading ends by a deadline, whatever trickles in: handshake, headers or body.
3. It also ends when it is not wanted any more.
4. Only plain files are read from a folder: a pipe or a device that has a document's name would
   wait for ever.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from updater.errors import FetchFailed, FetchReason, TrustReason, Untrusted
from updater.web import Line, Timeouts, get, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OK, _NOT_FOUND = 200, 404
_CHUNK_BYTES = 1 << 16
_LOOK_EVERY_S = 0.1
"""How long a cancelled reading goes on at most."""
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a document may take.

    Attributes:
        silence_s: without a byte, and until a server answers.
        patience_s: altogether, beyond what the least rate allows for.
        least_rate_bytes_s: slower than the slowest link that is worth waiting for (GPRS).
    """

    silence_s: float = 20.0
    patience_s: float = 30.0
    least_rate_bytes_s: float = 2000.0

    def deadline_s(self, limit_bytes: int) -> float:
        """Seconds that a document of so many bytes may take."""
        return self.patience_s + limit_bytes / self.least_rate_bytes_s


def _never() -> bool:
    return False


def read(
    source: str,
    name: str,
    *,
    limit_bytes: int,
    limits: Limits = Limits(),
    cancelled: Callable[[], bool] = _never,
) -> bytes:
    """Read a document.

    Args:
        source: http:// or https:// URL of a repository, or the path of its folder.
        name: below that, "metadata/timestamp.json"; percent-encoded where it needs to be.
        cancelled: asked ten times a second, from another thread, whether to give up.

    Raises:
        FetchFailed: it did not arrive, or is not wanted any more; status 404 when the source has
            none of that name.
        Untrusted: TOO_LARGE, there is more than `limit_bytes`.
    """
    if source.startswith(("http://", "https://")):
        raw = _read_web(f"{source.rstrip('/')}/{name}", limit_bytes, limits, cancelled)
    else:
        raw = _read_file(Path(source), name, limit_bytes)
    if len(raw) > limit_bytes:
        raise Untrusted(TrustReason.TOO_LARGE, f"{name} has more than {limit_bytes} bytes")
    return raw


def _read_web(url: str, limit_bytes: int, limits: Limits, cancelled: Callable[[], bool]) -> bytes:
    timeouts = Timeouts(connect_s=limits.silence_s, silence_s=limits.silence_s)
    with (
        _line_until(limits.deadline_s(limit_bytes), url, cancelled) as line,
        get(url, {}, timeouts, line) as response,
    ):
        if response.status != _OK:
            raise refused(url, response)
        body = bytearray()
        # One byte more than the limit shows that there is more: endless data ends here.
        while len(body) <= limit_bytes:
            part = response.read1(min(_CHUNK_BYTES, limit_bytes + 1 - len(body)))
            if not part:
                break
            body += part
        line.check()  # a cut connection looks like the end of a body without a length
        return bytes(body)


@contextmanager
def _line_until(deadline_s: float, url: str, cancelled: Callable[[], bool]) -> Iterator[Line]:
    """A line that is cut after so many seconds, or when it is not wanted any more."""
    late = FetchFailed(FetchReason.TOO_SLOW, f"{url}: not there after {deadline_s:g} s")
    unwanted = FetchFailed(FetchReason.CANCELLED, f"{url}: not wanted any more")
    deadline = time.monotonic() + deadline_s
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(min(_LOOK_EVERY_S, max(0.0, deadline - time.monotonic()))):
            if cancelled():
                line.cut(unwanted)
            elif time.monotonic() >= deadline:
                line.cut(late)
                return

    with closing(Line()) as line:
        watch = threading.Thread(target=look, name="document-watch", daemon=True)
        watch.start()
        try:
            yield line
        finally:
            is_over.set()
            watch.join()


def _read_file(folder: Path, name: str, limit_bytes: int) -> bytes:
    plain = unquote(name)
    path = folder / plain
    if any(part in {"", ".", ".."} for part in plain.split("/")) or "\0" in plain:
        raise _missing(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _missing(path)
            return file.read(limit_bytes + 1)
    except OSError as exc:
        if exc.errno not in _MISSING:
            raise FetchFailed(FetchReason.CUT, f"{path}: {exc.strerror}") from exc
        if folder.is_dir():
            raise _missing(path) from exc
        message = f"{folder}: there is no such folder"
        raise FetchFailed(FetchReason.UNREACHABLE, message) from exc


def _missing(path: Path) -> FetchFailed:
    return FetchFailed(FetchReason.STATUS, f"{path}: there is no such file", status=_NOT_FOUND)
