"""In a child process: what only a device's own driver knows of it."""

from __future__ import annotations

from dataclasses import replace

from accelerators.registry import KINDS
from accelerators.report import decode_device, encode_device

TEXT_MAX = 500  # characters of each of the device's texts


def look_at(order: bytes) -> bytes:
    """The device of the order as its driver tells of it, with a problem where it does not.

    Raises:
        MemoryError: the driver needs more than the child may take.
        BadReport: the order is not one.
    """
    device = decode_device(order)
    kind = KINDS[device.kind]
    try:
        looked = device if kind.look is None else kind.look(device)
    except MemoryError:
        raise
    except Exception as exc:  # noqa: BLE001 (drivers' libraries raise what they like)
        looked = replace(device, problem=f"its driver cannot be asked: {exc}")
    return encode_device(
        replace(
            device,
            name=looked.name[:TEXT_MAX],
            driver=looked.driver[:TEXT_MAX],
            problem=looked.problem[:TEXT_MAX],
            next_step=looked.next_step[:TEXT_MAX],
            options=looked.options,
        )
    )
