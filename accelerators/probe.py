"""How many rows a call may have: as many as were seen to equal their single runs."""

from __future__ import annotations

import contextlib
from random import Random  # NumPy's generators would take 3 MB in every worker
from typing import TYPE_CHECKING

import numpy as np

from accelerators.errors import InvokeFailed
from accelerators.seeds import SEED, invented

if TYPE_CHECKING:
    from accelerators.base import Array, LoadSpec
    from accelerators.interpreter import Entry, Port
    from accelerators.session import Session

_AUTOMATIC_BATCH = 8  # rows; larger gains nothing on any model measured
_PROBE_ROWS = 4  # different rows in a probe: enough to tell a mixed row from its own
_PROBE_SHARE = 0.1  # of the load's time limit that the probe may take

# A float row may differ from its single run by so much of the output's range: kernels add up in
# another order. Measured: 4e-7 of the range; a mixed row differs by tenths.
_TOLERANCE = 1e-4


def prove_rows(session: Session, entry: Entry, spec: LoadSpec, warm_s: float) -> int:
    """How many rows a call of the entry, which takes `warm_s` seconds, may have.

    The session is made anew and warmed after a probe.

    Raises:
        RuntimeFailure: it cannot be made anew.
    """
    dynamic = all(port.spec.shape[:1] == (-1,) for port in entry.inputs)
    rows = spec.max_batch or (_AUTOMATIC_BATCH if dynamic else 1)
    single = all(shape[:1] == (1,) for shape in entry.shapes)
    if rows == 1 or not entry.inputs or not single:
        return 1
    if warm_s * (2 * rows + _PROBE_ROWS + 2) > spec.load_timeout_s * _PROBE_SHARE:
        return 1
    session.allow_rows(rows)
    try:
        agree = _rows_agree(session, entry, sorted({2, rows}))
    except (InvokeFailed, MemoryError):
        agree = False
    # Whatever the probe left behind, calls start from the file's own shapes, and warm.
    session.renew()
    with contextlib.suppress(InvokeFailed):
        session.run(0, [filled(port, shape, 1) for port, shape in ports_of(entry)])
    return rows if agree else 1


def _rows_agree(session: Session, entry: Entry, sizes: list[int]) -> bool:
    """Whether each row of larger calls equals the row's own call."""
    rng = Random(SEED)  # noqa: S311 (nobody gains by guessing it)
    rows = [
        [invented(port.spec.datatype, shape, rng) for port, shape in ports_of(entry)]
        for _ in range(_PROBE_ROWS)
    ]
    singles = [_copied(session, row) for row in rows]
    for size in sizes:
        picks = [number % _PROBE_ROWS for number in range(size)]
        columns = [[rows[pick][place] for pick in picks] for place in range(len(entry.inputs))]
        together = _copied(session, [np.concatenate(column) for column in columns])
        for place, output in enumerate(together):
            expected = [singles[pick][place] for pick in picks]
            if any(one.shape[:1] != (1,) for one in expected):
                return False
            if not _equal(output, np.concatenate(expected)):
                return False
    return True


def _copied(session: Session, inputs: list[Array]) -> list[Array]:
    outputs, _ = session.run(0, inputs)
    return [output.copy() for output in outputs]


def _equal(output: Array, expected: Array) -> bool:
    if output.shape != expected.shape:
        return False
    if output.dtype.kind != "f":
        return bool(np.array_equal(output, expected))
    scale = float(np.nanmax(np.abs(expected), initial=0.0)) if expected.size else 0.0
    atol = _TOLERANCE * scale if np.isfinite(scale) else 0.0
    return bool(np.allclose(output, expected, rtol=_TOLERANCE, atol=atol, equal_nan=True))


def ports_of(entry: Entry) -> list[tuple[Port, tuple[int, ...]]]:
    """The entry's inputs with the shapes they have now."""
    return list(zip(entry.inputs, entry.shapes, strict=True))


def filled(port: Port, shape: tuple[int, ...], value: int) -> Array:
    """An input made of one number, or of its digits where the model takes strings."""
    if port.is_bytes:
        return np.full(shape, str(value).encode(), object)
    return np.full(shape, value, port.spec.datatype.dtype)
