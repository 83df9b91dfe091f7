"""External delegates: FPGAs, DSPs and other makers' accelerators, as the operator names them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelerators.access import denied
from accelerators.base import Device

if TYPE_CHECKING:
    from accelerators.interpreter import Interpreter
    from accelerators.outline import Outline
    from accelerators.registry import External, HardwareSettings

MEMORY_MIB = 64
"""For a driver's heap and the buffers of its transfers; no driver was at hand to measure."""

CRASH_HINT = (
    "most likely it is built for an older TFLite, whose structures lie otherwise in memory (before "
    "2.6): ask its maker for a build for this runtime"
)

_ABSENT = Device(
    "external",
    "external",
    problem="no external delegate is named in the configuration",
    next_step="name one as [[accelerators.external]] in inferd.toml",
)


def find(settings: HardwareSettings) -> tuple[Device, ...]:
    """A device for each delegate of the configuration."""
    return tuple(_find(each, settings.root) for each in settings.externals) or (_ABSENT,)


def look(device: Device) -> Device:
    """The same device, with what is wrong with its library. In a process of its own."""
    from accelerators.delegates import lacks_interface, open_library  # noqa: PLC0415
    from accelerators.interpreter import DeviceFailure  # noqa: PLC0415

    try:
        problem = lacks_interface(device.library, open_library(device.library))
    except DeviceFailure as exc:
        problem = str(exc)
    if not problem:
        return device
    step = (
        f"install its driver for this machine, or mend the path of '{device.name}' in inferd.toml"
    )
    return replace(device, problem=problem, next_step=step)


def check(_outline: Outline) -> str:
    """Nothing speaks against a try: what a delegate takes, only the delegate knows."""
    return ""


def open_runner(path: str, threads: int, device: Device) -> Interpreter:
    """An interpreter that hands the delegate what it takes.

    Raises:
        RuntimeFailure: the runtime does not accept the file.
        DeviceFailure: the delegate cannot be had, or takes nothing of the model.
    """
    from accelerators.delegates import Delegate  # noqa: PLC0415
    from accelerators.interpreter import Interpreter  # noqa: PLC0415

    delegate = Delegate(device.library, device.options)
    return Interpreter(path, threads=threads, delegate=delegate)


def _find(external: External, root: Path) -> Device:
    device = Device(
        f"external:{external.name}",
        "external",
        name=external.name,
        driver=Path(external.library).name,
        library=external.library,
        options=external.options,
        exclusive=external.exclusive,
    )
    if "/" in external.library:  # else the loader knows where it is
        try:
            changed_at = Path(external.library).stat().st_mtime
        except OSError as exc:
            return replace(
                device,
                problem=f"its driver {external.library} cannot be had: {exc.strerror}",
                next_step=f"install it, or mend the path of '{external.name}' in inferd.toml",
            )
        # The interface knows no versions: a driver's date tells it from its next version.
        day = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(changed_at))
        device = replace(device, driver=f"{device.driver} of {day}")
    if external.node:
        return _with_node(device, external.node, root)
    return device


def _with_node(device: Device, node: str, root: Path) -> Device:
    path = root / node.lstrip("/")
    if not path.exists():
        step = (
            "connect it, switch it on, load its kernel driver, and let inferd see the node: the "
            "drop-in external.conf among inferd's examples does so"
        )
        return replace(device, problem=f"it is not here: there is no {node}", next_step=step)
    # A file of /sys may tell that the device is there without being of any other use.
    is_device = path.is_char_device() or path.is_block_device()
    problem, next_step = denied(path, node) if is_device else ("", "")
    return replace(device, problem=problem, next_step=next_step) if problem else device
