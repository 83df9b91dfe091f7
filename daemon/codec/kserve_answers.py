"""Results as KServe v2 inference answers: JSON, binary tensors, best classes. Pure.

Source: the Open Inference Protocol's REST text; Triton's extension_binary_data.md and
extension_classification.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from accelerators.base import DataType
from daemon.codec.binarytensors import block_from_strings
from daemon.codec.jsontensors import array_to_json, bytes_array
from daemon.codec.pieces import check_answer_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from accelerators.base import Array
    from daemon.codec.kserve import InferCall, OutputWish
    from daemon.tensors import PredictResult


def encode_infer(
    call: InferCall,
    result: PredictResult,
    labels: Sequence[str] = (),
    details: Mapping[str, object] | None = None,
) -> tuple[bytes, int | None]:
    """Write the answer.

    Args:
        call: what was asked.
        result: has every output that `call` wants.
        labels: class names by index, for the classification extension.
        details: the answer's `parameters`; None for none.

    Returns:
        The body, and how many bytes of it are JSON when binary tensors follow, else None.

    Raises:
        BadTensor: a BYTES output that is not UTF-8 was asked for as JSON.
        TooLarge: the outputs have more values than are written as JSON.
    """
    check_answer_size(written_arrays(call, result))
    document: dict[str, object] = {
        "model_name": result.model,
        "model_version": str(result.version),
    }
    if call.request_id is not None:
        document["id"] = call.request_id
    if details is not None:
        document["parameters"] = details
    blocks: list[Any] = []
    document["outputs"] = [
        _encode_output(wish, result.outputs[wish.spec.name], labels, blocks)
        for wish in call.outputs
    ]
    head = orjson.dumps(document)
    if not blocks:
        return head, None
    return b"".join((head, *blocks)), len(head)


def written_arrays(call: InferCall, result: PredictResult) -> Iterator[Array]:
    """The outputs whose values are written or sorted one by one; the others are copied."""
    return (
        result.outputs[wish.spec.name]
        for wish in call.outputs
        if not wish.binary or wish.classes or wish.spec.datatype is DataType.BYTES
    )


def _encode_output(
    wish: OutputWish, array: Array, labels: Sequence[str], blocks: list[Any]
) -> dict[str, object]:
    """The output's JSON; its bytes, if they are wanted, go to `blocks`."""
    datatype = wish.spec.datatype
    if wish.classes:
        array, datatype = _best_classes(array, wish.classes, labels), DataType.BYTES
    output: dict[str, object] = {
        "name": wish.spec.name,
        "datatype": datatype.value,
        "shape": array.shape,
    }
    if wish.binary:
        is_text = datatype is DataType.BYTES
        block = block_from_strings(array) if is_text else np.ascontiguousarray(array)
        output["parameters"] = {"binary_data_size": len(block) if is_text else array.nbytes}
        blocks.append(block)
    else:
        name = f"output '{wish.spec.name}'"
        output["data"] = orjson.Fragment(array_to_json(array, datatype, name=name))
    return output


def _best_classes(array: Array, count: int, labels: Sequence[str]) -> Array:
    """BYTES "value:index[:label]", best first; rows stay rows where the rank is 2 or more."""
    has_rows = array.ndim >= 2  # noqa: PLR2004 (a row axis and another)
    row_count, row_shape = (array.shape[0], array.shape[1:]) if has_rows else (1, array.shape)
    rows = array.reshape(row_count, math.prod(row_shape))
    count = min(count, rows.shape[1])
    # A stable sort of the negated order: equal values keep the order of their index.
    order = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, :count]
    texts = [
        _class_text(row[index], index, labels)
        for row, indexes in zip(rows, order.tolist(), strict=True)
        for index in indexes
    ]
    shape = (row_count, count) if has_rows else (count,)
    return bytes_array(texts).reshape(shape)


def _class_text(value: np.generic, index: int, labels: Sequence[str]) -> bytes:
    number = f"{value:f}" if isinstance(value, np.floating) else str(value)
    label = labels[index] if index < len(labels) else ""
    return (f"{number}:{index}:{label}" if label else f"{number}:{index}").encode()
