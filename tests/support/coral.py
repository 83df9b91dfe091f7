"""Coral Edge TPUs that are not there: traces in /sys and /dev, and a stand-in of libedgetpu."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from support.standin import build_standin

from accelerators.registry import HardwareSettings

if TYPE_CHECKING:
    from pathlib import Path


class Coral:
    """A machine's root with Edge TPUs, and the library that sees them."""

    def __init__(self, folder: Path) -> None:
        """Build the library, or skip the test; nothing is connected yet."""
        self.root = folder / "root"
        self.library = build_standin(folder / "libedgetpu.so.1", "-DEDGETPU")
        self._options: list[str] = []
        self._devices: list[str] = []
        self._write()

    @property
    def settings(self) -> HardwareSettings:
        return HardwareSettings(edgetpu_library=str(self.library), root=self.root)

    def plug_stick(self, port: str = "1-1.4", *, new: bool = False, speed: int = 5000) -> Path:
        """A USB Accelerator in a port; a new one has not loaded its firmware yet."""
        folder = self.usb / port
        folder.mkdir(parents=True)
        bus, number = port.partition("-")[0], str(2 + len(self._devices))
        facts = {
            "idVendor": "1a6e" if new else "18d1",
            "idProduct": "089a" if new else "9302",
            "speed": str(speed),
            "busnum": bus,
            "devnum": number,
        }
        for name, value in facts.items():
            (folder / name).write_text(f"{value}\n")
        node = self.stick_node(bus, number)
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        self._devices.append(f"usb {folder}")
        self._write()
        return node

    def plug_chip(self, number: int = 0) -> Path:
        """A chip on PCIe, with the kernel's driver for it."""
        (self.root / f"sys/class/apex/apex_{number}").mkdir(parents=True)
        node = self.root / f"dev/apex_{number}"
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        self._devices.append(f"pci {node}")
        self._write()
        return node

    def pull_stick(self, port: str = "1-1.4") -> None:
        """It is gone; its node in /dev stays, as nobody looks at it any more."""
        shutil.rmtree(self.usb / port)
        self._devices.remove(f"usb {self.usb / port}")
        self._write()

    def be_blind(self) -> None:
        """From now on the library lists nothing."""
        self._devices.clear()
        self._write()

    def behave(self, **options: object) -> None:
        """Set options of the stand-in, as support.standin lists them."""
        self._options = [f"{key}={value}" for key, value in options.items()]
        self._write()

    @property
    def usb(self) -> Path:
        return self.root / "sys/bus/usb/devices"

    def stick_node(self, bus: str, number: str) -> Path:
        return self.root / f"dev/bus/usb/{bus.zfill(3)}/{number.zfill(3)}"

    def _write(self) -> None:
        text = "\n".join((*self._devices, *self._options, ""))
        self.library.with_name(f"{self.library.name}.devices").write_text(text)
