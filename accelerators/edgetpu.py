"""Coral Edge TPUs, on USB and on PCIe.

What an operator meets, and where it is found out:
1. None is connected, its node is hidden or forbidden, the kernel's driver is missing: `find`.
2. libedgetpu is missing, or does not see the device: `look`.
3. The model is not compiled for the Edge TPU: `check`.
4. The device does not open. A stick that was not used since it was plugged in loads its firmware
   then, is gone for some seconds, and comes back with other numbers, on USB 3 on another bus: one
   more try. So that no model has to wait for that, `look` opens a new stick once. What remains is
   mostly power, the cable, or another program that has it: libedgetpu does not say.
5. libedgetpu is built for another TFLite, which kills the worker that opens it (Google's own build
   of 16.0, with every runtime after 2.11): CRASH_HINT.
Source: libedgetpu's edgetpu_c.h; the kernel's Documentation/ABI/testing/sysfs-bus-usb; the words of
those who run such sticks (google-coral/edgetpu issues 766, 812; Frigate's documentation). Nothing
here has met a real Edge TPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelerators.access import denied
from accelerators.base import Device

if TYPE_CHECKING:
    from accelerators.delegates import Delegate
    from accelerators.interpreter import Interpreter
    from accelerators.outline import Outline
    from accelerators.registry import HardwareSettings

KIND = "edgetpu"

MEMORY_MIB = 64
"""For libedgetpu's heap and the buffers of its transfers; no device was at hand to measure."""

CRASH_HINT = (
    "most likely libedgetpu is built for another TFLite, as Google's own is for all after 2.11: "
    "install the build for a new TFLite from github.com/feranick/libedgetpu/releases"
)

_NEW_STICK = ("1a6e", "089a")  # as it is plugged in: it waits for its firmware
_READY_STICK = ("18d1", "9302")
_PCI_CHIP = ("0x1ac1", "0x089a")
_MAKERS = frozenset(maker for maker, _ in (_NEW_STICK, _READY_STICK, _PCI_CHIP))
_FACT_BYTES = 64  # of a file of /sys; those that are read here have less than ten

_REOPEN_S = 10.0  # for a stick to come back after it has loaded its firmware; measured by others: 3
_POLL_S = 0.1
_SLOW_MBITS = 480  # what USB 2 has; inputs and unpacked weights take ten times as long

_TYPE_PCI, _TYPE_USB = 0, 1
_DEVICES_MAX = 64
_VERSION_MAX = 200  # characters

_DROP_IN = "the drop-in edgetpu.conf among inferd's examples"

_TROUBLE = (
    "end other programs that use it; use a USB 3 port or a hub with its own power supply, and a "
    "short cable; pull it out and put it in again"
)


@dataclass(frozen=True, slots=True)
class Listed:
    """A device as libedgetpu lists it.

    Attributes:
        option: what the delegate takes to mean this one.
        path: its folder in /sys, or its node in /dev.
    """

    option: str
    path: Path


def find(settings: HardwareSettings) -> tuple[Device, ...]:
    """Sticks by their numbers on the USB, chips by the nodes of the kernel's driver."""
    library = settings.edgetpu_library
    found = (*_find_sticks(settings.root), *_find_chips(settings.root))
    if not found:
        return (
            Device(
                KIND,
                KIND,
                problem="no Edge TPU is connected",
                next_step=(
                    "connect one; hand a container or a virtual machine the whole USB bus: a stick "
                    "has other numbers (1a6e:089a, then 18d1:9302) once it was used"
                ),
            ),
        )
    return tuple(replace(device, library=library, driver=library) for device in found)


def look(device: Device) -> Device:
    """The same device, with libedgetpu's version or what is wrong. In a process of its own."""
    from accelerators.interpreter import DeviceFailure  # noqa: PLC0415

    try:
        library = _open_library(device.library)
    except DeviceFailure as exc:
        return replace(device, problem=str(exc), next_step=_missing(device.library))
    device = replace(device, driver=f"libedgetpu {_version(library)}".strip())
    chosen = _chosen(device, library)
    try:
        if chosen is None or _is_new(chosen.path):
            _open_device(device, library)
    except DeviceFailure as exc:
        return replace(device, problem=str(exc), next_step=_TROUBLE)
    return device


def check(outline: Outline) -> str:
    """Why no Edge TPU can run a file, in one sentence; "" when one may try."""
    if outline.edgetpu:
        return ""
    return "the model is not compiled for the Edge TPU: compile it with edgetpu_compiler"


