"""InferenceService: the single way in for every front end."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING, NoReturn

from daemon.codec.validate import check_inputs
from daemon.dispatch import AwaitedJob, sharing_key
from daemon.errors import (
    BadTensor,
    DeadlineExceeded,
    Overloaded,
    SignatureNotFound,
    UnsupportedMedia,
    shorten,
)
from daemon.health import judge_readiness
from daemon.pipeline.light import is_light
from daemon.pipeline.meaning import interpret
from daemon.pipeline.media import MediaLimits, PreparedMedia, prepare
from daemon.pipeline.profiles import InputKind, OutputKind
from daemon.tensors import Meaning, Media, MediaBatch, PredictResult, Timing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Executor
    from types import TracebackType

    from accelerators.base import Array, SignatureSpec
    from daemon.dispatch import Answer
    from daemon.metrics import Metrics
    from daemon.models.registry import ModelRegistry
    from daemon.models.served import ServedVersion, Target
    from daemon.models.status import ModelStatus, Readiness, VersionStatistics
    from daemon.models.traffic import TrafficReport
    from daemon.pipeline.images import Placement
    from daemon.pipeline.profiles import ModelProfile
    from daemon.tensors import PredictRequest


class Lease:
    """Holds a version while a `with` block runs, or from `hold` to `let_go`."""

    __slots__ = ("_served", "hold", "let_go")

    def __init__(self, served: ServedVersion) -> None:
        self._served = served
        self.hold = served.hold
        self.let_go = served.let_go

    @property
    def target(self) -> Target:
        """The version; to be used while it is held, or until the next `await`."""
        target = self._served.target
        if target is None:
            raise RuntimeError("only a version that was loaded can be held")
        return target

    def __enter__(self) -> Target:
        target = self.target
        self.hold()
        return target

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.let_go()


class InferenceService:
    """Finds the model, admits the request, runs it, and gives the answer its meaning."""

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        metrics: Metrics,
        media_limits: MediaLimits,
        media_executor: Executor,
    ) -> None:
        """Store only.

        Args:
            registry: what is served.
            metrics: told of stages, queue and refusals.
            media_limits: bounds of pictures and sounds.
            media_executor: threads that decode them and draw masks, off the event loop.
        """
        self._registry = registry
        self._metrics = metrics
        self._media_limits = media_limits
        self._media_executor = media_executor
        self._loop = asyncio.get_running_loop()

    def lease(self, model: str, *, version: int | None = None, label: str | None = None) -> Lease:
        """Hold the version that answers for (model, version, label) now; the newest when not said.

        Use it as `with service.lease("m") as target:` around decode, predict and encode, after the
        body is read, with nothing awaited between the call and the `with`.

        Raises:
            ModelNotFound, VersionNotFound, LabelNotFound: there is no such thing.
            ModelUnavailable: it is known and cannot answer now.
        """
        return Lease(self._registry.find(model, version, label))

    async def predict(self, target: Target, request: PredictRequest) -> PredictResult:
        """Answer one request.

        Raises:
            SignatureNotFound, BadTensor, UnsupportedMedia, TooLarge, Malformed: bad requests.
            Overloaded: refused at once, nothing was done.
            DeadlineExceeded: the deadline passed first.
            PredictionFailed: the model failed on this input.
            WorkerCrashed, ModelUnavailable: the worker died; the model may be back soon.
        """
        started = time.monotonic()
        signature = self._choose_signature(target, request)
        self.enter(target, now=started, deadline=request.deadline)
        try:
            return await self._answer(target, signature, request, started)
        except BaseException:
            target.counters.add_failure(time.monotonic() - started)
            raise
        finally:
            target.gate.leave()

    def enter(self, target: Target, *, now: float, deadline: float) -> None:
        """Take a place in the version's queue; `target.gate.leave` must follow.

        Args:
            target: from a lease.
            now, deadline: `time.monotonic()` seconds.

        Raises:
            Overloaded, DeadlineExceeded: refused at once; nothing was taken.
        """
        try:
            target.gate.enter(now=now, deadline=deadline)
        except Overloaded as refusal:
            self._metrics.rejected(target.model, refusal.reason.value)
            raise

    def record(
        self, target: Target, answer: Answer, rows: int, *, total_s: float, preprocess_s: float
    ) -> Timing:
        """Count an answered request, and say where its time went.

        Args:
            target: what answered.
            answer: what the invocation gave.
            rows: of this request.
            total_s: seconds from its entry to its answer.
            preprocess_s: seconds of that before it was queued.
        """
        queue_s, invoke_s = answer.queue_s, answer.invoke_s
        postprocess_s = max(0.0, total_s - preprocess_s - queue_s - invoke_s)
        target.counters.add_success(rows, total_s, queue_s, preprocess_s, invoke_s, postprocess_s)
        self._metrics.stages(target.model, queue_s, preprocess_s, invoke_s, postprocess_s)
        return Timing(queue_s, preprocess_s, invoke_s, postprocess_s, total_s)

    def models(self) -> tuple[ModelStatus, ...]:
        """Every known model, by name."""
        return self._registry.models()

    def model(self, name: str) -> ModelStatus:
        """One model.

        Raises:
            ModelNotFound: it is not known.
        """
        return self._registry.model(name)

    def statistics(self, name: str, version: int) -> VersionStatistics:
        """Counters of a version.

        Raises:
            ModelNotFound, VersionNotFound: it is not known or was never loaded.
        """
        return self._registry.statistics(name, version)

    def readiness(self) -> Readiness:
        """Whether every wanted model answers, and why not."""
        return judge_readiness(self._registry.models(), has_looked=self._registry.has_looked)

    async def load(self, name: str) -> None:
        """Want a known model again; returns when it is ready or has failed.

        Raises:
            ModelNotFound: it is not known.
            ModelUnavailable: it was tried and refused, with the reason.
        """
        await self._registry.load(name)

    async def activate(self, name: str) -> None:
        """Serve what the disk holds for a name now, known or not; returns when that is settled.

        Raises:
            ModelNotFound: there is nothing of that name.
            ModelUnavailable: no version of it answers.
        """
        await self._registry.activate(name)

    def traffic(self, name: str, version: int | None = None) -> TrafficReport:
        """How a version that answers has done with real requests; the newest when not said.

        Raises:
            ModelNotFound, VersionNotFound, ModelUnavailable: it is not known or does not answer.
        """
        return self._registry.traffic(name, version)

    async def unload(self, name: str) -> None:
        """Drain and stop every version of a model until `load` or a restart wants it again.

        Raises:
            ModelNotFound: it is not known.
        """
        await self._registry.unload(name)

    @staticmethod
    def _choose_signature(target: Target, request: PredictRequest) -> SignatureSpec:
        if request.signature is None:
            return target.default_signature
        signature = target.signatures.get(request.signature)
        if signature is None:
            raise SignatureNotFound(target.model, request.signature, tuple(target.signatures))
        return signature

    async def _answer(
        self, target: Target, signature: SignatureSpec, request: PredictRequest, started: float
    ) -> PredictResult:
        names = _wanted_outputs(signature, request.outputs)
        inputs, placements = await self._prepare(target, signature, request)
        is_default = signature is target.default_signature
        max_batch = target.max_batch if is_default else 1
        check_inputs(signature, max_batch, inputs)
        rows = count_rows(signature, max_batch, inputs)
        shareable = is_default and 0 < rows < max_batch
        prepared = time.monotonic()

        rows = max(1, rows)
        job = AwaitedJob(
            signature.name,
            inputs,
            rows=rows,
            key=sharing_key(inputs) if shareable else None,
            deadline=request.deadline,
        )
        target.dispatcher.submit(job)
        try:
            answer = await job.future
        finally:
            target.dispatcher.withdraw(job)

        meaning: tuple[Meaning, ...] = ()
        if request.want_meaning and is_default:
            meaning = await self._interpret(target, request, answer.outputs, rows, placements)
        total_s = time.monotonic() - started
        timing = self.record(target, answer, rows, total_s=total_s, preprocess_s=prepared - started)
        want_outputs = request.want_outputs or not meaning
        return PredictResult(
            model=target.model,
            version=target.version,
            request_id=request.request_id,
            device=answer.origin.device,
            requested_device=answer.origin.requested_device,
            degraded=answer.origin.degraded,
            timing=timing,
            outputs={name: answer.outputs[name] for name in names} if want_outputs else {},
            meaning=meaning,
        )

    async def _prepare(
        self, target: Target, signature: SignatureSpec, request: PredictRequest
    ) -> tuple[Mapping[str, Array], Sequence[Placement | None]]:
        """The request's tensors; large pictures and sounds are decoded off the loop."""
        inputs = request.inputs
        if not isinstance(inputs, Media | MediaBatch):
            return inputs, ()
        profile = target.profile
        if profile.input_kind is InputKind.TENSOR or signature is not target.default_signature:
            raise UnsupportedMedia(
                f"model '{target.model}' takes tensors, not pictures or sounds; send JSON or raw "
                "bytes"
            )
        items = (inputs.data,) if isinstance(inputs, Media) else inputs.items
        if profile.input is None:
            raise RuntimeError("a profile that takes media names its input")
        if is_light(profile, items):
            light = prepare(profile, items, limits=self._media_limits)
            return {profile.input.name: light.rows}, light.placements
        work = functools.partial(_prepare_timed, profile, items, self._media_limits)
        try:
            async with asyncio.timeout_at(request.deadline):
                media, seconds = await self._loop.run_in_executor(self._media_executor, work)
        except TimeoutError:
            _raise_late()
        target.gate.decoding.observe(seconds)
        return {profile.input.name: media.rows}, media.placements

    async def _interpret(
        self,
        target: Target,
        request: PredictRequest,
        outputs: Mapping[str, Array],
        rows: int,
        placements: Sequence[Placement | None],
    ) -> tuple[Meaning, ...]:
        work = functools.partial(
            interpret,
            target.profile,
            outputs,
            rows=rows,
            placements=placements,
            top_k=request.top_k,
            threshold=request.threshold,
        )
        if target.profile.output_kind is OutputKind.SEGMENTATION:
            return await self._loop.run_in_executor(self._media_executor, work)
        return work()


def _prepare_timed(
    profile: ModelProfile, items: Sequence[bytes], limits: MediaLimits
) -> tuple[PreparedMedia, float]:
    """Decode in a thread; gives the seconds it took there, without the wait for the thread."""
    began = time.monotonic()
    media = prepare(profile, items, limits=limits)
    return media, time.monotonic() - began


def count_rows(signature: SignatureSpec, max_batch: int, inputs: Mapping[str, Array]) -> int:
    """The first dimension, where it counts rows and all inputs agree on it; 0 where it does not."""
    counts = {
        inputs[spec.name].shape[0] if spec.shape and (max_batch > 1 or spec.shape[0] == -1) else 0
        for spec in signature.inputs
    }
    return counts.pop() if len(counts) == 1 else 0


def _wanted_outputs(signature: SignatureSpec, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    known = tuple(spec.name for spec in signature.outputs)
    if wanted is None:
        return known
    for name in wanted:
        if name not in known:
            raise BadTensor(
                f"unexpected inference output '{shorten(name)}'; the model has: {', '.join(known)}"
            )
    return wanted


def _raise_late() -> NoReturn:
    raise DeadlineExceeded("the deadline passed while the picture or sound was being decoded")
