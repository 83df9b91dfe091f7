"""Which kinds of accelerator there are: one module each, one line in `KINDS`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from accelerators import cpu, edgetpu, external, gpu, npu

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerators.base import Device
    from accelerators.outline import Outline
    from accelerators.runner import Runner


@dataclass(frozen=True, slots=True)
class External:
    """A delegate of TFLite's external interface, as the operator names it.

    Attributes:
        name: tells it from others; its device is "external:NAME".
        library: the file.
        options: for `tflite_plugin_create_delegate`: name and value.
        node: a path that is there while the device is, e.g. "/dev/xdma0"; "" when there is none.
        exclusive: only one process may have the device open at a time.
    """

    name: str
    library: str
    options: tuple[tuple[str, str], ...] = ()
    node: str = ""
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class HardwareSettings:
    """What an operator says about devices.

    Attributes:
        externals: the delegates that may be used.
        edgetpu_library: by name or path.
        openvino_device: what OpenVINO is to run on for the kind npu: "npu", "gpu" or "cpu".
        root: of the file system in which devices are looked for.
    """

    externals: tuple[External, ...] = ()
    edgetpu_library: str = "libedgetpu.so.1"
    openvino_device: str = "npu"
    root: Path = Path("/")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of accelerator.

    Attributes:
        find: its devices, each with its problem if it has one; also one with a problem where
            nothing of the kind is here. Called in the daemon every second: reads /sys, /dev and the
            like, loads no library, takes well below a millisecond.
        look: the same device with what only its library knows: name, driver, a problem. Called in a
            process of its own, since drivers crash and hang. None where `find` knows everything.
        check: why no device of this kind can run a file, in one sentence; "" when one may try.
        open: path, threads and device to what runs the model; in a worker.
        memory_mib: what the driver takes in a worker, beyond what the model may.
        crash_hint: what it most likely means that opening a device kills the process.
    """

    find: Callable[[HardwareSettings], tuple[Device, ...]]
    look: Callable[[Device], Device] | None
    check: Callable[[Outline], str]
    open: Callable[[str, int, Device], Runner]
    memory_mib: int = 0
    crash_hint: str = ""


KINDS: dict[str, Kind] = {
    "cpu": Kind(cpu.find, None, cpu.check, cpu.open_interpreter),
    "gpu": Kind(gpu.find, gpu.look, gpu.check, gpu.open_compiled, gpu.MEMORY_MIB),
    "npu": Kind(npu.find, npu.look, npu.check, npu.open_compiled, npu.MEMORY_MIB),
    "edgetpu": Kind(
        edgetpu.find,
        edgetpu.look,
        edgetpu.check,
        edgetpu.open_runner,
        edgetpu.MEMORY_MIB,
        edgetpu.CRASH_HINT,
    ),
    "external": Kind(
        external.find,
        external.look,
        external.check,
        external.open_runner,
        external.MEMORY_MIB,
        external.CRASH_HINT,
    ),
}
