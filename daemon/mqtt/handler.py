"""One message in, one answer out: decode, predict, encode. The front end sees to everything else.

Answers are the native protocol's, byte for byte what HTTP would have said.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from daemon.codec.native import decode_predict, encode_predict, is_document, make_request
from daemon.codec.pieces import is_heavy_answer
from daemon.documents import HEAVY_BYTES
from daemon.errors import DaemonError, DeadlineExceeded, Malformed, TooLarge
from daemon.metrics import Outcome, outcome_of
from daemon.mqtt.messages import Delivery, Publication
from daemon.mqtt.refusals import INTERNAL, code_of, refusal
from daemon.mqtt.requests import Envelope, may_be_json, read_address, read_envelope, read_wish
from daemon.tensors import Protocol

if TYPE_CHECKING:
    from daemon.codec.native import NativeCall
    from daemon.documents import DocumentThread
    from daemon.metrics import Metrics
    from daemon.models.served import Target
    from daemon.mqtt.requests import Address, Wish
    from daemon.mqtt.topics import Command, Topics
    from daemon.service import InferenceService

_log = logging.getLogger(f"inferd.{__name__}")

_ENVELOPE_S = 30.0
"""For the envelope to be read, in seconds: only it says which deadline the request has."""
_LEAST_EXPIRY_S = 1.0
"""Of an answer, in seconds: the unit in which MQTT counts."""


@dataclass(slots=True)
class _Counted:
    """What is counted of one request; `version` is 0 while it is not known."""

    model: str
    version: int = 0
    outcome: Outcome = Outcome.FAILED


class Handler:
    """Answers requests.

    Args:
        max_payload_bytes: larger requests are refused.
        documents: the thread that reads and writes large documents.
    """

    def __init__(
        self,
        service: InferenceService,
        metrics: Metrics,
        topics: Topics,
        *,
        max_payload_bytes: int,
        documents: DocumentThread,
    ) -> None:
        self._service = service
        self._count = metrics.request
        self._topics = topics
        self._max_payload_bytes = max_payload_bytes
        self._documents = documents

    async def answer(self, delivery: Delivery, command: Command) -> Publication:
        """The answer: a result or a refusal. Raises nothing but cancellation."""
        envelope = await self._read_envelope(delivery)
        address = read_address(delivery, envelope, self._topics.result(command))
        counted = _Counted(command.model)
        try:
            payload = await self._predict(delivery, command, envelope, address, counted)
            counted.outcome = Outcome.OK
        except DaemonError as error:
            payload = _refuse(error, address, counted)
        except Exception:  # noqa: BLE001 (top of a request: a bug is answered, logged and counted)
            _log.exception("request failed in a way nobody foresaw model=%s", counted.model)
            message = "internal error; the log of the appliance says more"
            payload = refusal(INTERNAL, message, address.request_id)
        except BaseException:
            counted.outcome = Outcome.CANCELLED
            raise
        finally:
            self._record(counted, delivery)
        return _publication(delivery, address, payload)

    def refuse(self, delivery: Delivery, command: Command, error: DaemonError) -> Publication:
        """The answer to a request that is not looked at.

        A large payload is not even parsed: the answer to it goes where the MQTT properties say,
        else to the model's topic.
        """
        envelope = Envelope({}) if _is_heavy(delivery.payload) else read_envelope(delivery)
        address = read_address(delivery, envelope, self._topics.result(command))
        counted = _Counted(command.model)
        payload = _refuse(error, address, counted)
        self._record(counted, delivery)
        return _publication(delivery, address, payload)

    async def _read_envelope(self, delivery: Delivery) -> Envelope:
        try:
            return await self._documents.run(
                partial(read_envelope, delivery),
                is_heavy=_is_heavy(delivery.payload),
                deadline=_deadline(delivery, None, _ENVELOPE_S),
            )
        except DeadlineExceeded:  # decoding will come too late as well, and says so
            return Envelope({})

    async def _predict(
        self,
        delivery: Delivery,
        command: Command,
        envelope: Envelope,
        address: Address,
        counted: _Counted,
    ) -> bytes:
        size = len(delivery.payload)
        if size > self._max_payload_bytes:
            raise TooLarge(
                f"the payload has {size} bytes, more than the {self._max_payload_bytes} taken here",
                limit=self._max_payload_bytes,
                unit="bytes",
            )
        if address.problem:
            raise Malformed(address.problem)
        run = self._documents.run
        wish = await run(
            partial(read_wish, delivery, envelope),
            is_heavy=_is_heavy(delivery.payload),
            deadline=_deadline(delivery, None, _ENVELOPE_S),
        )
        label = wish.options.label
        with self._service.lease(command.model, version=wish.version, label=label) as target:
            counted.version = target.version
            deadline = _deadline(delivery, wish.timeout_s, target.timeout_s)
            call = await self._decode(delivery, envelope, wish, target, deadline)
            request = make_request(
                call,
                wish.options,
                deadline=deadline,
                request_id=address.request_id,
                protocol=Protocol.MQTT,
            )
            result = await self._service.predict(target, request)
            return await run(
                partial(encode_predict, result, call.signature),
                is_heavy=is_heavy_answer(result.outputs.values()),
                deadline=deadline,
            )

    async def _decode(
        self, delivery: Delivery, envelope: Envelope, wish: Wish, target: Target, deadline: float
    ) -> NativeCall:
        document = envelope.take_document() if wish.body is delivery.payload else None
        return await self._documents.run(
            partial(decode_predict, wish.body, wish.content_type, target, wish.options, document),
            is_heavy=len(wish.body) >= HEAVY_BYTES and is_document(wish.body, wish.content_type),
            deadline=deadline,
        )

    def _record(self, counted: _Counted, delivery: Delivery) -> None:
        duration_s = time.monotonic() - delivery.received_at
        self._count(counted.model, counted.version, Protocol.MQTT, counted.outcome, duration_s)


def _is_heavy(payload: bytes) -> bool:
    """Whether its envelope is read in the thread."""
    return len(payload) >= HEAVY_BYTES and may_be_json(payload)


def _deadline(delivery: Delivery, asked_s: float | None, model_s: float) -> float:
    """The model's own limit counts from now on; what the client asked for, from the arrival."""
    deadline = time.monotonic() + model_s
    if asked_s is not None:
        deadline = delivery.received_at + asked_s
    if delivery.expiry_s is not None:
        deadline = min(deadline, delivery.received_at + delivery.expiry_s)
    return deadline


def _refuse(error: DaemonError, address: Address, counted: _Counted) -> bytes:
    counted.outcome = outcome_of(error)
    return refusal(code_of(error), str(error), address.request_id)


def _publication(delivery: Delivery, address: Address, payload: bytes) -> Publication:
    expires_at = None
    if delivery.expiry_s is not None:
        # Also the refusal of a message that has just expired is worth sending.
        latest = delivery.received_at + delivery.expiry_s
        expires_at = max(latest, time.monotonic() + _LEAST_EXPIRY_S)
    return Publication(
        topic=address.topic,
        payload=payload,
        qos=delivery.qos,
        correlation=delivery.correlation,
        expires_at=expires_at,
        request_id=address.request_id,
    )
