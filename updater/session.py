"""Work with one source of signed metadata: python-tuf's client, with our time, errors and bounds.

What comes out of a session is verified; what of it is kept, and how, is trust.py's matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn, TypeAlias
from urllib.parse import unquote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.ngclient import Updater
from tuf.ngclient.fetcher import FetcherInterface

from updater.chain import Chain
from updater.desired import DESIRED_PATH, MAX_DESIRED_BYTES, Desired, parse_desired
from updater.errors import FetchFailed, TrustReason, Untrusted
from updater.floors import FLEET, ROOT, TOP_LEVEL, Floors, check_versions, held, raised
from updater.source import Limits, read
from updater.target import SignedFile, bundle_path, sha256_of
from updater.view import View, check_expiry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from updater.signedtime import Reference

_Found: TypeAlias = dict[str, SignedFile | Untrusted | None]
_DESIRED_FILE = "files/desired.json"
"""Where it lies beside the metadata; no role's file can have that name."""
_REASONS: tuple[tuple[type[RepositoryError], TrustReason], ...] = (
    (UnsignedMetadataError, TrustReason.UNSIGNED),
    (ExpiredMetadataError, TrustReason.EXPIRED),
    (LengthOrHashMismatchError, TrustReason.MISMATCH),
    (BadVersionNumberError, TrustReason.ROLLBACK),
)
"""Anything else that python-tuf says of a repository is MALFORMED."""
_DOCUMENT = re.compile(r"metadata/(?:\d+\.)?(?P<role>.+)\.json")
_EXPIRED = re.compile(r"(?P<role>\S+?)(?:\.json)? is expired")


class Session:
    """Work with one source: verified metadata in a folder that nobody else reads yet.

    Attributes:
        folder: python-tuf's.
    """

    def __init__(
        self,
        folder: Path,
        anchor: bytes,
        source: str,
        *,
        limits: Limits,
        floors: Floors,
        believe: Callable[[float], Reference],
        cancelled: Callable[[], bool],
    ) -> None:
        """Begin (`Trust.session`).

        Args:
            floors: what was seen until now.
            believe: the newest signed time to what time it is.
            cancelled: as for `source.read`.

        Raises:
            Untrusted: NO_ROOT.
        """
        self.folder = folder
        self._fetcher = _Fetcher(source, limits, cancelled)
        self._floors = floors
        self._believe = believe
        self._reference = believe(floors.signed_time)
        self._fleet_floors: Mapping[str, int] = {}
        try:
            # "metadata/" is where the documents lie below the source.
            self._updater = Updater(
                str(folder), "metadata/", fetcher=self._fetcher, bootstrap=anchor
            )
        except RepositoryError as exc:
            message = f"the trust anchor of this device cannot be used: {exc}"
            raise Untrusted(TrustReason.NO_ROOT, message, role=ROOT) from exc
        _set_time(self._updater, self._reference)

    def refresh(self) -> None:
        """Bring the top-level metadata up to date.

        Raises:
            Untrusted, FetchFailed: as `Trust.refresh`.
        """
        with self._fetcher.translated():
            self._updater.refresh()
        chain = Chain(self.folder)
        floors = self.hold_floors(chain)
        # What has just come may tell the time better than what was known: a clock that was not
        # believed can be right after all, and then what has expired must not slip through.
        self._reference = self._believe(floors.signed_time)
        _set_time(self._updater, self._reference)
        top_level = {role: signed for role, signed in chain.roles.items() if role in TOP_LEVEL}
        check_expiry(top_level, self._reference.now)

    def find(self, path: str) -> SignedFile | None:
        """What is signed of a target, after a refresh; None where nobody has signed it.

        Raises:
            Untrusted, FetchFailed: as `Trust.refresh`.
        """
        with self._fetcher.translated():
            info = self._updater.get_targetinfo(path)
        if info is None:
            return None
        chain = Chain(self.folder)
        return chain.describe(info, chain.role_of(path))

    def look_at_fleet(self) -> View:
        """Fetch the fleet's wish, and what is signed of each bundle it names.

        Raises:
            Untrusted, FetchFailed: as `Trust.refresh`; what is wrong with a single bundle is kept
                for who asks for that.
        """
        desired = self._fetch_desired()
        problems = {path: self._load_roles(path) for path in _wished_paths(desired)}
        chain = Chain(self.folder)
        found: _Found = {path: problem or chain.find(path) for path, problem in problems.items()}
        return _make_view(chain, self.hold_floors(chain), self._reference, desired, found)

    def hold_floors(self, chain: Chain) -> Floors:
        """What this device has seen, with the session's metadata.

        Raises:
            Untrusted: ROLLBACK, something of it is older than what was seen before.
        """
        floors = held(self._floors, chain.authorities)
        check_versions(floors, chain.roles)
        return raised(floors, chain.roles, self._fleet_floors)

    def _load_roles(self, path: str) -> Untrusted | None:
        """Have python-tuf load the roles that may list a target; what is wrong with them."""
        try:
            with self._fetcher.translated():
                self._updater.get_targetinfo(path)
        except Untrusted as exc:
            return exc
        return None

    def _fetch_desired(self) -> Desired | None:
        file = self.find(DESIRED_PATH)
        if file is None:
            return None
        if file.role != FLEET:
            message = f"{DESIRED_PATH} is signed by '{file.role}', only '{FLEET}' may do that"
            raise Untrusted(TrustReason.MALFORMED, message, role=file.role)
        desired = _stored_desired(self.folder, file) or self._download_desired(file)
        self._fleet_floors = desired.floors
        return desired

    def _download_desired(self, file: SignedFile) -> Desired:
        if file.length > MAX_DESIRED_BYTES:
            message = f"{file.path} has {file.length} bytes, at most {MAX_DESIRED_BYTES} are read"
            raise Untrusted(TrustReason.TOO_LARGE, message, role=file.role)
        raw = self._fetcher.read(file.location, file.length)
        if not _is(raw, file):
            message = f"{file.path} is not what was signed"
            raise Untrusted(TrustReason.MISMATCH, message, role=file.role)
        desired = parse_desired(raw)
        stored = self.folder / _DESIRED_FILE
        stored.parent.mkdir(exist_ok=True)
        stored.write_bytes(raw)
        return desired


