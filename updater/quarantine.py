"""The quarantine: bundles that have failed on this device, by digest and runtime version.

A bundle in it is not tried again until an operator clears it, or another runtime is installed:
the same bytes fail the same way. Another bundle has another digest, and its own chance.

What a file that is damaged means: nothing is in quarantine, and `recover` says so. A bad bundle
then gets its tries again, which are bounded; the alternative, no updates until somebody comes,
would also keep the good ones away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from updater import atomic
from updater.documents import plain, read_document, set_aside, write_document
from updater.errors import Damaged
from updater.names import SHA256, check_digest

if TYPE_CHECKING:
    from pathlib import Path

_MAX_CASES = 256
"""More bad bundles than a device meets; the one that has been in longest makes room."""

_MAX_BYTES = _MAX_CASES * 8 * 1024  # 1000 characters are 6 KB at most, escaped


@dataclass(frozen=True, slots=True)
class Case:
    """One bundle in quarantine.

    Attributes:
        digest: sha256 of the bundle, hex.
        runtime: version of the runtime it failed on; "" when not known, which is any.
        model, version: what the bundle is.
        reason: of the last failure, for people.
        since: of the last failure, wall seconds.
        failures: how often it has failed, 1 or more.
    """

    digest: Annotated[str, Meta(pattern=rf"\A{SHA256}\Z")]
    runtime: str
    model: str
    version: int
    reason: str
    since: float
    failures: int = 1

    def covers(self, digest: str, runtime: str) -> bool:
        """Whether this case speaks of these bytes on this runtime; "" on either side is any."""
        return digest == self.digest and (runtime == self.runtime or "" in {runtime, self.runtime})


class Quarantine:
    """The cases, in one file.

    Args:
        path: of the file; its folder exists when a case is added.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(
        self, digest: str, *, runtime: str, model: str, version: int, reason: str, now: float
    ) -> None:
        """Put a bundle in quarantine; one that is in counts another failure.

        Raises:
            OSError: the disk refused; the quarantine is as it was.
        """
        cases = {(case.digest, case.runtime): case for case in self.entries()}
        before = cases.pop((check_digest(digest), runtime), None)
        case = Case(
            digest=digest,
            runtime=runtime,
            model=model,
            version=version,
            reason=plain(reason),
            since=now,
            failures=before.failures + 1 if before else 1,
        )
        self._write((*cases.values(), case)[-_MAX_CASES:])

    def find(self, digest: str, *, runtime: str = "") -> Case | None:
        """The case of a bundle on a runtime; None when nothing speaks against it.

        Raises:
            OSError: the disk cannot be read.
        """
        return next((case for case in self.entries() if case.covers(digest, runtime)), None)

    def entries(self) -> tuple[Case, ...]:
        """All cases, the last failure last. None when the file is damaged.

        Raises:
            OSError: the disk cannot be read.
        """
        try:
            return self._read()
        except Damaged:
            return ()

    def clear(self, digest: str | None = None) -> tuple[Case, ...]:
        """Let one bundle, on whatever runtime, or all of them have another chance.

        Returns:
            What was taken out.

        Raises:
            OSError: the disk refused; the quarantine is as it was.
        """
        cases = self.entries()
        cleared = tuple(case for case in cases if digest in {None, case.digest})
        if cleared:
            self._write(tuple(case for case in cases if case not in cleared))
        return cleared

    def recover(self) -> str | None:
        """At the start: put a damaged file aside, make what can be read durable.

        After a kill, the last step of a write may be missing.

        Returns:
            What was wrong with the file; None when it is good, or there is none.

        Raises:
            OSError: the disk refused.
        """
        try:
            self._read()
        except Damaged as exc:
            set_aside(self._path)
            return exc.problem
        if self._path.exists():
            atomic.sync_folder(self._path.parent)
        return None

    def _read(self) -> tuple[Case, ...]:
        found = read_document(self._path, _Cases, max_bytes=_MAX_BYTES)
        return found.cases if found else ()

    def _write(self, cases: tuple[Case, ...]) -> None:
        write_document(self._path, _Cases(cases), max_bytes=_MAX_BYTES)


@dataclass(frozen=True, slots=True)
class _Cases:
    """What is in the file."""

    cases: tuple[Case, ...]
