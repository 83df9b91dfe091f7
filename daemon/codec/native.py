"""The native protocol: any sensible body in, one JSON answer out. Pure.

What a body is, decided by its content; the Content-Type only breaks ties. First rule that holds:
1. multipart/form-data: the body is that of the form's field `file`, with the field's type.
2. The type is application/json: JSON in KServe v2's shape.
3. The type is application/octet-stream and the size is that of the model's single input: raw.
4. It begins with `{` and ends with `}`: JSON.
5. It begins as a picture (JPEG, PNG, WebP, BMP, GIF) or a WAV does and the model takes media: that.
6. Its size is that of the model's single input: raw, little-endian, row-major; where the first
   dimension is free or proven to batch, any whole number of rows. A single string input takes any
   body as its one element.
7. Anything else is refused, and the message says what the model takes.

What an answer holds: `classification`, `detection` or `segmentation` where the model has a meaning
(`classifications`, `detections`, `segmentations`: one for each row, when several rows were sent);
`outputs` where tensors were sent, where outputs were asked for by name, or where there is no
meaning. Data is flat, row-major. JSON has no NaN, so the strings "NaN", "Infinity" and "-Infinity"
stand for what they say; integers keep all digits, also beyond 2^53; FP16 is written as the numbers
it holds; strings that are not UTF-8 are {"b64": "..."}.
"""

from __future__ import annotations

import binascii
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import orjson

