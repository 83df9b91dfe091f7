"""Reads small documents of a repository: from a web server, or from a folder such as a USB stick.

Nothing here is believed; it is only bounded, so that no server, no stick and no captive portal can
hold the updater or fill its memory:

1. At most `limit_bytes` are taken.
2. The whole reading ends by a deadline, whatever trickles in: handshake, headers or body.
3. Only plain files are read from a folder: a pipe or a device that has a document's name would
   wait for ever.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from updater.errors import FetchFailed, FetchReason, TrustReason, Untrusted
from updater.web import Line, Timeouts, get, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

_OK, _NOT_FOUND = 200, 404
_CHUNK_BYTES = 1 << 16
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


def read(source: str, name: str, *, limit_bytes: int, limits: Limits = Limits()) -> bytes:
    """Read a document.

    Args:
        source: http:// or https:// URL of a repository, or the path of its folder.
        name: below that, "metadata/timestamp.json"; percent-encoded where it needs to be.

    Raises:
        FetchFailed: it did not arrive; status 404 when the source has none of that name.
        Untrusted: TOO_LARGE, there is more than `limit_bytes`.
    """
    if source.startswith(("http://", "https://")):
        raw = _read_web(f"{source.rstrip('/')}/{name}", limit_bytes, limits)
    else:
        raw = _read_file(Path(source), name, limit_bytes)
    if len(raw) > limit_bytes:
        raise Untrusted(TrustReason.TOO_LARGE, f"{name} has more than {limit_bytes} bytes")
    return raw


def _read_web(url: str, limit_bytes: int, limits: Limits) -> bytes:
    timeouts = Timeouts(connect_s=limits.silence_s, silence_s=limits.silence_s)
    with (
        _line_until(limits.deadline_s(limit_bytes), url) as line,
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
def _line_until(deadline_s: float, url: str) -> Iterator[Line]:
    """A line that is cut after so many seconds."""
    late = FetchFailed(FetchReason.TOO_SLOW, f"{url}: not there after {deadline_s:g} s")
    with closing(Line()) as line:
        timer = threading.Timer(deadline_s, line.cut, (late,))
        timer.daemon = True
        timer.start()
        try:
            yield line
        finally:
            timer.cancel()


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