def open_runner(path: str, threads: int, device: Device) -> Interpreter:
    """An interpreter whose compiled part runs on the device.

    Raises:
        RuntimeFailure: the runtime does not accept the file.
        DeviceFailure: the device cannot be had, or takes nothing of the model.
    """
    from accelerators.interpreter import DeviceFailure, Interpreter  # noqa: PLC0415

    library = _open_library(device.library)
    try:
        delegate = _open_device(device, library)
    except DeviceFailure as exc:
        raise DeviceFailure(f"{exc}: {_TROUBLE}") from exc
    return Interpreter(path, threads=threads, delegate=delegate)


def _find_sticks(root: Path) -> list[Device]:
    found: list[Device] = []
    bus_folder = root / "sys/bus/usb/devices"
    for entry in _entries(bus_folder):
        if ":" in entry:  # an interface of a device
            continue
        numbers = _numbers(f"{bus_folder}/{entry}/idVendor", f"{bus_folder}/{entry}/idProduct")
        if numbers not in (_NEW_STICK, _READY_STICK):
            continue
        folder = bus_folder / entry
        speed = _read(folder / "speed")
        notes = ["waits for its firmware"] if numbers == _NEW_STICK else []
        if numbers == _READY_STICK and speed.isdigit() and int(speed) <= _SLOW_MBITS:
            notes.append("slow: on USB 2")
        name = f"Coral USB Accelerator{f' ({notes[0]})' if notes else ''}"
        device = Device(f"{KIND}:usb-{_socket(folder)}", KIND, name=name, exclusive=True)
        bus, number = _read(folder / "busnum"), _read(folder / "devnum")
        if not bus or not number:
            continue  # it is being pulled out
        node = f"/dev/bus/usb/{bus.zfill(3)}/{number.zfill(3)}"
        found.append(_with_node(device, root, node))
    return found


def _find_chips(root: Path) -> list[Device]:
    found = [
        _with_node(
            Device(f"{KIND}:{name}", KIND, name="Coral on PCIe", exclusive=True),
            root,
            f"/dev/{name}",
        )
        for name in _entries(root / "sys/class/apex")
    ]
    if found:
        return found
    bus_folder = root / "sys/bus/pci/devices"
    for slot in _entries(bus_folder):
        if _numbers(f"{bus_folder}/{slot}/vendor", f"{bus_folder}/{slot}/device") == _PCI_CHIP:
            return [
                Device(
                    f"{KIND}:pci-{slot}",
                    KIND,
                    name="Coral on PCIe",
                    problem="the kernel's driver for it is not loaded (gasket, apex)",
                    next_step=(
                        "install gasket-dkms in a version that this kernel can build, and load it: "
                        "modprobe apex"
                    ),
                    exclusive=True,
                )
            ]
    return []


def _with_node(device: Device, root: Path, node: str) -> Device:
    """The device, with what is wrong with its node in /dev."""
    path = root / node.lstrip("/")
    if not path.exists():
        return replace(
            device,
            problem=f"its node {node} is hidden from inferd",
            next_step=(
                f"let inferd's unit see it with {_DROP_IN}; a container needs it handed over, a "
                "stick with all of /dev/bus/usb"
            ),
        )
    problem, _ = denied(path, node)
    if not problem:
        return device
    return replace(
        device,
        problem=problem,
        next_step=(
            "inferd's udev rule (60-inferd.rules) gives it to group apex, Google's to plugdev: "
            f"install one, connect the device again, and let inferd have the group: {_DROP_IN}"
        ),
    )


def _socket(folder: Path) -> str:
    """Where a stick is plugged in, e.g. "1-1.4".

    A socket for USB 3 is two ports of two buses, and a stick changes from one to the other when it
    has its firmware. The kernel tells which port is the other's peer; the first one's name is used.
    """
    peer = ""
    with contextlib.suppress(OSError):  # it has none, or the kernel does not tell
        peer = _device_at((folder / "port/peer").resolve(strict=True))
    return min(folder.name, peer or folder.name)


def _device_at(port: Path) -> str:
    """What the kernel calls a device in a port: "usb2-port4" has 2-4, "2-1-port4" has 2-1.4."""
    hub, _, number = port.name.rpartition("-port")
    if hub.startswith("usb"):
        return f"{hub.removeprefix('usb')}-{number}"
    return f"{hub}.{number}" if hub else ""


