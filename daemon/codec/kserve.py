"""Reads KServe v2 inference requests, with Triton's binary tensors and raw bodies. Pure.

Rules of a request, in the order they are checked:
1. `Inference-Header-Content-Length` says how many bytes are JSON: absent means all, 0 means that
   the whole body is the model's single input, raw.
2. The JSON names the signature (parameter `signature`, ours), the inputs and the wanted outputs.
3. An input's values are in `data`, or `binary_data_size` bytes of the rest of the body, in input
   order. Nothing may be missing and nothing may be left. Little-endian, row-major; a BYTES element
   is its length (uint32) and its bytes.
4. Name, datatype and shape are the signature's (`daemon/codec/validate.py`).
5. BYTES for a picture or sound model are encoded files, one row each (OpenVINO Model Server's
   convention); `binary_data_size` may then be absent, and the length prefix of a single file too.
Not offered: shared memory, sequences.

Source: the Open Inference Protocol's REST text; Triton's extension_binary_data.md,
extension_classification.md and the wording of its errors.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from accelerators.base import DataType
from daemon.codec.binarytensors import media_from_block, numbers_from_block, strings_from_block
from daemon.codec.jsontensors import array_from_json, bytes_array, decode_base64, decode_json
from daemon.codec.validate import (
    check_names,
    check_row_count,
    check_rows_agree,
    check_tensor,
)
from daemon.errors import BadTensor, Malformed, SignatureNotFound, Unsupported, shorten
from daemon.pipeline.profiles import InputKind
from daemon.tensors import Media, MediaBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from accelerators.base import Array, ModelReport, SignatureSpec, TensorSpec
    from daemon.pipeline.profiles import ModelProfile

HEADER_LENGTH = "Inference-Header-Content-Length"

_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_DATATYPES = {datatype.value: datatype for datatype in DataType}
_SHARED_MEMORY = "shared_memory_region"
_NO_SHARED_MEMORY = "shared memory is not offered here; send and ask for the tensor's data itself"
_SEQUENCE_PARAMETERS = frozenset({"sequence_id", "sequence_start", "sequence_end"})


class ModelView(Protocol):
    """What decoding must know of a model; `daemon.service.Target` has it."""

    @property
    def model(self) -> str:
        """Its name."""

    @property
    def report(self) -> ModelReport:
        """What its worker found out."""

    @property
    def profile(self) -> ModelProfile:
        """What it takes and means."""

    @property
    def signatures(self) -> Mapping[str, SignatureSpec]:
        """By name; the first is the default."""


@dataclass(frozen=True, slots=True)
class OutputWish:
    """One output a client wants.

    Attributes:
        binary: as bytes after the JSON.
        classes: how many of the best classes to send as text instead of the tensor; 0 for none.
    """

    spec: TensorSpec
    binary: bool
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferCall:
    """One decoded inference request.

    Attributes:
        inputs: checked against the signature; arrays may be read-only views of the body.
        outputs: in the order they are wanted, resolved: never "all".
        output_names: for `PredictRequest.outputs`: None when the request named none.
        parameters: the request's own, checked where they mean something here.
        request_id: None when the request had none; "" is echoed too.
        timeout_us: the parameter `timeout`; 0 when not said.
    """

    signature: SignatureSpec
    inputs: Mapping[str, Array] | Media | MediaBatch
    outputs: tuple[OutputWish, ...]
    output_names: tuple[str, ...] | None
    parameters: Mapping[str, object]
    request_id: str | None
    timeout_us: int


def parse_header_length(raw_value: str | None, body_bytes: int) -> int | None:
    """The value of `Inference-Header-Content-Length`; None when the header is absent.

    Args:
        raw_value: as it came.
        body_bytes: size of the body, inflated if it was compressed.

    Raises:
        Malformed: it is not a number from 0 to the size of the body.
    """
    if raw_value is None:
        return None
    if _WHOLE_NUMBER.fullmatch(raw_value) is None:
        raise Malformed(f"Unable to parse {HEADER_LENGTH}, got: {shorten(raw_value)}")
    length = int(raw_value)
    if not 0 <= length <= body_bytes:
        raise Malformed(
            f"inference header size should be in range (0, {body_bytes}), got: {shorten(raw_value)}"
        )
    return length


def decode_infer(
    body: bytes, header_length: int | None, view: ModelView, document: object = None
) -> InferCall:
    """Read an inference request.

    Args:
        body: the whole body, inflated.
        header_length: from `parse_header_length`.
        view: the model that is asked.
        document: the JSON where it was read already, with lists or `Numbers`; else None.

    Raises:
        Malformed: the body is not what the protocol says.
        BadTensor: an input or output is not the model's.
        SignatureNotFound: the parameter `signature` names none of the model's.
        Unsupported: it asks for shared memory.
        TooLarge: JSON that would take too long to parse, or too many strings.
    """
    if header_length == 0:
        return _decode_raw(body, view)
    json_bytes = len(body) if header_length is None else header_length
    return decode_json(
        body[:json_bytes],
        lambda known: _decode_document(known, body, json_bytes, view),
        document=document,
    )


def _decode_document(document: object, body: bytes, json_bytes: int, view: ModelView) -> InferCall:
    """Read the JSON of a request; its lists of numbers may be `Numbers`."""
    if type(document) is not dict:
        raise Malformed("the request must be a JSON object with the member 'inputs'")
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise Malformed("Unable to parse 'id': attempt to access JSON non-string as string")
    parameters = _request_parameters(document)
    signature = _choose_signature(parameters, view)
    inputs = _Inputs(body, json_bytes, signature, view).read(document.get("inputs"))
    raw_outputs = _list_member(document, "outputs")
    wants_binary = _boolean(parameters, "binary_data_output", default=False)
    outputs = _read_outputs(raw_outputs, signature, wants_binary=wants_binary)
    return InferCall(
        signature=signature,
        inputs=inputs,
        outputs=outputs,
        output_names=tuple(wish.spec.name for wish in outputs) if raw_outputs else None,
        parameters=parameters,
        request_id=request_id,
        timeout_us=_unsigned(parameters, "timeout"),
    )


def _decode_raw(body: bytes, view: ModelView) -> InferCall:
    """Read a body that is the model's single input and nothing else; all outputs are binary."""
    signature = _default_signature(view)
    if len(signature.inputs) != 1:
        raise BadTensor(
            f"a raw request is for models with 1 input; '{view.model}' has {len(signature.inputs)}"
        )
    return InferCall(
        signature=signature,
        inputs=_raw_input(body, signature.inputs[0], view),
        outputs=_read_outputs([], signature, wants_binary=True),
        output_names=None,
        parameters={},
        request_id=None,
        timeout_us=0,
    )


