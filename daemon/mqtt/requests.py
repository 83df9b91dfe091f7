"""What a message asks for beside its payload: where to answer, by when, with which options. Pure.

It may be said twice, and the first of these that says it counts:
1. MQTT 5 properties of the message: Response Topic, Correlation Data, Message Expiry.
2. MQTT 5 user properties: `timeout_ms`, `version`, `label`, `signature`, `top_k`, `threshold`,
   `outputs` (may be there several times), `id`. `-` counts as `_`, case does not count, and others
   are ignored: bridges and tracers add their own.
3. Members of a JSON payload: the same names and `reply_to`.

A JSON payload with `data_b64` carries the body proper in it: a picture, a sound or raw numbers, for
clients that can publish nothing but JSON. `content_type` beside it is its hint.
"""

from __future__ import annotations

import itertools
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from daemon.codec.jsontensors import check_json_cost, decode_base64
from daemon.codec.native import NO_OPTIONS, Options, read_options
from daemon.codec.numberlists import read_document
from daemon.documents import HEAVY_BYTES
from daemon.errors import Malformed, TooLarge, shorten
from daemon.mqtt.topics import reply_topic_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.mqtt.messages import Delivery

MAX_TIMEOUT_MS = 3_600_000
"""An hour; as long as any model's own limit may be."""
MAX_ID_CHARS = 128
_MAX_VERSION = 2**63 - 1

_DATA = "data_b64"
_REPLY_TO = "reply_to"
_NATIVE_OPTIONS = ("top_k", "threshold", "signature", "label")
_USER_PROPERTIES = frozenset({*_NATIVE_OPTIONS, "outputs", "timeout_ms", "version", "id"})

_MEMBERS = frozenset(
    {*_NATIVE_OPTIONS, "timeout_ms", "version", "id", _REPLY_TO, _DATA, "content_type"}
)

_WHOLE_NUMBER = re.compile(r"[0-9]{1,19}")
_JSON_SPACE = b" \t\r\n"

_PREFIX = secrets.token_hex(4)
_counter = itertools.count(1)


class Envelope:
    """What a JSON payload says beside its tensors, and the JSON itself for who decodes them.

    Attributes:
        members: those that mean something here; none when the payload is no JSON object.
    """

    __slots__ = ("_document", "members")

    def __init__(self, members: Mapping[str, Any], document: object = None) -> None:
        self.members = members
        self._document = document

    def take_document(self) -> object:
        """The JSON as it was read, so that it is not read again; None the second time.

        None as well where it would take much more memory than its text while it waits to be
        decoded: large, and not made of plain lists of numbers.
        """
        document, self._document = self._document, None
        return document


@dataclass(frozen=True, slots=True)
class Address:
    """Where the answer goes, and what it is called.

    Attributes:
        problem: why the topic that was asked for is not used; "" when it is, or none was.
    """

    topic: str
    request_id: str
    problem: str


@dataclass(frozen=True, slots=True)
class Wish:
    """Everything else that is asked for.

    Attributes:
        body: the bytes to decode.
        content_type: a hint for them.
        version: None for the newest, or for the one `options.label` names.
        timeout_s: None for the model's own.
    """

    body: bytes
    content_type: str
    options: Options
    version: int | None
    timeout_s: float | None


def read_envelope(delivery: Delivery) -> Envelope:
    """Read a JSON payload; an empty envelope when it is no JSON object.

    Never fails.
    """
    payload = delivery.payload
    if not may_be_json(payload):
        return Envelope({})
    try:
        check_json_cost(payload)
        document = read_document(payload)
        is_compact = document is not None or len(payload) < HEAVY_BYTES
        if document is None:
            document = orjson.loads(payload)
    except (TooLarge, orjson.JSONDecodeError):  # the codec says what is wrong, or takes it as raw
        return Envelope({})
    if type(document) is not dict:
        return Envelope({})
    members = {key: document[key] for key in _MEMBERS & document.keys()}
    return Envelope(members, document if is_compact else None)


