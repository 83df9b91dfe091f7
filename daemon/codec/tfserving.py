"""TF Serving's predict bodies to requests, and results to predict bodies. Pure.

Rules of a request, in the order in which they are checked:

1. The body is one JSON object (`daemon.codec.tfserving_json`); unknown keys are ignored.
2. `signature_name`, when given, is a string and names a signature. Without it the model's
   `serving_default` answers, or its first signature where it has none (our extension).
3. Exactly one of `instances` (row format) and `inputs` (column format) is there.
4. Row: a list that is not empty. Its elements are all values, for a signature with one input, or
   all objects whose keys equal the signature's inputs; and they all have one shape.
5. Column: a value, for a signature with one input, or an object with a value for every input;
   other names in it are ignored. A signature without inputs takes `{}` (our extension).
6. Values make a tensor of the input's type (`daemon.codec.tfserving_tensors`). An object whose only
   key is `b64` is a value, never an object of names.
7. Where the model takes pictures or sounds, {"b64": ...} in place of a row of its only input is an
   encoded picture or sound (OVMS's convention).

Not checked here: shapes and sizes against the model; `daemon.codec.validate` does.

Source: TF Serving, util/json_tensor.cc, for the rules and the messages; where we differ is in
docs/tfserving.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

import orjson

from accelerators.base import DataType
from daemon.codec.numberlists import Numbers
from daemon.codec.pieces import check_answer_size
from daemon.codec.tfserving_json import (
    decode_document,
    kind,
    misformatted,
    parse_document,
    show,
)
from daemon.codec.tfserving_tensors import Fault, encode_tensor, is_b64, to_array, unescape
from daemon.errors import BadTensor, Malformed, shorten
from daemon.tensors import MediaBatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from accelerators.base import Array, SignatureSpec, TensorSpec

DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"


class Layout(Enum):
    """How tensors are laid out in a body; the value is the key they stand under in an answer."""

    ROW = "predictions"
    COLUMN = "outputs"


@dataclass(frozen=True, slots=True)
class DecodedPredict:
    """What a predict request holds.

    Attributes:
        signature: the one it names, or the default.
        layout: the request's, which is the answer's too.
        inputs: every input of the signature by name; or an encoded picture or sound for each row.
    """

    signature: SignatureSpec
    layout: Layout
    inputs: Mapping[str, Array] | MediaBatch


def decode_predict(
    body: bytes, signatures: Mapping[str, SignatureSpec], *, takes_media: bool = False
) -> DecodedPredict:
    """Read the body of a `:predict` request.

    Args:
        body: inflated.
        signatures: the model's, by name, at least one.
        takes_media: the model turns an encoded picture or sound into its only input (rule 7).

    Raises:
        Malformed, BadTensor: a rule is broken; the message is TF Serving's where it has one.
        Unsupported: the type of an input has no form in TF Serving's JSON.
        TooLarge: JSON that would take too long to parse.
    """
    return decode_document(
        body, lambda document: _decode_predict(document, signatures, takes_media=takes_media)
    )


def _decode_predict(
    document: dict[str, Any], signatures: Mapping[str, SignatureSpec], *, takes_media: bool
) -> DecodedPredict:
    """Read a parsed body; its lists of numbers may be `Numbers`."""
    signature = choose_signature(document, signatures)
    has_instances = "instances" in document
    if has_instances and "inputs" in document:
        raise misformatted(
            document,
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist",
        )
    if has_instances:
        rows = document["instances"]
        if type(rows) is Numbers:  # rows of the one input are its column
            inputs = _read_columns(rows, signature, takes_media=takes_media)
        else:
            inputs = _read_rows(_rows_of(document), signature, takes_media=takes_media)
        return DecodedPredict(signature, Layout.ROW, inputs)
    if "inputs" in document:
        inputs = _read_columns(document["inputs"], signature, takes_media=takes_media)
        return DecodedPredict(signature, Layout.COLUMN, inputs)
    raise Malformed("Missing 'inputs' or 'instances' key")


def refuse_examples(method: str, body: bytes, signatures: Mapping[str, SignatureSpec]) -> NoReturn:
    """Answer a `:classify` or `:regress` request: every signature of a TFLite model is for predict.

    Args:
        method: "classify" or "regress".
        body: inflated.
        signatures: the model's, by name, at least one.

    Raises:
        Malformed: always; the message says what is wrong with the request first.
    """
    document = parse_document(body)
    choose_signature(document, signatures)
    if "examples" not in document:
        raise misformatted(
            document, f"When method is {method}, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if type(examples) is not list:
        raise misformatted(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise misformatted(document, "'examples' value is an empty array")
    for example in examples:
        if type(example) is not dict:
            raise Malformed(f"Example must be JSON object but got JSON {kind(example)}")
    wanted = "classification" if method == "classify" else "regression"
    raise Malformed(
        f"Expected {wanted} signature method_name to be tensorflow/serving/{method}. "
        f"Was: {PREDICT_METHOD}"
    )


def choose_signature(
    document: Mapping[str, Any], signatures: Mapping[str, SignatureSpec]
) -> SignatureSpec:
    """Find the signature a request asks for, by rule 2.

    Raises:
        Malformed: `signature_name` is not a string, or there is no signature of that name.
    """
    name = document.get("signature_name", "")
    if type(name) is not str:
        raise misformatted(
            document, "not formatted correctly. 'signature_name' key must be a string value."
        )
    if not name:
        return signatures.get(DEFAULT_SIGNATURE) or next(iter(signatures.values()))
    if name not in signatures:
        raise Malformed(f'Serving signature name: "{shorten(name)}" not found in signature def')
    return signatures[name]


def encode_predict(layout: Layout, outputs: Mapping[str, Array]) -> bytes:
    """Write the body of a `:predict` answer. NaN and infinities are bare tokens, as TF Serving's.

    Args:
        layout: the request's.
        outputs: at least one, in the order in which they are written.

    Raises:
        BadTensor: an output is of a type without JSON form, or they are no rows of one batch.
        TooLarge: the outputs have more values than are written as JSON.
    """
    check_answer_size(outputs.values())
    if layout is Layout.ROW:
        _require_one_batch(outputs)
    if len(outputs) == 1:
        ((name, values),) = outputs.items()
        content = encode_tensor(name, values)
    elif layout is Layout.ROW:
        batch = next(iter(outputs.values())).shape[0]
        rows = (_encode_named({n: v[i, ...] for n, v in outputs.items()}) for i in range(batch))
        content = b"[" + b", ".join(rows) + b"]"
    else:
        content = _encode_named(outputs)
    return b'{\n    "%s": %s\n}' % (layout.value.encode(), content)


# Rules 3 to 5: which values belong to which input.


def _rows_of(document: Mapping[str, Any]) -> list[Any]:
    rows = document["instances"]
    if type(rows) is not list:
        raise misformatted(document, "Expecting 'instances' to be an list/array")
    if not rows:
        raise misformatted(document, "No values in 'instances' array")
    return rows


def _read_rows(
    rows: list[Any], signature: SignatureSpec, *, takes_media: bool
) -> Mapping[str, Array] | MediaBatch:
    if _is_names(rows[0]):
        return _read_named_rows(rows, signature, takes_media=takes_media)
    if len(signature.inputs) != 1:
        raise BadTensor(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    spec = signature.inputs[0]
    if takes_media and (media := _media_of(rows, spec)):
        return media
    try:
        return {spec.name: to_array(rows, spec.datatype)}
    except Fault as fault:
        names = (index for index, row in enumerate(rows) if _is_names(row))
        if (item := next(names, None)) is not None:
            raise BadTensor(
                f"Expecting value/list but got object at item {item} of input list"
            ) from fault
        raise _row_error(rows, spec, fault) from fault


def _read_named_rows(
    rows: list[Any], signature: SignatureSpec, *, takes_media: bool
) -> Mapping[str, Array] | MediaBatch:
    names = {spec.name for spec in signature.inputs}
    for index, row in enumerate(rows):
        if type(row) is not dict or row.keys() != names:
            raise _names_error(index, row, names)
    if takes_media and len(names) == 1:
        spec = signature.inputs[0]
        if media := _media_of([row[spec.name] for row in rows], spec):
            return media
    inputs: dict[str, Array] = {}
    for spec in signature.inputs:
        values = [row[spec.name] for row in rows]
        try:
            inputs[spec.name] = to_array(values, spec.datatype)
        except Fault as fault:
            raise _row_error(values, spec, fault, key=spec.name) from fault
    return inputs


def _names_error(index: int, row: object, names: set[str]) -> BadTensor:
    if not isinstance(row, dict) or not _is_names(row):
        return BadTensor(f"Expecting object but got list at item {index} of input list")
    place = f"Failed to process element: {index}"
    unknown = next((key for key in row if key not in names), None)
    if unknown is not None:
        key = shorten(unknown)
        return BadTensor(
            f"{place} key: {key} of 'instances' list. Error: INVALID_ARGUMENT: "
            f"JSON object: does not have named input: {key}"
        )
    return BadTensor(
        f"{place} of 'instances' list. JSON object: {show(row)} "
        f"keys must be equal to: {','.join(sorted(names))}"
    )


def _row_error(rows: list[Any], spec: TensorSpec, fault: Fault, key: str = "") -> BadTensor:
    """Say of one element of `instances` what is wrong with the tensor of them all."""
    row = fault.row
    detail = fault.message
    try:
        first, other = to_array(rows[0], spec.datatype), to_array(rows[row], spec.datatype)
    except Fault as inner:
        detail = inner.message
    else:
        if first.size != other.size:
            detail = f"Expecting tensor size: {first.size} but got: {other.size}"
        elif first.shape != other.shape:
            detail = f"Expecting shape {_brackets(first)} but got: {_brackets(other)}"
    named = f" key: {key}" if key else ""
    return BadTensor(
        f"Failed to process element: {row}{named} of 'instances' list. "
        f"Error: INVALID_ARGUMENT: {detail}"
    )


def _brackets(values: Array) -> str:
    return f"[{','.join(map(str, values.shape))}]"


def _read_columns(
    value: object, signature: SignatureSpec, *, takes_media: bool
) -> Mapping[str, Array] | MediaBatch:
    specs = signature.inputs
    if isinstance(value, dict) and _is_names(value):
        for spec in specs:
            if spec.name not in value:
                raise BadTensor(f"Missing named input: {spec.name} in 'inputs' object.")
        columns = {spec.name: value[spec.name] for spec in specs}
    elif len(specs) == 1:
        columns = {specs[0].name: value}
    else:
        raise BadTensor(
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if takes_media and len(specs) == 1:
        column = columns[specs[0].name]
        if media := _media_of(column if type(column) is list else [column], specs[0]):
            return media
    try:
        return {spec.name: to_array(columns[spec.name], spec.datatype) for spec in specs}
    except Fault as fault:
        raise BadTensor(fault.message) from fault


def _is_names(value: object) -> bool:
    return type(value) is dict and not is_b64(value)


def _media_of(rows: list[Any], spec: TensorSpec) -> MediaBatch | None:
    """The encoded pictures or sounds of rule 7; None where these are ordinary values."""
    if spec.datatype is DataType.BYTES or not rows or not all(map(is_b64, rows)):
        return None
    try:
        return MediaBatch(tuple(unescape(row["b64"]) for row in rows))
    except Fault as fault:
        raise Malformed(fault.message) from fault


# Answers.


def _require_one_batch(outputs: Mapping[str, Array]) -> None:
    batch: int | None = None
    for name, values in outputs.items():
        if values.ndim == 0:
            raise BadTensor(f"Tensor name: {name} has no shape information")
        if batch is not None and values.shape[0] != batch:
            raise BadTensor(
                f"Tensor name: {name} has inconsistent batch size: {values.shape[0]} "
                f"expecting: {batch}"
            )
        batch = values.shape[0]


def _encode_named(tensors: Mapping[str, Array]) -> bytes:
    members = (
        orjson.dumps(name) + b": " + encode_tensor(name, values) for name, values in tensors.items()
    )
    return b"{" + b", ".join(members) + b"}"
