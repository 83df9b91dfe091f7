"""Brings a file of known length and sha256 here, from a web server or a folder such as a USB stick.

What has arrived stays in a part file, so that a cut, a kill or a restart costs nothing but time:

1. A transfer goes on after the bytes that are there. A server that cannot do that, or answers a
   range with another one or with 416, is asked for the whole file; only when that begins to come,
   with the right length, the part is given up.
2. No more than `length` bytes are written, whatever the server sends, and their room is taken
   first. A disk that is full is `NoSpace`, never a failure of the network.
3. A transfer ends by its deadline, below the least rate (updater/pace.py), and when it is not
   wanted any more; also while it connects, in the middle of a header, and while nothing comes.
4. Encoded bodies and web pages are no files: a captive portal's page costs no part.
5. What is there in the end is read from the disk and compared with the sha256. When it differs and
   some of it was there before, that may be at fault: all of it is fetched once more.
6. What is returned from is on the disk, durably.

There is no `If-Range`: a part belongs to one sha256, which is checked in the end. Another server's
or another day's ETag would throw good bytes away.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote

from updater import atomic, space
from updater.errors import FetchFailed, FetchReason, NoSpace, TrustReason, Untrusted
from updater.names import check_digest
from updater.pace import Pace
from updater.web import Line, Timeouts, get, refused, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import urllib3

_CHUNK_BYTES = 1 << 17
_LOOK_EVERY_S = 0.1
"""How long a cancelled or hopeless transfer goes on at most."""
_OK, _PARTIAL, _NOT_FOUND, _BAD_RANGE = 200, 206, 404, 416
_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO})


@dataclass(frozen=True, slots=True)
class Limits:
    """How slow one call may be; what has arrived is there for the next one.

    Attributes:
        connect_timeout_s: for each address of a server.
        least_rate_bytes_s: average over each window. Slower than the slowest link that is worth
            waiting for (GPRS).
        rate_window_s: so long nothing may arrive, too.
        deadline_s: for all of it.
    """

    connect_timeout_s: float = 20.0
    least_rate_bytes_s: float = 1000.0
    rate_window_s: float = 60.0
    deadline_s: float = 6 * 3600.0


def _ignore(_received: int, _length: int) -> None:
    """Nobody is watching."""


def _never() -> bool:
    return False


def fetch(
    source: str,
    name: str,
    part: Path,
    *,
    length: int,
    sha256: str,
    limits: Limits = Limits(),
    on_progress: Callable[[int, int], None] = _ignore,
    cancelled: Callable[[], bool] = _never,
) -> None:
    """Complete a part file. Once it returns, that is the file, verified and durable.

    Args:
        source: http:// or https:// URL, or the path of a folder.
        name: below that, percent-encoded where it needs to be.
        part: this sha256's own file, begun or not; its folder exists. Nobody else writes it.
        length: bytes of the file, as signed.
        sha256: of the file, as signed.
        on_progress: told how many bytes are there, and the length.
        cancelled: asked ten times a second, from another thread, whether to give up.

    Raises:
        FetchFailed: it did not arrive; the part is kept for the next try.
        Untrusted: MISMATCH, it arrived and is something else; the part is gone.
        NoSpace: the disk cannot hold it; the part is kept.
        OSError: the disk refused otherwise.
    """
    check_digest(sha256)
    with _watched(limits, cancelled) as watch:
        transfer = _Transfer(source, name, part, length, limits, watch, on_progress)
        was_begun = transfer.run()
        if not _is(part, sha256) and was_begun:
            atomic.remove(part)
            transfer.run()
        if not _is(part, sha256):
            atomic.remove(part)
            raise Untrusted(
                TrustReason.MISMATCH, f"{source}: {name} is not what was signed: expected {sha256}"
            )
    atomic.sync_file(part)
    atomic.sync_folder(part.parent)


class _Watch:
    """What one call's two threads share: the line, and how many bytes have come over it."""

    def __init__(self) -> None:
        self.line = Line()
        self.received_bytes = 0


