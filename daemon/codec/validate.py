"""Tensors against what the model takes, for every protocol: names, datatypes, shapes. Pure.

Rules:
1. Every input of the signature is there, and no other.
2. Datatypes are equal: nothing is converted.
3. The rank is the model's, a dimension the model fixes is that, a free one (-1) is at least 1.
4. The first dimension of a model that is proven to batch may differ from 1, up to `max_batch`, and
   is then the same for all inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerators.base import DataType
from daemon.errors import BadTensor, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from accelerators.base import Array, SignatureSpec, TensorSpec

# The runtime counts dimensions in 32 bits.
MAX_DIMENSION = 2**31 - 1


def check_inputs(signature: SignatureSpec, max_batch: int, inputs: Mapping[str, Array]) -> None:
    """Refuse inputs that the signature cannot take.

    Args:
        signature: what the inputs are for.
        max_batch: rows the model is proven to take per call (`ModelReport.max_batch` for the
            default signature, 1 for any other).
        inputs: by name.

    Raises:
        BadTensor: the message names the first input at fault and what was expected.
    """
    check_names(signature, inputs)
    for spec in signature.inputs:
        array = inputs[spec.name]
        if array.dtype != spec.datatype.dtype:
            raise _wrong_datatype(spec, str(array.dtype))
        check_shape(spec, max_batch, array.shape)
    check_rows_agree(signature, max_batch, inputs)


def check_names(signature: SignatureSpec, names: Iterable[str]) -> None:
    """Refuse unknown and missing inputs.

    Raises:
        BadTensor: with the names that the signature has.
    """
    given = set(names)
    wanted = {spec.name for spec in signature.inputs}
    if given == wanted:
        return
    expected = _listing(spec.name for spec in signature.inputs)
    for name in sorted(given - wanted):
        raise BadTensor(f"unexpected inference input '{shorten(name)}'; expected {expected}")
    missing = _listing(spec.name for spec in signature.inputs if spec.name not in given)
    raise BadTensor(f"expected {len(wanted)} inputs but got {len(given)} inputs; missing {missing}")


def check_tensor(
    spec: TensorSpec, max_batch: int, datatype: DataType, shape: Sequence[int]
) -> None:
    """Refuse one input by what its header says, before its data is looked at.

    Raises:
        BadTensor: datatype or shape are not the model's.
    """
    if datatype is not spec.datatype:
        raise _wrong_datatype(spec, datatype.value)
    check_shape(spec, max_batch, shape)


def check_shape(spec: TensorSpec, max_batch: int, shape: Sequence[int]) -> None:
    """Refuse a shape that the input cannot have.

    Raises:
        BadTensor: with the shape that was expected, -1 where any size will do.
    """
    if tuple(shape) == spec.shape and spec.shape:
        return
    expected = batched_shape(spec, max_batch)
    fits = len(shape) == len(expected) and all(
        (1 <= size <= MAX_DIMENSION) if wanted == -1 else size == wanted
        for wanted, size in zip(expected, shape, strict=True)
    )
    if not fits:
        raise BadTensor(
            f"unexpected shape for input '{spec.name}': "
            f"expected {list(expected)}, got {list(shape)}"
        )
    if spec.datatype is DataType.BYTES and not shape:
        raise BadTensor(f"input '{spec.name}': BYTES of rank 0 are not taken; send shape [1]")
    if shape:
        check_row_count(spec, max_batch, shape[0])


def check_row_count(spec: TensorSpec, max_batch: int, rows: int) -> None:
    """Refuse more rows than one call may have; a free first dimension has no bound of its own.

    Raises:
        BadTensor: with the bound.
    """
    bound = max_batch if _is_proven_batch(spec, max_batch) else spec.shape[0]
    if bound != -1 and rows > bound:
        raise BadTensor(f"input '{spec.name}': {rows} rows are more than the {bound} it takes")


def check_rows_agree(signature: SignatureSpec, max_batch: int, inputs: Mapping[str, Array]) -> None:
    """Refuse inputs of a batching model whose numbers of rows differ.

    Raises:
        BadTensor: with the numbers found.
    """
    batching = [spec.name for spec in signature.inputs if _is_proven_batch(spec, max_batch)]
    rows = {inputs[name].shape[0] for name in batching}
    if len(rows) > 1:
        raise BadTensor(
            f"inputs must have the same number of rows, got {sorted(rows)} in {_listing(batching)}"
        )


def batched_shape(spec: TensorSpec, max_batch: int) -> tuple[int, ...]:
    """The shape a client may send: -1 first where the model is proven to batch."""
    if _is_proven_batch(spec, max_batch):
        return (-1, *spec.shape[1:])
    return spec.shape


def _is_proven_batch(spec: TensorSpec, max_batch: int) -> bool:
    """Whether rows of a fixed first dimension may be stacked; a free one needs no proof."""
    return max_batch > 1 and bool(spec.shape) and spec.shape[0] == 1


def _wrong_datatype(spec: TensorSpec, got: str) -> BadTensor:
    return BadTensor(
        f"inference input '{spec.name}' data-type is '{got}', "
        f"but the model expects '{spec.datatype.value}'"
    )


def _listing(names: Iterable[str]) -> str:
    return ", ".join(f"'{shorten(name)}'" for name in names)
