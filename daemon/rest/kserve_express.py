"""KServe v2 inference with binary tensors, on the express lane.

What the JSON before the tensors says is remembered by its bytes, as the HTTP head is: a client that
sends another picture sends the same JSON.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from accelerators.base import DataType
from daemon.codec.kserve import HEADER_LENGTH, decode_infer
from daemon.codec.kserve_answers import encode_infer
from daemon.codec.validate import check_inputs
from daemon.dispatch import Job, sharing_key
from daemon.errors import DaemonError, ModelUnavailable, NotFound, PredictionFailed
from daemon.metrics import Outcome, outcome_of
from daemon.rest.express import MAX_ANSWER_BYTES, head_of
from daemon.rest.headers import origin_headers
from daemon.rest.kserve_errors import kserve_error
from daemon.service import count_rows
from daemon.tensors import Media, MediaBatch, PredictResult, Protocol, Timing

if TYPE_CHECKING:
    from accelerators.base import Array, Origin, TensorSpec
    from daemon.codec.kserve import InferCall
    from daemon.dispatch import Answer
    from daemon.models.served import Target
    from daemon.rest.context import RestContext
    from daemon.rest.express import Reply
    from daemon.service import Lease

_log = logging.getLogger(f"inferd.{__name__}")

_MAX_CALLS = 4
"""Different JSON under one head, which fixes its length and that of the tensors: what one client
sends differs in its `id` at most. With all heads known this is 15 MB at the very most."""
MAX_JSON_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Block:
    """One input's numbers: where they lie behind the JSON."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    count: int
    offset: int


class _Call:
    """What one JSON asks of one version."""

    __slots__ = (
        "blocks",
        "decoded",
        "head",
        "json",
        "key",
        "origin",
        "rows",
        "shapes",
        "target",
        "timeout_s",
    )

    def __init__(self, decoded: InferCall, target: Target, timeout_s: float) -> None:
        self.target = target
        # What is kept must not grow with what a client sends: its tensors, its parameters.
        self.decoded = replace(decoded, inputs={}, parameters={})
        self.timeout_s = min(timeout_s, decoded.timeout_us / 1e6 or math.inf)
        signature, inputs = decoded.signature, _arrays(decoded)
        max_batch = target.max_batch if signature is target.default_signature else 1
        check_inputs(signature, max_batch, inputs)
        rows = count_rows(signature, max_batch, inputs)
        self.rows = max(1, rows)
        self.key = sharing_key(inputs) if 0 < rows < max_batch else None
        self.blocks: list[_Block] = []
        offset = 0
        for name, array in inputs.items():  # in the order of the request, as their blocks are
            self.blocks.append(_Block(name, array.dtype, array.shape, array.size, offset))
            offset += array.nbytes
        self.shapes: list[tuple[int, ...]] = []
        self.origin: Origin | None = None
        self.head = self.json = b""

    def inputs(self, data: bytes | bytearray, start: int) -> dict[str, Array]:
        """The tensors, as views of the body whose JSON ends at `start`."""
        return {
            block.name: np.frombuffer(data, block.dtype, block.count, start + block.offset).reshape(
                block.shape
            )
            for block in self.blocks
        }

    def encode(self, answer: Answer) -> tuple[bytes, bytes]:
        """Head and body of the HTTP answer; what shapes and device decide is made once for them."""
        arrays = [answer.outputs[wish.spec.name] for wish in self.decoded.outputs]
        shapes = [array.shape for array in arrays]
        if shapes != self.shapes or answer.origin is not self.origin:
            self._prepare(answer, shapes)
        return self.head, b"".join([self.json, *[array.tobytes() for array in arrays]])

    def _prepare(self, answer: Answer, shapes: list[tuple[int, ...]]) -> None:
        target = self.target
        result = PredictResult(
            model=target.model,
            version=target.version,
            request_id="",
            device=answer.origin.device,
            requested_device=answer.origin.requested_device,
            degraded=answer.origin.degraded,
            timing=Timing(),
            outputs=answer.outputs,
        )
        body, json_bytes = encode_infer(self.decoded, result)
        self.json = body[:json_bytes]
        origin = "".join(f"{name}: {value}\r\n" for name, value in origin_headers(result).items())
        self.head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
            f"{HEADER_LENGTH}: {json_bytes}\r\n{origin}Content-Length: {len(body)}\r\n"
        ).encode("ascii")
        self.shapes = shapes
        self.origin = answer.origin