from accelerators.base import DataType
from daemon.codec.jsontensors import array_to_json, bytes_array
from daemon.codec.kserve import decode_infer
from daemon.codec.multipart import read_file_field
from daemon.codec.pieces import check_answer_size
from daemon.codec.validate import batched_shape
from daemon.errors import (
    BadTensor,
    Malformed,
    SignatureNotFound,
    UnsupportedMedia,
    shorten,
)
from daemon.pipeline.profiles import InputKind
from daemon.tensors import (
    Classification,
    Detection,
    Meaning,
    Media,
    MediaBatch,
    PredictRequest,
    Protocol,
    Segmentation,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from accelerators.base import Array, SignatureSpec, TensorSpec
    from daemon.codec.kserve import ModelView
    from daemon.tensors import PredictResult, Timing

MAX_TOP_K = 10000
MAX_OUTPUTS = 256
_MAX_NAME_CHARACTERS = 1024

_MAGICS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
_RIFF_KINDS = (b"WEBP", b"WAVE")
_TAKEN_MEDIA = "a JPEG, PNG, WebP, BMP or GIF picture or a WAV sound"
_DOCUMENT_TYPES = ("application/json", "multipart/form-data")
_JSON_SPACE = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Options:
    """What a client may ask for beside the body; the query parameters of HTTP.

    Attributes:
        top_k: at most so many classes or boxes, 1..10000; None for the model's setting.
        threshold: least score listed; None for the model's setting.
        signature: for raw bodies; a JSON body names its own.
        label: version label.
        outputs: names of raw outputs wanted, in that order; () when none was named.
    """

    top_k: int | None = None
    threshold: float | None = None
    signature: str | None = None
    label: str | None = None
    outputs: tuple[str, ...] = ()


NO_OPTIONS = Options()
_KNOWN_OPTIONS = ("top_k", "threshold", "signature", "label", "outputs")


def read_options(pairs: Iterable[tuple[str, str]], *, called: str = "query parameter") -> Options:
    """Read options; `outputs` may be there several times, the others once.

    Args:
        pairs: names and values.
        called: what the client knows them as.

    Raises:
        Malformed: one is unknown, doubled or out of range.
    """
    values: dict[str, str] = {}
    outputs: list[str] = []
    for key, value in pairs:
        if key not in _KNOWN_OPTIONS:
            known = ", ".join(_KNOWN_OPTIONS)
            raise Malformed(f"{called} '{shorten(key)}' is not known; there are: {known}")
        if not 1 <= len(value) <= _MAX_NAME_CHARACTERS:
            raise Malformed(f"{called} '{key}' must have 1 to {_MAX_NAME_CHARACTERS} characters")
        if key == "outputs":
            outputs.append(value)
        elif key in values:
            raise Malformed(f"{called} '{key}' is there twice")
        else:
            values[key] = value
    if len(outputs) > MAX_OUTPUTS:
        raise Malformed(f"at most {MAX_OUTPUTS} outputs may be named")
    return Options(
        top_k=_read_top_k(values.get("top_k")),
        threshold=_read_threshold(values.get("threshold")),
        signature=values.get("signature"),
        label=values.get("label"),
        outputs=tuple(outputs),
    )


def _read_top_k(raw_value: str | None) -> int | None:
    if raw_value is None:
        return None
    is_number = (
        raw_value.isascii() and raw_value.isdigit() and len(raw_value) <= len(str(MAX_TOP_K))
    )
    if not is_number or not 1 <= int(raw_value) <= MAX_TOP_K:
        raise Malformed(
            f"top_k must be a whole number, 1 to {MAX_TOP_K}, not '{shorten(raw_value)}'"
        )
    return int(raw_value)


def _read_threshold(raw_value: str | None) -> float | None:
    if raw_value is None:
        return None
    try:
        threshold = float(raw_value)
    except ValueError:
        threshold = math.nan
    if not math.isfinite(threshold):
        raise Malformed(f"threshold must be a finite number, not '{shorten(raw_value)}'")
    return threshold


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A decoded body.

    Attributes:
        outputs: names of the raw outputs wanted; () when none was named.
        request_id: from a JSON body; "" when it names none.
    """

    inputs: Mapping[str, Array] | Media | MediaBatch
    signature: SignatureSpec
    outputs: tuple[str, ...] = ()
    request_id: str = ""


def decode_predict(
    body: bytes,
    content_type: str,
    view: ModelView,
    options: Options = NO_OPTIONS,
    document: object = None,
) -> NativeCall:
    """Find out what a body is and read it, by the rules of this module.

    Args:
        body: the whole body, inflated.
        content_type: the header as it came, "" when absent.
        view: the model that is asked.
        options: what was asked for beside the body.
        document: the body's JSON, see `decode_infer`.

    Raises:
        Malformed: it is empty or broken.
        BadTensor: a tensor is not what the model takes.
        UnsupportedMedia: it is nothing this model takes.
        TooLarge: JSON that would take too long to parse.
        SignatureNotFound: the signature is not the model's.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        body, kind = read_file_field(body, content_type)
        document = None
    if not body:
        raise Malformed("the body is empty; send a picture, a sound, raw numbers or JSON")
    if kind == "application/json":
        return _decode_json(body, view, options, document)
    signature = _choose_signature(view, options)
    raw_shape = _raw_shape(body, signature, view)
    if raw_shape is not None and kind == "application/octet-stream":
        return _decode_raw(body, raw_shape, signature, options)
    if _looks_like_json(body):
        return _decode_json(body, view, options, document)
    takes_media = view.profile.input_kind is not InputKind.TENSOR and options.signature is None
    if takes_media and _looks_like_media(body):
        return NativeCall(Media(body), signature, options.outputs)
    if raw_shape is not None:
        return _decode_raw(body, raw_shape, signature, options)
    raise _explain_refusal(body, signature, view)


def is_document(body: bytes, content_type: str) -> bool:
    """Whether `decode_predict` may have to parse it, rather than look at it: JSON and forms."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in _DOCUMENT_TYPES or _looks_like_json(body)


def _choose_signature(view: ModelView, options: Options) -> SignatureSpec:
    if options.signature is None:
        return next(iter(view.signatures.values()))
    signature = view.signatures.get(options.signature)
    if signature is None:
        raise SignatureNotFound(view.model, options.signature, tuple(view.signatures))
    return signature


def _looks_like_json(body: bytes) -> bool:
    """A JSON object by its two ends; random numbers pass for one once in 65536 times."""
    head, tail = body[:64].lstrip(_JSON_SPACE), body[-64:].rstrip(_JSON_SPACE)
    return head.startswith(b"{") and tail.endswith(b"}")


def _looks_like_media(body: bytes) -> bool:
    return body.startswith(_MAGICS) or (body.startswith(b"RIFF") and body[8:12] in _RIFF_KINDS)


def _decode_json(body: bytes, view: ModelView, options: Options, document: object) -> NativeCall:
    if options.signature is not None:
        raise Malformed(
            "with a JSON body the signature is named in its 'parameters', not beside the body"
        )
    call = decode_infer(body, None, view, document)
    return NativeCall(
        call.inputs,
        call.signature,
        options.outputs or call.output_names or (),
        call.request_id or "",
    )


def _raw_shape(body: bytes, signature: SignatureSpec, view: ModelView) -> tuple[int, ...] | None:
    """The shape that a raw body of this size has; None when it cannot be the single input."""
    if len(signature.inputs) != 1:
        return None
    spec = signature.inputs[0]
    shape = _free_shape(spec, signature, view)
    free = [axis for axis, size in enumerate(shape) if size == -1]
    if spec.datatype is DataType.BYTES:
        fixed = [size for size in shape if size != -1]
        return tuple(1 for _ in shape) if shape and set(fixed) <= {1} else None
    one_bytes = math.prod(size for size in shape if size != -1) * spec.datatype.itemsize
    if not free:
        return shape if len(body) == one_bytes else None
    count, rest = divmod(len(body), one_bytes) if one_bytes else (0, 0)
    if len(free) > 1 or rest or not count:
        return None
    return tuple(count if size == -1 else size for size in shape)


def _free_shape(spec: TensorSpec, signature: SignatureSpec, view: ModelView) -> tuple[int, ...]:
    is_default = signature is next(iter(view.signatures.values()))
    return batched_shape(spec, view.report.max_batch if is_default else 1)


def _decode_raw(
    body: bytes, shape: tuple[int, ...], signature: SignatureSpec, options: Options
) -> NativeCall:
    spec = signature.inputs[0]
    array: Array
    if spec.datatype is DataType.BYTES:
        array = bytes_array([body])
    elif spec.datatype is DataType.BOOL:
        numbers = np.frombuffer(body, np.uint8)
        if numbers.max() > 1:
            raise BadTensor(f"input '{spec.name}': BOOL bytes must be 0 or 1")
        array = numbers.view(np.bool_)
    else:
        array = np.frombuffer(body, spec.datatype.dtype.newbyteorder("<"))
    return NativeCall({spec.name: array.reshape(shape)}, signature, options.outputs)


def _explain_refusal(
    body: bytes, signature: SignatureSpec, view: ModelView
) -> BadTensor | UnsupportedMedia | Malformed:
    """Say what the model takes. A body that begins as JSON does is said to be broken JSON."""
    if body.lstrip(_JSON_SPACE)[:1] in (b"{", b"["):
        return Malformed(
            'the body looks like JSON and is not an object like {"inputs": [...]} from end to end'
        )
    takes = _describe_input(signature, view)
    if view.profile.input_kind is not InputKind.TENSOR:
        return UnsupportedMedia(
            f"the body is neither {_TAKEN_MEDIA} nor JSON; model '{view.model}' takes one of "
            f"these{takes}"
        )
    if _looks_like_media(body):
        return UnsupportedMedia(
            f"model '{view.model}' takes tensors, not pictures or sounds: JSON{takes}"
        )
    return BadTensor(
        f"the body has {len(body)} bytes and is not JSON; model '{view.model}' takes JSON{takes}"
    )


def _describe_input(signature: SignatureSpec, view: ModelView) -> str:
    if len(signature.inputs) != 1:
        names = ", ".join(f"'{spec.name}'" for spec in signature.inputs)
        return f" with the inputs {names}"
    spec = signature.inputs[0]
    shape = list(_free_shape(spec, signature, view))
    size = spec.datatype.itemsize * math.prod(abs(dimension) for dimension in shape)
    some = "a multiple of " if -1 in shape else ""
    return f", or raw {spec.datatype.value} {shape} ({some}{size} bytes)"


def make_request(
    call: NativeCall,
    options: Options,
    *,
    deadline: float,
    request_id: str,
    protocol: Protocol = Protocol.NATIVE,
) -> PredictRequest:
    """The request for the service.

    Args:
        call: the decoded body.
        options: what was asked for beside it.
        deadline: in `time.monotonic()` seconds.
        request_id: used when the body names none.
        protocol: what it came by.
    """
    is_media = isinstance(call.inputs, Media | MediaBatch)
    return PredictRequest(
        inputs=call.inputs,
        deadline=deadline,
        request_id=call.request_id[:128] or request_id,
        protocol=protocol,
        signature=call.signature.name,
        outputs=call.outputs or None,
        want_meaning=True,
        want_outputs=bool(call.outputs) or not is_media,
        top_k=options.top_k,
        threshold=options.threshold,
    )


def encode_predict(result: PredictResult, signature: SignatureSpec) -> bytes:
    """The JSON answer.

    Args:
        result: what the service gave.
        signature: the one that was called; it knows the outputs' datatypes.

    Raises:
        TooLarge: the outputs have more values than are written as JSON.
    """
    check_answer_size(result.outputs.values())
    document: dict[str, object] = {
        "model": result.model,
        "version": str(result.version),
        "id": result.request_id,
        "device": result.device,
        "requested_device": result.requested_device,
        "degraded": result.degraded,
        "timing_ms": _timing(result.timing),
    }
    if result.meaning:
        key, value = _encode_meaning(result.meaning)
        document[key] = value
    if result.outputs:
        datatypes = {spec.name: spec.datatype for spec in signature.outputs}
        document["outputs"] = [
            _encode_output(name, array, datatypes[name]) for name, array in result.outputs.items()
        ]
    return orjson.dumps(document)


def _timing(timing: Timing) -> dict[str, float]:
    """Milliseconds, to the microsecond."""
    return {
        "queue": round(timing.queue * 1000, 3),
        "preprocess": round(timing.preprocess * 1000, 3),
        "invoke": round(timing.invoke * 1000, 3),
        "postprocess": round(timing.postprocess * 1000, 3),
        "total": round(timing.total * 1000, 3),
    }


def _encode_meaning(rows: Sequence[Meaning]) -> tuple[str, object]:
    """The key for the rows' kind, and one row's value or the list of all."""
    key = _MEANING_KEYS[type(rows[0])]
    if len(rows) == 1:
        return key, _encode_row(rows[0])
    return f"{key}s", [_encode_row(row) for row in rows]


_MEANING_KEYS: Mapping[type, str] = {
    Classification: "classification",
    Detection: "detection",
    Segmentation: "segmentation",
}


def _encode_row(row: Meaning) -> object:
    match row:
        case Classification():
            return [
                {"label": c.label, "index": c.index, "score": _number(c.score)}
                for c in row.categories
            ]
        case Detection():
            return [
                {
                    "label": b.label,
                    "index": b.index,
                    "score": _number(b.score),
                    "box": [_number(edge) for edge in b.box],
                }
                for b in row.boxes
            ]
        case Segmentation():
            return {
                "width": row.width,
                "height": row.height,
                "classes": [
                    {"label": s.label, "index": s.index, "share": s.share} for s in row.shares
                ],
                "mask_png": _base64(row.mask_png),
            }


def _number(value: float) -> float | str:
    """A number, or the name of one that JSON does not have."""
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _encode_output(name: str, array: Array, datatype: DataType) -> dict[str, object]:
    return {
        "name": name,
        "datatype": datatype.value,
        "shape": array.shape,
        "data": orjson.Fragment(_encode_data(name, array, datatype)),
    }


def _encode_data(name: str, array: Array, datatype: DataType) -> bytes:
    if datatype is DataType.BYTES:
        return orjson.dumps([_encode_bytes(element) for element in array.reshape(-1).tolist()])
    if datatype is DataType.FP16:
        return array_to_json(array.astype(np.float32), DataType.FP32, name=name)
    return array_to_json(array, datatype, name=name)


def _encode_bytes(element: bytes) -> object:
    try:
        return element.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": _base64(element)}


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")
