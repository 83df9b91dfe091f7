"""The GPUs that Vulkan drivers offer. Loads their libraries: for a process of its own.

Source: the Vulkan 1.2 specification (VkPhysicalDeviceProperties, VkPhysicalDeviceFeatures,
VkPhysicalDeviceDriverProperties).
"""

from __future__ import annotations

import ctypes
import struct
from ctypes import POINTER, Structure, c_char_p, c_int, c_uint32, c_void_p
from dataclasses import dataclass

LOADER = "libvulkan.so.1"

_ADAPTERS_MAX = 64
_NO_DRIVER = -9  # VK_ERROR_INCOMPATIBLE_DRIVER
_VERSION_1_1 = 1 << 22 | 1 << 12
_APPLICATION_INFO, _INSTANCE_CREATE_INFO = 0, 1  # VkStructureType
_PROPERTIES_2, _DRIVER_PROPERTIES = 1000059001, 1000196000

_PROPERTIES = struct.Struct("<IIIII256s")  # how VkPhysicalDeviceProperties begins
_PROPERTIES_BYTES = 2048  # it has 824
_DRIVER = struct.Struct("<I256s256s")  # VkPhysicalDeviceDriverProperties after its head
_HEAD_BYTES = 16  # sType and pNext, with what aligns them

_TYPES = ("other", "integrated", "discrete", "virtual", "software")

# In the order of VkPhysicalDeviceFeatures; those that the runtime insists on.
_FEATURES = 55
_NEEDED = {
    "robustBufferAccess": 0,
    "fullDrawIndexUint32": 1,
    "imageCubeArray": 2,
    "independentBlend": 3,
    "sampleRateShading": 6,
    "depthBiasClamp": 12,
    "fragmentStoresAndAtomics": 26,
    "shaderUniformBufferArrayDynamicIndexing": 33,
    "shaderSampledImageArrayDynamicIndexing": 34,
    "shaderStorageBufferArrayDynamicIndexing": 35,
    "shaderStorageImageArrayDynamicIndexing": 36,
}
_ETC2, _ASTC, _BC = 20, 21, 22


class NoVulkan(Exception):
    """There is no loader, or no driver that works.

    Attributes:
        has_loader: the loader is there.
    """

    def __init__(self, message: str, *, has_loader: bool) -> None:
        super().__init__(message)
        self.has_loader = has_loader


@dataclass(frozen=True, slots=True)
class Adapter:
    """A GPU, or a program that does a GPU's work.

    Attributes:
        type: "discrete", "integrated", "virtual", "software" or "other".
        driver: its name and version.
        api: the version of Vulkan it has, "1.3".
        lacks: what the runtime insists on and the driver does not have.
    """

    name: str
    type: str
    driver: str
    api: str
    lacks: tuple[str, ...]


class _ApplicationInfo(Structure):
    _fields_ = (
        ("type", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("version", c_uint32),
        ("engine", c_char_p),
        ("engine_version", c_uint32),
        ("api", c_uint32),
    )


class _InstanceInfo(Structure):
    _fields_ = (
        ("type", c_int),
        ("next", c_void_p),
        ("flags", c_uint32),
        ("application", POINTER(_ApplicationInfo)),
        ("layers", c_uint32),
        ("layer_names", c_void_p),
        ("extensions", c_uint32),
        ("extension_names", c_void_p),
    )


def list_adapters(loader: str = LOADER) -> tuple[Adapter, ...]:
    """What the drivers offer, in their order.

    Raises:
        NoVulkan: nothing can be asked.
    """
    try:
        vulkan = ctypes.CDLL(loader)
    except OSError as exc:
        raise NoVulkan(str(exc), has_loader=False) from exc
    application = _ApplicationInfo(_APPLICATION_INFO, None, b"inferd", 1, b"", 0, _VERSION_1_1)
    info = _InstanceInfo(
        _INSTANCE_CREATE_INFO, None, 0, ctypes.pointer(application), 0, None, 0, None
    )
    instance = c_void_p()
    code = vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance))
    if code:
        said = "no driver works" if code == _NO_DRIVER else f"vkCreateInstance gives {code}"
        raise NoVulkan(said, has_loader=True)
    try:
        count = c_uint32(_ADAPTERS_MAX)
        devices = (c_void_p * _ADAPTERS_MAX)()
        code = vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
        if code < 0:
            raise NoVulkan(f"vkEnumeratePhysicalDevices gives {code}", has_loader=True)
        found = [c_void_p(device) for device in devices[: count.value]]
        return tuple(_describe(vulkan, device) for device in found)
    finally:
        vulkan.vkDestroyInstance(instance, None)


def _describe(vulkan: ctypes.CDLL, device: c_void_p) -> Adapter:
    driver = ctypes.create_string_buffer(_HEAD_BYTES + _DRIVER.size + 64)
    struct.pack_into("<I", driver, 0, _DRIVER_PROPERTIES)
    properties = ctypes.create_string_buffer(_HEAD_BYTES + _PROPERTIES_BYTES)
    struct.pack_into("<I", properties, 0, _PROPERTIES_2)
    struct.pack_into("P", properties, 8, ctypes.addressof(driver))
    vulkan.vkGetPhysicalDeviceProperties2(device, properties)
    api, version, _, _, kind, name = _PROPERTIES.unpack_from(properties, _HEAD_BYTES)
    _, driver_name, driver_info = _DRIVER.unpack_from(driver, _HEAD_BYTES)
    features = (c_uint32 * (2 * _FEATURES))()
    vulkan.vkGetPhysicalDeviceFeatures(device, features)
    said = f"{_text(driver_name)} {_text(driver_info)}".strip()
    return Adapter(
        _text(name),
        _TYPES[kind] if kind < len(_TYPES) else _TYPES[0],
        said or f"version {version:#x}",
        f"{api >> 22 & 0x7F}.{api >> 12 & 0x3FF}",
        _lacks(list(features)),
    )


def _lacks(features: list[int]) -> tuple[str, ...]:
    missing = [name for name, place in _NEEDED.items() if not features[place]]
    if not features[_BC] and not (features[_ETC2] and features[_ASTC]):
        missing.append("textureCompressionBC")
    return tuple(missing)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace").strip()