class InferPlan:
    """Inference requests with one certain HTTP head."""

    def __init__(
        self,
        context: RestContext,
        model: str,
        version: int | None,
        *,
        json_bytes: int,
        timeout_s: float | None,
    ) -> None:
        """Store only.

        Args:
            model, version: as in the path.
            json_bytes: of the body; tensors follow.
            timeout_s: what the head asks for; None where it says nothing.
        """
        self._context = context
        self._model = model
        self._version = version
        self._json_bytes = json_bytes
        self._timeout_s = timeout_s
        self._target: Target | None = None
        self._calls: dict[bytes, _Call | None] = {}  # of that target; None: the ordinary way's

    def begin(self, data: bytes | bytearray, start: int, connection: Reply) -> _Errand | None:
        """See `daemon.rest.express.Plan`."""
        context = self._context
        arrived = time.monotonic()
        try:
            lease = context.service.lease(self._model, version=self._version)
            target = lease.target
            call = self._call(data, start, target)
            if call is None:
                return None
            inputs = call.inputs(data, start + self._json_bytes)
            deadline = arrived + call.timeout_s
            target.gate.enter(now=arrived, deadline=deadline)
        except (NotFound, ModelUnavailable):
            self._serve(None)
            return None
        except DaemonError:
            return None
        errand = _Errand(call, inputs, deadline, lease, context, connection, arrived)
        lease.hold()
        target.dispatcher.submit(errand)
        return errand

    def abandon(self) -> None:
        """See `daemon.rest.express.Plan`; counted as the ordinary way does, which knows no more."""
        self._context.metrics.request("", 0, Protocol.KSERVE, Outcome.CANCELLED, 0.0)

    def _call(self, data: bytes | bytearray, start: int, target: Target) -> _Call | None:
        if target is not self._target:
            self._serve(target)
        json = bytes(data[start : start + self._json_bytes])
        try:
            return self._calls[json]
        except KeyError:
            call = self._read(bytes(data[start:]), target)
        if len(self._calls) >= _MAX_CALLS:
            self._calls.clear()
        self._calls[json] = call
        return call

    def _serve(self, target: Target | None) -> None:
        """Another version answers now, or none does: let go of the old one."""
        self._calls.clear()
        self._target = target

    def _read(self, body: bytes, target: Target) -> _Call | None:
        if _takes_text(target):  # which would take its time here
            return None
        decoded = decode_infer(body, self._json_bytes, target)
        if not is_express(decoded, len(body) - self._json_bytes):
            return None
        timeout_s = target.timeout_s if self._timeout_s is None else self._timeout_s
        return _Call(decoded, target, timeout_s)


class _Errand(Job):
    """One request on its way through the queue."""

    __slots__ = ("_arrived", "_call", "_connection", "_context", "_lease")

    def __init__(  # noqa: PLR0917 (by name, each costs a tenth of a microsecond)
        self,
        call: _Call,
        inputs: dict[str, Array],
        deadline: float,
        lease: Lease,
        context: RestContext,
        connection: Reply,
        arrived: float,
    ) -> None:
        super().__init__(
            call.decoded.signature.name, inputs, rows=call.rows, key=call.key, deadline=deadline
        )
        self._call = call
        self._lease = lease
        self._context = context
        self._connection = connection
        self._arrived = arrived

    def answered(self, answer: Answer) -> None:
        """Send the answer."""
        try:
            head, body = self._call.encode(answer)
        except Exception as exc:  # noqa: BLE001 (who takes an answer from the queue must not raise)
            self.failed(exc)
            return
        total_s = time.monotonic() - self._arrived
        self._context.service.record(
            self._call.target,
            answer,
            self.rows,
            total_s=total_s,
            preprocess_s=self.enqueued_at - self._arrived,
        )
        self._leave(Outcome.OK, total_s)
        self._connection.reply(head, body)

    def failed(self, error: Exception) -> None:
        """Send the error."""
        self._count_failure(outcome_of(error))
        if not isinstance(error, DaemonError):
            target = self._call.target
            _log.error(
                "request failed in a way nobody foresaw model=%s", target.model, exc_info=error
            )
            error = PredictionFailed("internal error; the log says more")
        response = kserve_error(error)
        body = response.body
        assert isinstance(body, bytes)  # noqa: S101 (errors are JSON, made whole)
        self._connection.reply(head_of(response, len(body)), body)

    def abandon(self) -> None:
        """The client has left."""
        self._call.target.dispatcher.withdraw(self)
        self._count_failure(Outcome.CANCELLED)

    def _count_failure(self, outcome: Outcome) -> None:
        total_s = time.monotonic() - self._arrived
        self._call.target.counters.add_failure(total_s)
        self._leave(outcome, total_s)

    def _leave(self, outcome: Outcome, total_s: float) -> None:
        target = self._call.target
        target.gate.leave()
        self._lease.let_go()
        self._context.metrics.request(
            target.model, target.version, Protocol.KSERVE, outcome, total_s
        )


def is_express(decoded: InferCall, tail_bytes: int) -> bool:
    """Whether the inputs are all numbers behind the JSON, and the answer is few numbers.

    It depends on nothing but the JSON and the lengths.
    """
    if isinstance(decoded.inputs, Media | MediaBatch) or "inferd_details" in decoded.parameters:
        return False
    arrays = decoded.inputs.values()
    if sum(array.nbytes for array in arrays) != tail_bytes or any(
        array.dtype.kind in "bO" for array in arrays
    ):
        return False
    if not decoded.outputs or any(
        not wish.binary or wish.classes or wish.spec.datatype is DataType.BYTES
        for wish in decoded.outputs
    ):
        return False
    rows = max([array.shape[0] for array in arrays if array.ndim], default=1)
    has_free_rows = any(spec.shape[:1] == (-1,) for spec in decoded.signature.inputs)
    free_rows = rows if has_free_rows else math.inf  # else the model alone knows how many
    answer_bytes = sum(_answer_bytes(wish.spec, rows, free_rows) for wish in decoded.outputs)
    return answer_bytes <= MAX_ANSWER_BYTES


def _answer_bytes(spec: TensorSpec, rows: int, free_rows: float) -> float:
    """At most so many bytes for so many rows; infinity where the shape does not say it."""
    if -1 in spec.shape[1:]:
        return math.inf
    first = spec.shape[0] if spec.shape else 1
    count = free_rows if first == -1 else rows * first
    return math.prod(spec.shape[1:]) * count * spec.datatype.itemsize


def _takes_text(target: Target) -> bool:
    return any(
        spec.datatype is DataType.BYTES
        for signature in target.signatures.values()
        for spec in signature.inputs
    )


def _arrays(decoded: InferCall) -> dict[str, Array]:
    assert not isinstance(decoded.inputs, Media | MediaBatch)  # noqa: S101 (`is_express` says so)
    return dict(decoded.inputs)
