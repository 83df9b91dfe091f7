"""Hardware: everything that placing a model on a device takes; one for the whole daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerators.forkserver import ForkServer
    from accelerators.hosts import DeviceHosts
    from accelerators.inventory import DeviceInventory
    from accelerators.trials import TrialBook
    from accelerators.turns import Turns


@dataclass(frozen=True, slots=True)
class Hardware:
    """The parts, each of which several models share.

    Attributes:
        forkserver: starts workers.
        inventory: what is here.
        hosts: starts workers that share a process, for devices that only one may have open.
        turns: who may use a shared device now.
        trials: what was measured of models on devices.
    """

    forkserver: ForkServer
    inventory: DeviceInventory
    hosts: DeviceHosts
    turns: Turns
    trials: TrialBook
