"""The NPU, by way of OpenVINO: Intel's, which is the only one the runtime has a plug-in for.

OpenVINO is installed beside the runtime, in the very version the plug-in is linked with. It also
has plug-ins of its own for GPUs and the CPU, which `HardwareSettings.openvino_device` chooses:
the CPU's needs no device, and is how this file is tested.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerators import devicetext
from accelerators.access import denied
from accelerators.base import Coverage, Device
from accelerators.nodes import find_nodes

if TYPE_CHECKING:
    from accelerators.outline import Outline
    from accelerators.registry import HardwareSettings
    from accelerators.runner import Runner

ID = "npu"
MEMORY_MIB = 384
"""To compile a model of 4 MB takes 370 MiB of private memory in all. Measured 2026-11."""

OPENVINO_DEVICES = ("npu", "gpu", "cpu")

_OPTION = "openvino_device"
_PLUGIN = "vendors/intel_openvino/dispatch/libLiteRtDispatch_IntelOpenvino.so"
_NEEDED = re.compile(rb"libopenvino\.so\.(\d+)")
_NODES = {"npu": "dev/accel/accel*", "gpu": "dev/dri/renderD*"}
_KNOWN_BY_KERNEL = {"npu": "sys/class/accel/accel*", "gpu": "sys/class/drm/renderD*"}
_INSTALL = (
    "pip install openvino=={version}, into the folder of ai-edge-litert (docs/accelerators.md)"
)


def find(settings: HardwareSettings) -> tuple[Device, ...]:
    """The NPU, as far as files tell; `look` asks OpenVINO."""
    wanted = settings.openvino_device
    problem, next_step = _what_is_missing()
    nodes = find_nodes(settings.root, _NODES[wanted]) if wanted in _NODES else []
    if not problem and wanted in _NODES:
        problem, next_step = _what_bars(settings.root, wanted, nodes)
    what = ", ".join(("openvino", *(node.name for node in nodes)))
    options = ((_OPTION, wanted),)
    return (Device(ID, ID, driver=what, problem=problem, next_step=next_step, options=options),)


def look(device: Device) -> Device:
    """Its name and OpenVINO's version. Loads OpenVINO."""
    wanted = _wanted(device)
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    matching = [each for each in core.available_devices if each.split(".")[0].lower() == wanted]
    version = f"OpenVINO {openvino.__version__.split('-')[0]}"
    if not matching:
        others = ", ".join(core.available_devices) or "none"
        return replace(
            device,
            driver=version,
            problem=f"OpenVINO finds no {wanted.upper()} (it finds: {others})",
            next_step="install the device's user-space driver (for an NPU: intel-level-zero-npu)",
        )
    name = str(core.get_property(matching[0], "FULL_DEVICE_NAME")).strip()
    if wanted == "cpu":
        name = f"{name}, the CPU by way of OpenVINO"
    return replace(device, name=name, driver=version)


def check(outline: Outline) -> str:
    """Why no NPU can run this file, as one sentence; "" when one may try."""
    if outline.edgetpu:
        return "the model is compiled for the Edge TPU, and an NPU cannot run it"
    if outline.stateful:
        return "the model keeps variables from one call to the next, which an NPU cannot"
    return ""


def open_compiled(path: str, _threads: int, device: Device) -> Runner:
    """The model compiled for the NPU, all of it.

    Raises:
        RuntimeFailure: the runtime does not accept the file.
        DeviceFailure: the NPU cannot be had, or does not take the whole model.
    """
    from accelerators.compiled import CompiledRunner, npu_options  # noqa: PLC0415 (the runtime)

    wanted = _wanted(device)
    return CompiledRunner(path, _Npu(wanted, npu_options(wanted)))


