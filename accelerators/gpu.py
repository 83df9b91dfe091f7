"""The GPU, by way of Vulkan: the runtime's WebGPU accelerator, for which Vulkan is what it needs.

There is one, "gpu": of several GPUs the runtime takes one by itself, a card before a GPU that is
part of the processor before one that is only software. Which drivers there are to choose from is
the environment's to say: VK_DRIVER_FILES, or VK_ICD_FILENAMES as it was called before.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerators import devicetext
from accelerators.access import denied
from accelerators.base import Coverage, Device
from accelerators.nodes import find_nodes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from accelerators.outline import Outline
    from accelerators.registry import HardwareSettings
    from accelerators.runner import Runner

ID = "gpu"
MEMORY_MIB = 512
"""SwiftShader takes 140 MiB of private memory besides the model's, and a thread per core; the
drivers of cards take more. Measured 2026-11."""

_LIBRARY = "libLiteRtWebGpuAccelerator.so"
_MANIFESTS = (
    "etc/xdg/vulkan/icd.d",
    "usr/local/etc/vulkan/icd.d",
    "etc/vulkan/icd.d",
    "usr/local/share/vulkan/icd.d",
    "usr/share/vulkan/icd.d",
)
_OVERRIDES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")  # the first that is set counts
_ADDED = "VK_ADD_DRIVER_FILES"
_NODES = ("dev/dri/renderD*", "dev/nvidiactl", "dev/mali0", "dev/kgsl-3d0")
_KNOWN_BY_KERNEL = "sys/class/drm/renderD*"
_ORDER = ("discrete", "integrated", "virtual", "other", "software")  # as the runtime chooses

_INSTALL_DRIVER = (
    "install the GPU's Vulkan driver (Mesa: mesa-vulkan-drivers; NVIDIA: the driver's own), then "
    "restart inferd"
)


def find(settings: HardwareSettings) -> tuple[Device, ...]:
    """The GPU, as far as files tell; `look` asks its driver."""
    nodes = [each for pattern in _NODES for each in find_nodes(settings.root, pattern)]
    named = next((os.environ[name] for name in _OVERRIDES if os.environ.get(name)), "")
    added = "" if named else os.environ.get(_ADDED, "")
    installed = () if named else _installed_drivers(settings.root)
    drivers = (*_named_drivers(named or added), *installed)
    problem, next_step = _what_is_missing(settings.root, nodes, drivers, is_named=bool(named))
    what = ", ".join((*drivers, *(node.name for node in nodes)))
    return (Device(ID, ID, driver=what, problem=problem, next_step=next_step),)


def look(device: Device) -> Device:
    """The GPU that the runtime will take, by its name and driver. Loads the drivers."""
    from accelerators.vulkan import NoVulkan, list_adapters  # noqa: PLC0415 (the daemon needs none)

    try:
        adapters = list_adapters()
    except NoVulkan as exc:
        if exc.has_loader:
            problem = f"no Vulkan driver finds a GPU it can use: {exc}"
            return replace(device, problem=problem, next_step=_INSTALL_DRIVER)
        problem = f"the Vulkan loader cannot be loaded: {exc}"
        return replace(device, problem=problem, next_step="apt-get install libvulkan1")
    if not adapters:
        problem = "no Vulkan driver finds a GPU it can use"
        return replace(device, problem=problem, next_step=_INSTALL_DRIVER)
    adapters = tuple(sorted(adapters, key=lambda each: _ORDER.index(each.type)))
    usable = [adapter for adapter in adapters if not adapter.lacks]
    chosen = (usable or adapters)[0]
    kind = ", in software" if chosen.type == "software" else ""
    described = replace(
        device,
        name=f"{chosen.name}{kind}",
        driver=f"{chosen.driver}, Vulkan {chosen.api}",
    )
    if usable:
        return described
    return replace(
        described,
        problem=f"its driver lacks what the runtime needs: {', '.join(chosen.lacks)}",
        next_step="update the driver; Mesa's from version 25 on has it for most GPUs",
    )


def check(outline: Outline) -> str:
    """Why no GPU can run this file, as one sentence; "" when one may try."""
    if outline.edgetpu:
        return "the model is compiled for the Edge TPU, and a GPU cannot run it"
    if outline.stateful:
        return "the model keeps variables from one call to the next, which a GPU cannot"
    return ""


def open_compiled(path: str, _threads: int, device: Device) -> Runner:
    """The model compiled for the GPU, all of it.

    Raises:
        RuntimeFailure: the runtime does not accept the file.
        DeviceFailure: the GPU cannot be had, or does not take the whole model.
    """
    from accelerators.compiled import CompiledRunner, gpu_options  # noqa: PLC0415 (the runtime)

    return CompiledRunner(path, _Gpu(device, gpu_options()))


@dataclass(frozen=True, slots=True)
class _Gpu:
    """See `accelerators.compiled.Target`."""

    device: Device
    options: Any
    name: str = "GPU"
    resizes: bool = True

    def explain(self, text: str) -> str:
        """Why the model was not compiled."""
        refused = devicetext.operators_refused_by_gpu(text)
        if refused:
            return f"the GPU does not take all of the model: {refused}"
        if devicetext.adapter(text):
            return "; ".join(devicetext.errors(text)[:2]) or (
                "the GPU does not take all of the model, such as outputs whose size depends on "
                "what is in the inputs"
            )
        lacks = devicetext.missing_features(text)
        if lacks:
            return f"the GPU's driver lacks what the runtime needs: {', '.join(lacks)}"
        if "No adapters found" in text:
            return "no GPU is here: no Vulkan driver finds one"
        return f"the runtime's library for GPUs, {_LIBRARY}, does not load"

    def prove(self, text: str, operators: int) -> Coverage:
        """All of it, when the GPU that was meant says that it was taken.

        The GPU alone was allowed, so what the runtime compiled is on it.
        """
        taken = devicetext.adapter(text)
        if not taken:
            raise devicetext.Unproven("the runtime does not say that it took the GPU")
        if not self.device.name.startswith(taken) and self.device.name:
            raise devicetext.Unproven(
                f"the runtime took another GPU, {taken}, instead of {self.device.name}: name the "
                "driver's manifest in VK_DRIVER_FILES"
            )
        return Coverage(operators, operators, min(operators, 1))


def _named_drivers(named: str) -> tuple[str, ...]:
    """The manifests an operator has named that are there."""
    paths = filter(None, named.split(os.pathsep))
    return tuple(Path(each).stem for each in paths if os.access(each, os.R_OK))


def _installed_drivers(root: Path) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(
            path.stem for folder in _MANIFESTS for path in find_nodes(root, f"{folder}/*.json")
        )
    )


def _what_is_missing(
    root: Path, nodes: Iterable[Path], drivers: tuple[str, ...], *, is_named: bool
) -> tuple[str, str]:
    """Why no GPU can be used, and what to do about it; empty when one may be asked."""
    if not _has_library():
        return (
            f"the runtime's library for GPUs, {_LIBRARY}, is not here",
            "install ai-edge-litert 2.3 or newer, which has it for x86-64 and 64-bit ARM",
        )
    if not drivers and is_named:
        names = " and ".join(_OVERRIDES)
        return "no driver that the environment names is there", f"correct {names}"
    nodes = list(nodes)
    if not nodes and not is_named and find_nodes(root, _KNOWN_BY_KERNEL):
        return (
            "the kernel has a GPU, and this service is not let in to it",
            "install the drop-in gpu.conf of the package's examples (docs/install.md)",
        )
    if not drivers:
        return "no Vulkan driver is installed", _INSTALL_DRIVER
    barred = [] if is_named else [denied(node, str(node)) for node in nodes]
    return barred[0] if barred and all(problem for problem, _ in barred) else ("", "")


@cache
def _has_library() -> bool:
    """Whether the runtime that is installed brings its part for GPUs. It is not loaded."""
    spec = importlib.util.find_spec("ai_edge_litert")
    folders = (spec.submodule_search_locations if spec else None) or ()
    return any((Path(folder) / _LIBRARY).is_file() for folder in folders)