def _raw_input(body: bytes, spec: TensorSpec, view: ModelView) -> Mapping[str, Array] | Media:
    if _takes_media(spec, view) and len(body) != _single_row_bytes(spec):
        return Media(body)
    shape = _raw_shape(spec, len(body))
    if spec.datatype is DataType.BYTES:
        return {spec.name: bytes_array([body]).reshape(shape)}
    return {spec.name: numbers_from_block(body, 0, len(body), spec, shape)}


def _single_row_bytes(spec: TensorSpec) -> int:
    """Size of the input for one row; negative when a dimension other than the rows is free."""
    rows = (1,) if spec.shape[:1] == (-1,) else spec.shape[:1]
    return math.prod((*rows, *spec.shape[1:])) * spec.datatype.itemsize


def _raw_shape(spec: TensorSpec, size_bytes: int) -> tuple[int, ...]:
    """The only shape that so many bytes can have; the free first one of several counts as 1."""
    shape = list(spec.shape)
    if spec.datatype is DataType.BYTES:
        ones = tuple(1 if size == -1 else size for size in shape)
        if not shape or math.prod(ones) != 1:
            raise BadTensor(
                f"input '{spec.name}': raw BYTES are one element, "
                f"but the model's shape is {list(spec.shape)}"
            )
        return ones
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise BadTensor(
            f"input '{spec.name}': a raw request leaves at most 1 dimension open, "
            f"the model's shape is {list(spec.shape)}"
        )
    if -1 in shape:
        step_bytes = -math.prod(shape) * spec.datatype.itemsize  # 0 where another one is 0
        shape[shape.index(-1)] = max(1, size_bytes // step_bytes) if step_bytes else 1
    return tuple(shape)


class _Inputs:
    """Reads the inputs in order; the binary ones move on through the rest of the body."""

    def __init__(
        self, body: bytes, json_bytes: int, signature: SignatureSpec, view: ModelView
    ) -> None:
        self._body = body
        self._at = json_bytes
        self._signature = signature
        self._view = view
        self._is_default = signature is _default_signature(view)
        self._max_batch = view.report.max_batch if self._is_default else 1

    def read(self, raw_inputs: object) -> Mapping[str, Array] | MediaBatch:
        """All inputs.

        Raises:
            Malformed, BadTensor, Unsupported: as `decode_infer`.
        """
        if raw_inputs is None and self._signature.inputs:
            raise Malformed(
                "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"
            )
        if raw_inputs is None:
            raw_inputs = []
        if type(raw_inputs) is not list:
            raise Malformed("Unable to parse 'inputs': attempt to access JSON non-array as array")
        media: MediaBatch | None = None
        arrays: dict[str, Array] = {}
        names: set[str] = set()
        for raw_input in raw_inputs:
            spec = self._find_spec(raw_input, names)
            names.add(spec.name)
            tensor = self._read_input(raw_input, spec, is_only=len(raw_inputs) == 1)
            if isinstance(tensor, MediaBatch):
                media = tensor
            else:
                arrays[spec.name] = tensor
        if self._at != len(self._body):
            raise Malformed(f"unexpected additional input data for model '{self._view.model}'")
        check_names(self._signature, names)
        if media is not None:
            return media
        if self._max_batch > 1:
            check_rows_agree(self._signature, self._max_batch, arrays)
        return arrays

    def _find_spec(self, raw_input: object, seen: set[str]) -> TensorSpec:
        if type(raw_input) is not dict:
            raise Malformed("Unable to parse 'inputs': each must be an object")
        name = _text_member(raw_input, "name")
        if name in seen:
            raise BadTensor(f"input '{shorten(name)}' is given twice")
        for spec in self._signature.inputs:
            if spec.name == name:
                return spec
        expected = ", ".join(f"'{spec.name}'" for spec in self._signature.inputs) or "none"
        raise BadTensor(
            f"unexpected inference input '{shorten(name)}' for model '{self._view.model}'; "
            f"expected {expected}"
        )

    def _read_input(
        self, raw_input: dict[str, Any], spec: TensorSpec, *, is_only: bool
    ) -> Array | MediaBatch:
        datatype = read_datatype(_text_member(raw_input, "datatype"), spec.name)
        shape = _shape_member(raw_input)
        is_media = (
            datatype is DataType.BYTES and self._is_default and _takes_media(spec, self._view)
        )
        if is_media:
            self._check_media_shape(spec, shape)
        else:
            check_tensor(spec, self._max_batch, datatype, shape)
        size_bytes = self._binary_size(raw_input, spec, may_omit=is_media and is_only)
        if size_bytes is None:
            data = raw_input["data"]
            if is_media:
                return MediaBatch(_media_from_json(data, shape, spec.name))
            return array_from_json(data, datatype, shape, name=f"input '{spec.name}'")
        start = self._take(size_bytes, spec)
        if is_media:
            return MediaBatch(media_from_block(self._body, start, size_bytes, shape, spec.name))
        if datatype is DataType.BYTES:
            elements = strings_from_block(
                self._body, start, size_bytes, math.prod(shape), spec.name
            )
            return bytes_array(elements).reshape(shape)
        return numbers_from_block(self._body, start, size_bytes, spec, shape)

    def _check_media_shape(self, spec: TensorSpec, shape: Sequence[int]) -> None:
        rows = shape[0] if shape else 0
        if rows < 1 or any(size != 1 for size in shape[1:]) or len(shape) > 2:  # noqa: PLR2004
            raise BadTensor(
                f"unexpected shape for input '{spec.name}': encoded pictures or sounds come as "
                f"BYTES of shape [N], got {list(shape)}"
            )
        if len(spec.shape) > 1:
            check_row_count(spec, self._max_batch, rows)
        elif rows > 1:
            raise BadTensor(f"input '{spec.name}': one sound at a time, got {rows}")

    def _binary_size(
        self, raw_input: dict[str, Any], spec: TensorSpec, *, may_omit: bool
    ) -> int | None:
        """How many bytes of the body are this input's; None when its values are in `data`."""
        parameters = raw_input.get("parameters")
        if parameters is None:
            parameters = {}
        if type(parameters) is not dict:
            raise Malformed(f"input '{spec.name}': 'parameters' must be an object")
        if _SHARED_MEMORY in parameters:
            raise Unsupported(_NO_SHARED_MEMORY)
        has_data = "data" in raw_input
        if "binary_data_size" in parameters:
            if has_data:
                raise Malformed(
                    f"input '{spec.name}' has both 'data' and 'binary_data_size'; send one of them"
                )
            return _unsigned(parameters, "binary_data_size")
        if has_data:
            return None
        if may_omit and self._at < len(self._body):
            return len(self._body) - self._at
        raise Malformed(
            f"input '{spec.name}' has no values: send 'data', or 'binary_data_size' in its "
            f"'parameters' and the header {HEADER_LENGTH}"
        )

    def _take(self, size_bytes: int, spec: TensorSpec) -> int:
        """Move on by `size_bytes`; where they start."""
        start = self._at
        lacking = start + size_bytes - len(self._body)
        if lacking > 0:
            raise Malformed(
                f"unexpected size for input '{spec.name}', expecting {lacking} additional bytes "
                f"for model '{self._view.model}'"
            )
        self._at = start + size_bytes
        return start


def read_datatype(text: str, name: str) -> DataType:
    """The datatype of a KServe name.

    Raises:
        BadTensor: there is none of that name here.
    """
    datatype = _DATATYPES.get(text)
    if datatype is None:
        raise BadTensor(
            f"input '{name}': datatype '{shorten(text)}' is not one of {', '.join(_DATATYPES)}"
        )
    return datatype


def _default_signature(view: ModelView) -> SignatureSpec:
    return next(iter(view.signatures.values()))


def _choose_signature(parameters: Mapping[str, object], view: ModelView) -> SignatureSpec:
    name = parameters.get("signature")
    if name is None:
        return _default_signature(view)
    if type(name) is not str:
        raise Malformed("Unable to parse 'signature': attempt to access JSON non-string as string")
    signature = view.signatures.get(name)
    if signature is None:
        raise SignatureNotFound(view.model, name, tuple(view.signatures))
    return signature


def _takes_media(spec: TensorSpec, view: ModelView) -> bool:
    """Whether encoded pictures or sounds may stand for this input."""
    media_input = view.profile.input
    return (
        media_input is not None
        and media_input.name == spec.name
        and view.profile.input_kind is not InputKind.TENSOR
        and spec.datatype is not DataType.BYTES
    )


def _request_parameters(document: dict[str, Any]) -> dict[str, object]:
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise Malformed("Unable to parse 'parameters': attempt to access JSON non-object as object")
    for name, value in parameters.items():
        if name.startswith("triton_"):
            raise Malformed(
                "parameter keys starting with 'triton_' are reserved for Triton usage "
                "and should not be specified."
            )
        if name in _SEQUENCE_PARAMETERS:
            raise Malformed(f"parameter '{name}': sequences are not offered here")
        if name != "headers" and type(value) not in (str, int, float, bool):
            raise Malformed(f"parameter '{shorten(name)}' must be a string, a number or a boolean")
    _unsigned(parameters, "priority")  # taken and ignored: there is one queue per model
    return cast("dict[str, object]", parameters)


def _read_outputs(
    raw_outputs: list[Any], signature: SignatureSpec, *, wants_binary: bool
) -> tuple[OutputWish, ...]:
    """The wanted outputs in their order; all of them when none is named."""
    if not raw_outputs:
        wishes = tuple(OutputWish(spec, wants_binary) for spec in signature.outputs)
    else:
        wishes = tuple(_read_output(raw, signature, wants_binary) for raw in raw_outputs)
        if len({wish.spec.name for wish in wishes}) != len(wishes):
            raise BadTensor("an output is asked for twice")
    return wishes


def _read_output(raw: object, signature: SignatureSpec, wants_binary: bool) -> OutputWish:  # noqa: FBT001
    if type(raw) is not dict:
        raise Malformed("Unable to parse 'outputs': each must be an object")
    name = _text_member(raw, "name")
    spec = next((spec for spec in signature.outputs if spec.name == name), None)
    if spec is None:
        known = ", ".join(f"'{spec.name}'" for spec in signature.outputs)
        raise BadTensor(f"unexpected inference output '{shorten(name)}'; the model has {known}")
    parameters = raw.get("parameters")
    if parameters is None:
        return OutputWish(spec, wants_binary)
    if type(parameters) is not dict:
        raise Malformed(f"output '{spec.name}': 'parameters' must be an object")
    if _SHARED_MEMORY in parameters:
        raise Unsupported(_NO_SHARED_MEMORY)
    classes = _unsigned(parameters, "classification")
    if classes and spec.datatype in (DataType.BYTES, DataType.BOOL):
        raise BadTensor(f"output '{spec.name}': {spec.datatype.value} has no classes to sort")
    return OutputWish(spec, _boolean(parameters, "binary_data", default=wants_binary), classes)


def _text_member(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if type(value) is str:
        return value
    if value is None:
        raise Malformed(
            f"Unable to parse '{key}': attempt to access non-existing object member '{key}'"
        )
    raise Malformed(f"Unable to parse '{key}': attempt to access JSON non-string as string")


def _list_member(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if value is None:
        return []
    if type(value) is not list:
        raise Malformed(f"Unable to parse '{key}': attempt to access JSON non-array as array")
    return value


def _shape_member(raw_input: dict[str, Any]) -> list[int]:
    shape = raw_input.get("shape")
    if type(shape) is not list:
        if shape is None:
            raise Malformed(
                "Unable to parse 'shape': attempt to access non-existing object member 'shape'"
            )
        raise Malformed("Unable to parse 'shape': attempt to access JSON non-array as array")
    for size in shape:
        if type(size) is not int or size < 0:
            raise Malformed(
                "Unable to parse 'shape': attempt to access JSON non-unsigned-integer "
                "as unsigned-integer"
            )
    return shape


def _unsigned(parameters: Mapping[str, object], key: str) -> int:
    """A parameter that is a whole number, 0 when it is not there."""
    value = parameters.get(key, 0)
    if type(value) is not int or value < 0:
        raise Malformed(
            f"Unable to parse '{key}': attempt to access JSON non-unsigned-integer "
            "as unsigned-integer"
        )
    return value


def _boolean(parameters: Mapping[str, object], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise Malformed(f"Unable to parse '{key}': attempt to access JSON non-boolean as boolean")
    return value


def _media_from_json(data: object, shape: Sequence[int], name: str) -> tuple[bytes, ...]:
    """Encoded files as base64 strings or {"b64": "..."}: JSON strings cannot hold them plainly."""
    items = data
    while type(items) is list and len(items) == 1 and type(items[0]) is list:
        items = items[0]
    if type(items) is not list or len(items) != shape[0]:
        raise BadTensor(f"input '{name}': expected a list of {shape[0]} base64 strings")
    label = f"input '{name}'"
    return tuple(
        decode_base64(item.get("b64") if type(item) is dict else item, label) for item in items
    )