@dataclass(frozen=True, slots=True)
class _Npu:
    """See `accelerators.compiled.Target`."""

    wanted: str
    options: Any
    name: str = "NPU"
    resizes: bool = False

    def explain(self, text: str) -> str:
        """Why the model was not compiled."""
        cut = devicetext.partitioning(text)
        if cut and cut.taken < cut.operators:
            names = ", ".join(map(_operator, devicetext.operators_refused_by_npu(text)))
            return (
                f"the NPU takes {cut.taken} of the model's {cut.operators} operators, not: "
                f"{names or 'others'}"
            )
        said = "; ".join(devicetext.errors(text)[:1])
        others = devicetext.openvino_devices(text) - {self.wanted}
        if others:
            return (
                f"the runtime compiles one piece for OpenVINO's {self.wanted.upper()} and the next "
                f"for its {'/'.join(sorted(others)).upper()}, and the model has more than one"
            )
        if cut and said:
            return f"OpenVINO cannot compile the model for its {self.wanted.upper()}: {said}"
        if "libopenvino" in text:
            return f"OpenVINO is not installed in the version {_needed_version()}"
        return said or "the runtime's plug-in for NPUs does not load"

    def prove(self, text: str, operators: int) -> Coverage:
        """What the compiler says that it took, which must be all, and of the device it was for."""
        cut = devicetext.partitioning(text)
        if cut is None or not cut.pieces:
            raise devicetext.Unproven(f"the NPU took none of the model's {operators} operators")
        if cut.taken < cut.operators:
            raise devicetext.Unproven(f"the NPU took {cut.taken} of {cut.operators} operators")
        used = devicetext.openvino_devices(text)
        if used != {self.wanted}:
            names = ", ".join(sorted(used)) or "nothing"
            raise devicetext.Unproven(f"OpenVINO took {names} instead of {self.wanted}")
        return Coverage(cut.operators, cut.taken, cut.pieces)


def _wanted(device: Device) -> str:
    return dict(device.options).get(_OPTION, OPENVINO_DEVICES[0])


def _operator(number: int) -> str:
    """An operator's name; only asked for on the way to a refusal, as the table takes 10 MB."""
    schema = importlib.import_module("ai_edge_litert.schema_py_generated")
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    return str(names.get(number, number))


def _what_is_missing() -> tuple[str, str]:
    """What of the software is not here, and what to do about it; empty when it is all here."""
    plugin = _plugin()
    if plugin is None:
        return (
            "the runtime has no plug-in for NPUs here",
            "none is made for this processor; on x86-64, install ai-edge-litert 2.3 or newer",
        )
    folder = _folder_of("openvino")
    if folder is None or not (folder / "libs" / f"libopenvino.so.{_needed()}").is_file():
        version = _needed_version()
        return f"OpenVINO {version} is not installed", _INSTALL.format(version=version)
    return "", ""


def _what_bars(root: Path, wanted: str, nodes: list[Path]) -> tuple[str, str]:
    """Why the device cannot be opened, and what to do about it; empty when it may be asked."""
    if not nodes and find_nodes(root, _KNOWN_BY_KERNEL[wanted]):
        return (
            f"the kernel has the {wanted.upper()}, and this service is not let in to it",
            "install the drop-in gpu.conf of the package's examples (docs/install.md)",
        )
    if not nodes:
        return (
            f"no {wanted.upper()} is here: there is no /{_NODES[wanted].rstrip('*')}0",
            "an Intel NPU needs a kernel with the driver intel_vpu, from 6.3 on",
        )
    barred = [denied(node, str(node)) for node in nodes]
    return barred[0] if all(problem for problem, _ in barred) else ("", "")


@cache
def _folder_of(package: str) -> Path | None:
    """Where a package lies that is installed. It is not loaded."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((Path(folder) for folder in folders), None)


@cache
def _plugin() -> Path | None:
    folder = _folder_of("ai_edge_litert")
    path = folder / _PLUGIN if folder else None
    return path if path and path.is_file() else None


@cache
def _needed() -> str:
    """The number of the OpenVINO library that the plug-in is linked with: "2631"."""
    plugin = _plugin()
    found = _NEEDED.search(plugin.read_bytes()) if plugin else None
    return found[1].decode() if found else ""


def _needed_version() -> str:
    """As a version: "2026.3.1" of "2631"."""
    number = _needed()
    return f"20{number[:2]}.{number[2]}.{number[3]}" if len(number) == len("2631") else "?"