@contextmanager
def _watched(limits: Limits, cancelled: Callable[[], bool]) -> Iterator[_Watch]:
    """A thread that ends what takes too long or is not wanted (rule 3)."""
    watch = _Watch()
    pace = Pace(
        time.monotonic(),
        deadline_s=limits.deadline_s,
        window_s=limits.rate_window_s,
        least_rate_bytes_s=limits.least_rate_bytes_s,
    )
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(_LOOK_EVERY_S):
            if cancelled():
                watch.line.cut(FetchFailed(FetchReason.CANCELLED, "not wanted any more"))
            elif reason := pace.judge(time.monotonic(), watch.received_bytes):
                watch.line.cut(FetchFailed(FetchReason.TOO_SLOW, reason))

    thread = threading.Thread(target=look, name="transfer-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        is_over.set()
        thread.join()
        watch.line.close()


@dataclass(frozen=True, slots=True)
class _Transfer:
    """One file on its way from one source into one part file."""

    source: str
    name: str
    part: Path
    length: int
    limits: Limits
    watch: _Watch
    on_progress: Callable[[int, int], None]

    def run(self) -> bool:
        """Complete the part; whether it had been begun before.

        Raises:
            FetchFailed, NoSpace, OSError: as for `fetch`.
        """
        there = self._there()
        if there < self.length or not self.part.exists():
            if self.source.startswith(("http://", "https://")):
                self._from_web(there)
            else:
                self._from_folder(there)
        return there > 0

    def _there(self) -> int:
        """How many bytes the part has; as many as it should or more are judged by the digest."""
        try:
            return self.part.stat().st_size
        except FileNotFoundError:
            return 0

    def _from_web(self, there: int) -> None:
        url = f"{self.source.rstrip('/')}/{self.name}"
        timeouts = Timeouts(self.limits.connect_timeout_s, self.limits.rate_window_s)
        if there:
            headers = {"Range": f"bytes={there}-"}
            with get(url, headers, timeouts, self.watch.line) as response:
                if self._goes_on(response, there):
                    return self._take(response.read1, there)
                if response.status not in {_PARTIAL, _BAD_RANGE}:
                    return self._take_whole(url, response)
        with get(url, {}, timeouts, self.watch.line) as response:
            return self._take_whole(url, response)

    def _goes_on(self, response: urllib3.BaseHTTPResponse, there: int) -> bool:
        """Whether an answer begins where the part ends (rule 1)."""
        answer = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        return (
            response.status == _PARTIAL
            and _is_plain(response)
            and answer is not None
            and int(answer[1]) == there <= int(answer[2]) < self.length
            and answer[3] in {"*", str(self.length)}
        )

    def _take_whole(self, url: str, response: urllib3.BaseHTTPResponse) -> None:
        if response.status != _OK:
            raise refused(url, response)
        if not _is_plain(response):
            raise refused(url, response, "the server answered with a web page or encoded bytes")
        size = response.headers.get("Content-Length", str(self.length))
        if size != str(self.length):
            why = f"the server has {shown(size)} bytes, expected {self.length}"
            raise refused(url, response, why)
        self._take(response.read1, 0)

    def _from_folder(self, there: int) -> None:
        path = Path(self.source, unquote(self.name))
        with _opened(path, Path(self.source)) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes != self.length:
                message = f"{path}: {size_bytes} bytes, expected {self.length}"
                raise FetchFailed(FetchReason.STATUS, message)
            file.seek(there)

            def read(size_bytes: int) -> bytes:
                try:
                    return file.read(size_bytes)
                except OSError as exc:  # the stick has been pulled out
                    raise _unreadable(path, exc) from exc

            self._take(read, there)

    def _take(self, read: Callable[[int], bytes], there: int) -> None:
        """Append to the part (rule 2).

        Args:
            read: at most so many bytes; none at the end.
            there: bytes of the part that stay.
        """
        try:
            with self.part.open("ab", buffering=0) as file:
                file.truncate(there)
                if there < self.length:
                    space.allocate(self.part, self.length)
                self._append(read, file, there)
        except OSError as exc:
            if exc.errno not in _FULL:
                raise
            raise NoSpace(
                f"the disk is full: {self.length} bytes of {self.name}",
                needed_bytes=self.length,
                free_bytes=space.look(self.part.parent).free_bytes,
            ) from exc

    def _append(self, read: Callable[[int], bytes], file: BinaryIO, there: int) -> None:
        self.on_progress(there, self.length)
        while there < self.length:
            self.watch.line.check()
            chunk = read(min(_CHUNK_BYTES, self.length - there))
            if not chunk:
                self.watch.line.check()  # a line that was cut looks like the end of a body
                message = f"{self.source}: {self.name} ended after {there} of {self.length} bytes"
                raise FetchFailed(FetchReason.CUT, message)
            _write(file, chunk)
            there += len(chunk)
            self.watch.received_bytes += len(chunk)
            self.on_progress(there, self.length)


def _write(file: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _is_plain(response: urllib3.BaseHTTPResponse) -> bool:
    """Whether the body is the file's own bytes (rule 4)."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return encoding in {"", "identity"} and kind not in {"text/html", "application/xhtml+xml"}


def _is(part: Path, sha256: str) -> bool:
    with part.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


@contextmanager
def _opened(path: Path, folder: Path) -> Iterator[BinaryIO]:
    """A plain file below a folder: a pipe or a device with its name would wait for ever."""
    if ".." in path.parts or not path.is_relative_to(folder) or "\0" in str(path):
        raise _missing(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as exc:
        if exc.errno not in _MISSING:
            raise _unreadable(path, exc) from exc
        if not folder.is_dir():
            message = f"{folder}: there is no such folder"
            raise FetchFailed(FetchReason.UNREACHABLE, message) from exc
        raise _missing(path) from exc
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _missing(path)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def _missing(path: Path) -> FetchFailed:
    message = f"{path}: there is no such file"
    return FetchFailed(FetchReason.STATUS, message, status=_NOT_FOUND)


def _unreadable(path: Path, exc: OSError) -> FetchFailed:
    return FetchFailed(FetchReason.CUT, f"{path}: {exc.strerror}")
