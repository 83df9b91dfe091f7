"""InferenceService: the single way in for every front end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from accelerators.base import ModelReport, SignatureSpec
    from daemon.models.status import ModelStatus, Readiness, VersionStatistics
    from daemon.pipeline.profiles import ModelProfile
    from daemon.tensors import PredictRequest, PredictResult


@dataclass(frozen=True, slots=True)
class Target:
    """A model version that is held for a request: it is not stopped before it is let go.

    Attributes:
        signatures: by name, at least one; the first is the default.
        timeout_s: the time a request may take when it names no deadline.
    """

    model: str
    version: int
    report: ModelReport
    profile: ModelProfile
    signatures: Mapping[str, SignatureSpec]
    timeout_s: float

    @property
    def default_signature(self) -> SignatureSpec:
        """The signature a request gets that names none."""
        return next(iter(self.signatures.values()))


class InferenceService:
    """Finds the model, admits the request, runs it, and gives the answer its meaning."""

    def lease(
        self, model: str, *, version: int | None = None, label: str | None = None
    ) -> AbstractContextManager[Target]:
        """Hold the version that answers for (model, version, label) now; the newest when not said.

        Use it as `with service.lease("m") as target:` around decode, predict and encode, after the
        body is read.

        Raises:
            ModelNotFound, VersionNotFound, LabelNotFound: there is no such thing.
            ModelUnavailable: it is known and cannot answer now.
        """
        raise NotImplementedError

    async def predict(self, target: Target, request: PredictRequest) -> PredictResult:
        """Answer one request.

        Raises:
            SignatureNotFound, BadTensor, UnsupportedMedia, TooLarge, Malformed: bad requests.
            Overloaded: refused at once, nothing was done.
            DeadlineExceeded: the deadline passed first.
            PredictionFailed: the model failed on this input.
            WorkerCrashed, ModelUnavailable: the worker died; the model may be back soon.
        """
        raise NotImplementedError

    def models(self) -> tuple[ModelStatus, ...]:
        """Every known model, by name."""
        raise NotImplementedError

    def model(self, name: str) -> ModelStatus:
        """One model.

        Raises:
            ModelNotFound: it is not known.
        """
        raise NotImplementedError

    def statistics(self, name: str, version: int) -> VersionStatistics:
        """Counters of a version.

        Raises:
            ModelNotFound, VersionNotFound: it is not known or was never loaded.
        """
        raise NotImplementedError

    def readiness(self) -> Readiness:
        """Whether every wanted model answers, and why not."""
        raise NotImplementedError

    async def load(self, name: str) -> None:
        """Want a known model again; returns when it is ready or has failed.

        Raises:
            ModelNotFound: it is not known.
            ModelUnavailable: it was tried and refused, with the reason.
        """
        raise NotImplementedError

    async def unload(self, name: str) -> None:
        """Drain and stop every version of a model until `load` or a restart wants it again.

        Raises:
            ModelNotFound: it is not known.
        """
        raise NotImplementedError
