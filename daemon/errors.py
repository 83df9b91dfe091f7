"""The daemon's error tree: one class per decision a caller can make.

Errors know nothing of HTTP or MQTT: each front end owns one table from class to wire answer. The
message is for people: what happened, to what, what was expected.
"""

from __future__ import annotations

from enum import Enum


class DaemonError(Exception):
    """Base of every error the daemon raises on purpose."""


class ConfigError(DaemonError):
    """The configuration cannot be used. Holds every problem found, not only the first.

    Attributes:
        problems: one line each: key path, value, what was expected.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RequestError(DaemonError):
    """The request is at fault: the same request will never succeed."""


class Malformed(RequestError):
    """The bytes are not what the protocol says they must be."""


class BadTensor(RequestError):
    """A tensor has the wrong name, shape, datatype or number of values."""


class UnsupportedMedia(RequestError):
    """The body is not of a kind this model can take."""


class TooLarge(RequestError):
    """The body, picture or sound is over a limit.

    Attributes:
        limit: the bound that was passed.
        unit: of the limit: "bytes", "pixels", "seconds", "values" and so on.
    """

    def __init__(self, message: str, *, limit: int, unit: str) -> None:
        super().__init__(message)
        self.limit = limit
        self.unit = unit


class Unsupported(RequestError):
    """The protocol has it, this server does not offer it."""


class Forbidden(RequestError):
    """The server's configuration does not allow it."""


class NotFound(RequestError):
    """There is no such thing here.

    Attributes:
        model: the model's name as the request gave it.
    """

    def __init__(self, message: str, *, model: str) -> None:
        super().__init__(message)
        self.model = model


class ModelNotFound(NotFound):
    """No model of that name is configured or was found."""

    def __init__(self, model: str) -> None:
        super().__init__(f"model '{shorten(model)}' is not here", model=model)


class VersionNotFound(NotFound):
    """The model is here, the version is not."""

    def __init__(self, model: str, version: int) -> None:
        super().__init__(f"model '{shorten(model)}' has no version {version}", model=model)
        self.version = version


class LabelNotFound(NotFound):
    """The model is here, the version label is not."""

    def __init__(self, model: str, label: str) -> None:
        message = f"model '{shorten(model)}' has no version label '{shorten(label)}'"
        super().__init__(message, model=model)
        self.label = label


class SignatureNotFound(NotFound):
    """The model is here, the signature is not."""

    def __init__(self, model: str, signature: str, known: tuple[str, ...]) -> None:
        names = ", ".join(known)
        message = f"model '{model}' has no signature '{shorten(signature)}'; it has: {names}"
        super().__init__(message, model=model)
        self.signature = signature


class TemporaryError(DaemonError):
    """The server is at fault or busy: the same request may succeed later."""


class ModelUnavailable(TemporaryError):
    """The model is known and cannot answer now.

    Attributes:
        model, version: which one; version is None when no version of it can answer.
        reason: why, as the operator sees it in /readyz.
        passes: True when it is expected to answer again without anybody's doing: it is being
            loaded, restarted or replaced.
    """

    def __init__(
        self, model: str, reason: str, *, version: int | None = None, passes: bool = False
    ) -> None:
        which = f"model '{shorten(model)}'" + (f" version {version}" if version else "")
        super().__init__(f"{which} is not ready: {reason}")
        self.model = model
        self.version = version
        self.reason = reason
        self.passes = passes


class RefusalReason(Enum):
    """Why admission refused a request; the label of inferd_queue_rejections_total."""

    QUEUE_FULL = "queue_full"  # as many requests wait as may wait
    DEADLINE = "deadline"  # it would pass its deadline before its turn comes
    DRAINING = "draining"  # the front end is being stopped


class Overloaded(TemporaryError):
    """Refused at once, before any work was done for it.

    Attributes:
        retry_after_s: when a place may be free, whole seconds, at least 1.
    """

    def __init__(self, message: str, *, reason: RefusalReason, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = retry_after_s


class NotKept(TemporaryError):
    """What was handed over could not be put on disk; whoever has it keeps it and tries later."""


class DeadlineExceeded(TemporaryError):
    """The request's deadline passed before its answer was there."""


class PredictionFailed(TemporaryError):
    """The model, not the request's form, failed on this input."""


class WorkerCrashed(TemporaryError):
    """The worker died with this request in it, and the retry it had is used up."""


def shorten(text: str, limit: int = 100) -> str:
    """Text from outside, made safe for a message: escaped and cut to `limit` characters."""
    safe = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."