def _open_library(path: str) -> ctypes.CDLL:
    """Load libedgetpu.

    Raises:
        DeviceFailure: it is not here, or it is something else.
    """
    from accelerators.delegates import lacks_interface, open_library  # noqa: PLC0415
    from accelerators.interpreter import DeviceFailure  # noqa: PLC0415

    library = open_library(path)
    problem = lacks_interface(path, library)
    if not problem and not hasattr(library, "edgetpu_list_devices"):
        problem = f"its driver {path} is not libedgetpu: it lacks edgetpu_list_devices"
    if problem:
        raise DeviceFailure(problem)
    return library


def _open_device(device: Device, library: ctypes.CDLL) -> Delegate:
    """Open it; once more when it was new and has only loaded its firmware.

    Raises:
        DeviceFailure: it cannot be opened.
    """
    from accelerators.delegates import Delegate, NotCreated  # noqa: PLC0415
    from accelerators.interpreter import DeviceFailure  # noqa: PLC0415

    def attempt(chosen: Listed | None) -> Delegate:
        if chosen is None:
            seen = ", ".join(str(each.path) for each in _list_devices(library)) or "none"
            raise DeviceFailure(f"libedgetpu does not see it (it sees {seen})")
        try:
            return Delegate(device.library, (("device", chosen.option), *device.options))
        except NotCreated as exc:
            said = f": {exc.said}" if exc.said else ", and does not say why"
            raise DeviceFailure(f"libedgetpu cannot open it{said}") from exc

    chosen = _chosen(device, library)
    is_new = chosen is not None and _is_new(chosen.path)
    try:
        return attempt(chosen)
    except DeviceFailure:
        if not is_new:
            raise
    return attempt(_await_ready(device, library))


def _list_devices(library: ctypes.CDLL) -> tuple[Listed, ...]:
    class Entry(ctypes.Structure):
        _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))

    count = ctypes.c_size_t(0)
    list_ = library.edgetpu_list_devices
    list_.restype = ctypes.POINTER(Entry)
    entries = list_(ctypes.byref(count))
    if not entries:
        return ()
    listed: list[Listed] = []
    for kind, name in ((_TYPE_USB, "usb"), (_TYPE_PCI, "pci")):
        paths = [
            Path((entry.path or b"").decode("utf-8", "replace"))
            for entry in entries[: min(count.value, _DEVICES_MAX)]
            if entry.type == kind
        ]
        listed += [Listed(f"{name}:{place}", path) for place, path in enumerate(paths)]
    library.edgetpu_free_devices(entries)
    return tuple(listed)


def _version(library: ctypes.CDLL) -> str:
    try:
        version = library.edgetpu_version
    except AttributeError:
        return ""
    version.restype = ctypes.c_char_p
    return (version() or b"").decode("utf-8", "replace")[:_VERSION_MAX]


def _chosen(device: Device, library: ctypes.CDLL) -> Listed | None:
    """What libedgetpu lists as this device."""
    _, _, wanted = device.id.partition(":")
    return next((each for each in _list_devices(library) if _name(each) == wanted), None)


def _name(listed: Listed) -> str:
    return f"usb-{_socket(listed.path)}" if listed.option.startswith("usb") else listed.path.name


def _is_new(folder: Path) -> bool:
    return _numbers(f"{folder}/idVendor", f"{folder}/idProduct") == _NEW_STICK


def _await_ready(device: Device, library: ctypes.CDLL) -> Listed | None:
    """The device, once it has come back with its firmware; however it is when that takes long."""
    until = time.monotonic() + _REOPEN_S
    while True:
        chosen = _chosen(device, library)
        if (chosen is not None and not _is_new(chosen.path)) or time.monotonic() > until:
            return chosen
        time.sleep(_POLL_S)


def _missing(library: str) -> str:
    return (
        f"install libedgetpu1-std so that {library} is found: for this runtime the build of "
        "github.com/feranick/libedgetpu/releases; Google's own, of packages.cloud.google.com/apt "
        "coral-edgetpu-stable, crashes with every TFLite after 2.11"
    )


def _numbers(maker: str, product: str) -> tuple[str, str]:
    """What a device is; ("", "") when it is nobody's of ours."""
    made_by = _read(maker)
    return (made_by, _read(product)) if made_by in _MAKERS else ("", "")


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 (half as costly, every second)
    except OSError:
        return []


def _read(path: str | Path) -> str:
    """A short fact; "" when there is none."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (every second, for every device)
            return file.read(_FACT_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