def read_address(delivery: Delivery, envelope: Envelope, default_topic: str) -> Address:
    """Where the answer goes; to `default_topic` when none was named or the named one is refused."""
    request_id = _request_id(delivery, envelope.members)
    wanted = delivery.response_topic
    if wanted is None:
        wanted = envelope.members.get(_REPLY_TO)
    if wanted is None:
        return Address(default_topic, request_id, "")
    if type(wanted) is not str:
        return Address(default_topic, request_id, f"'{_REPLY_TO}' must be a string")
    problem = reply_topic_problem(wanted)
    if problem:
        message = f"no answer can be published on '{shorten(wanted)}': {problem}"
        return Address(default_topic, request_id, message)
    return Address(wanted, request_id, "")


def read_wish(delivery: Delivery, envelope: Envelope) -> Wish:
    """Everything else.

    Raises:
        Malformed: an option is not what it must be, or `data_b64` is not base64.
    """
    members = envelope.members
    body, content_type, wraps = delivery.payload, delivery.content_type, _DATA in members
    if wraps:
        body = decode_base64(members[_DATA], _DATA)
        content_type = _text(members, "content_type") or ""
    if not delivery.properties and not members:
        return Wish(body, content_type, NO_OPTIONS, None, None)
    values = _option_values(delivery, members, wraps=wraps)
    outputs = [("outputs", value) for key, value in _user_properties(delivery) if key == "outputs"]
    options = read_options(
        [*((key, values[key]) for key in _NATIVE_OPTIONS if key in values), *outputs],
        called="option",
    )
    version = _whole_number(values, "version", _MAX_VERSION)
    if version is not None and options.label is not None:
        raise Malformed("name a version or a label, not both")
    timeout_ms = _whole_number(values, "timeout_ms", MAX_TIMEOUT_MS)
    timeout_s = None if timeout_ms is None else timeout_ms / 1000
    return Wish(body, content_type, options, version, timeout_s)


def may_be_json(payload: bytes) -> bool:
    """An object by its two ends, as `daemon.codec.native` looks at it."""
    head, tail = payload[:64].lstrip(_JSON_SPACE), payload[-64:].rstrip(_JSON_SPACE)
    return head.startswith(b"{") and tail.endswith(b"}")


def _request_id(delivery: Delivery, members: Mapping[str, Any]) -> str:
    """The client's, or a new one; at most `MAX_ID_CHARS`."""
    for key, value in _user_properties(delivery):
        if key == "id" and value:
            return value[:MAX_ID_CHARS]
    given = members.get("id")
    if type(given) is int:
        given = str(given)
    if type(given) is str and given:
        return given[:MAX_ID_CHARS]
    return f"{_PREFIX}-{next(_counter):x}"


def _option_values(
    delivery: Delivery, members: Mapping[str, Any], *, wraps: bool
) -> dict[str, str]:
    """Options as text, by name; a user property goes before a member."""
    values: dict[str, str] = {}
    for key in ("timeout_ms", "version", "top_k", "threshold", "label"):
        if (value := _text(members, key)) is not None:
            values[key] = value
    if wraps and (value := _text(members, "signature")) is not None:
        values["signature"] = value
    values.update((key, value) for key, value in _user_properties(delivery) if key != "outputs")
    return values


def _user_properties(delivery: Delivery) -> list[tuple[str, str]]:
    if not delivery.properties:
        return []
    known = ((key.lower().replace("-", "_"), value) for key, value in delivery.properties)
    return [(key, value) for key, value in known if key in _USER_PROPERTIES]


def _text(members: Mapping[str, Any], key: str) -> str | None:
    """A member as text; numbers as JSON writes them."""
    value = members.get(key)
    if value is None or type(value) is str:
        return value
    if type(value) in (int, float):
        return str(value)
    raise Malformed(f"'{key}' must be a number or a string")


def _whole_number(values: Mapping[str, str], key: str, most: int) -> int | None:
    raw = values.get(key)
    if raw is None:
        return None
    if not _WHOLE_NUMBER.fullmatch(raw) or not 1 <= int(raw) <= most:
        raise Malformed(f"{key} must be a whole number, 1 to {most}, not '{shorten(raw)}'")
    return int(raw)