def stored_view(folder: Path, floors: Floors, reference: Reference) -> View | None:
    """What an earlier session has left in a folder; None when that is not whole.

    Raises:
        Untrusted: the fleet's wish was kept by a program that understood more of it.
        OSError: it cannot be read.
    """
    chain = Chain(folder)
    if not chain.is_complete:
        return None
    desired = _stored_desired(folder, chain.find(DESIRED_PATH))
    found: _Found = {path: chain.find(path) for path in _wished_paths(desired)}
    return _make_view(chain, floors, reference, desired, found)


class _Fetcher(FetcherInterface):
    """Brings python-tuf the documents of a source, with our bounds and our errors."""

    def __init__(self, source: str, limits: Limits, cancelled: Callable[[], bool]) -> None:
        self._source = source
        self._limits = limits
        self._cancelled = cancelled
        self._latest = ""

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Read a document below the source.

        Raises:
            FetchFailed, Untrusted: as `source.read`.
        """
        self._latest = name
        try:
            return read(
                self._source,
                name,
                limit_bytes=limit_bytes,
                limits=self._limits,
                cancelled=self._cancelled,
            )
        except Untrusted as exc:
            raise Untrusted(exc.reason, str(exc), role=self._role()) from exc

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As python-tuf wants it; of errors, it must know of the missing document alone."""
        try:
            return self.read(url, max_length)
        except FetchFailed as exc:
            if exc.status:
                raise DownloadHTTPError(str(exc), exc.status) from exc
            raise

    def _fetch(self, url: str) -> NoReturn:
        raise RuntimeError(f"{url}: python-tuf is used for metadata alone")

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what python-tuf says into our errors.

        Raises:
            Untrusted, FetchFailed: as `Trust.refresh`.
        """
        try:
            yield
        except DownloadHTTPError as exc:
            cause = exc.__cause__
            if isinstance(cause, FetchFailed):  # as `download_bytes` has made it
                raise cause from None
            raise
        except RepositoryError as exc:
            reason = next((reason for kind, reason in _REASONS if isinstance(exc, kind)), None)
            expired = _EXPIRED.search(str(exc))
            role = expired["role"] if expired else self._role()
            message = f"{role}: {exc}"
            raise Untrusted(reason or TrustReason.MALFORMED, message, role=role) from exc

    def _role(self) -> str:
        """Whose document was asked for last."""
        document = _DOCUMENT.fullmatch(self._latest)
        return unquote(document["role"]) if document else FLEET


def _set_time(updater: Updater, reference: Reference) -> None:
    """Give python-tuf our time; it has no public way to be told (python-tuf 7.0, 2025).

    Raises:
        RuntimeError: it keeps its time elsewhere now: this program must not run with it.
    """
    trusted = getattr(updater, "_trusted_set", None)
    if trusted is None or not hasattr(trusted, "reference_time"):
        raise RuntimeError("this python-tuf cannot be given a time; see updater/session.py")
    trusted.reference_time = datetime.fromtimestamp(reference.now, UTC)


def _make_view(
    chain: Chain,
    floors: Floors,
    reference: Reference,
    desired: Desired | None,
    found: _Found,
) -> View:
    counters = {model: floor.value for model, floor in floors.counters.items()}
    for model, version in _wishes(desired):
        path = bundle_path(model, version)
        file = found[path]
        if isinstance(file, SignedFile):
            try:
                offline = chain.offline_floor(file.role, model)
            except Untrusted as exc:
                found[path] = exc
            else:
                if offline > counters.get(model, 0):
                    counters[model] = offline
    return View(chain.roles, reference, desired, counters, found)


def _wishes(desired: Desired | None) -> Iterator[tuple[str, int]]:
    """Every model and version that some device shall have."""
    for group in desired.groups if desired else ():
        yield from group.models.items()


def _wished_paths(desired: Desired | None) -> list[str]:
    return [bundle_path(model, version) for model, version in dict.fromkeys(_wishes(desired))]


def _stored_desired(folder: Path, file: SignedFile | None) -> Desired | None:
    """The wish that lies beside the metadata, if it is the one that is signed."""
    stored = folder / _DESIRED_FILE
    if file is None or not stored.is_file():
        return None
    raw = stored.read_bytes()
    return parse_desired(raw) if _is(raw, file) else None


def _is(raw: bytes, file: SignedFile) -> bool:
    return len(raw) == file.length and hashlib.sha256(raw).hexdigest() == sha256_of(file)
