"""What can go wrong with an update: one class for each decision a caller can make."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class UpdateError(Exception):
    """Base of all errors of the updater. Whatever happens, the box goes on serving what it has."""


class TrustReason(Enum):
    """Why metadata is not believed."""

    NO_ROOT = "no_root"  # there is no trust anchor on this device
    UNSIGNED = "unsigned"  # too few good signatures
    EXPIRED = "expired"
    ROLLBACK = "rollback"  # older than what was seen before, or below a signed floor
    MISMATCH = "mismatch"  # length or digest is not what the signed metadata says
    MALFORMED = "malformed"  # no metadata at all: garbage, a captive portal's page
    TOO_LARGE = "too_large"


class Untrusted(UpdateError):
    """Metadata or bytes are not what somebody with the right keys signed. Nothing was changed.

    Attributes:
        role: of the metadata: "root", "timestamp", a delegation's name; "" when not known.
    """

    def __init__(self, reason: TrustReason, message: str, *, role: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.role = role


class FetchReason(Enum):
    """Why bytes did not arrive."""

    UNREACHABLE = "unreachable"
    CUT = "cut"  # the connection ended too early
    TOO_SLOW = "too_slow"  # below the least rate, or the deadline passed
    STATUS = "status"  # the server answered with something else than the bytes
    CANCELLED = "cancelled"  # they are not wanted any more


class FetchFailed(UpdateError):
    """Bytes did not arrive; try again later. What did arrive is kept for that.

    Attributes:
        status: the HTTP status, 0 when there was none.
        retry_after_s: seconds the server asks to wait, else None.
    """

    def __init__(
        self,
        reason: FetchReason,
        message: str,
        *,
        status: int = 0,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status
        self.retry_after_s = retry_after_s


class BundleRejected(UpdateError):
    """These bytes are no bundle that this device may open; never try the same digest again."""


class CannotBundle(UpdateError):
    """These files make no bundle; the message is for the publisher."""


class Refusal(Enum):
    """Why policy does not let a signed bundle in."""

    WRONG_DEVICE = "wrong_device"  # architecture, runtime or accelerator do not fit
    BELOW_FLOOR = "below_floor"
    BLOCKED = "blocked"  # its digest is on the signed list of blocked ones
    QUARANTINED = "quarantined"  # it has failed here before


class NotAllowed(UpdateError):
    """Policy refuses a bundle that is signed; another one, or an operator's word, may help."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(message)
        self.refusal = refusal


class NoSpace(UpdateError):
    """There is no room on the disk, even after everything unneeded was removed; try again later.

    Attributes:
        needed_bytes, free_bytes: what the step takes, and what there is beyond the reserve.
    """

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class Damaged(UpdateError):
    """What is on disk is not what was written there: put it aside and do without it.

    Attributes:
        path: of the file or folder.
        problem: what is wrong with it, in words.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class DaemonUnavailable(UpdateError):
    """The inference daemon does not answer on its unix socket; try again later."""
