"""What every HTTP route is given: the service, the metrics, the limits, and who we are."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from daemon.documents import DocumentThread
from daemon.rest.guard import Guard
from daemon.updates import UpdateBoard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from accelerators.inventory import DeviceInventory
    from daemon.config import HttpTable
    from daemon.metrics import Metrics
    from daemon.probe import Prober
    from daemon.rest.tls import Certificate
    from daemon.service import InferenceService
    from daemon.updates import UpdateEvent

_MIB = 1024 * 1024
_LARGE_BODY_BYTES = 1 * _MIB
"""Bodies up to this size are not counted in the budget: `max_connections` bounds them already."""
_LARGE_BODIES = 4
"""So many bodies of the largest size may be in memory at a time. More than one, so that one slow
sender does not stop the others; few, since an appliance may have 1 GiB in all."""


def _nothing() -> Mapping[str, object]:
    return {}


@dataclass(slots=True)
class BodyBudget:
    """How much memory the large bodies and answers of all connections may take together.

    Attributes:
        limit_bytes: of all large ones.
        used_bytes: now.
    """

    limit_bytes: int
    used_bytes: int = 0

    def take(self, had_bytes: int, has_bytes: int) -> bool:
        """Account for a body that grew, or an answer; False when there is no room for it."""
        more = max(0, has_bytes - _LARGE_BODY_BYTES) - max(0, had_bytes - _LARGE_BODY_BYTES)
        if self.used_bytes + more > self.limit_bytes:
            return False
        self.used_bytes += more
        return True

    def give_back(self, had_bytes: int) -> None:
        """Forget what had grown to `had_bytes`."""
        self.used_bytes -= max(0, had_bytes - _LARGE_BODY_BYTES)


@dataclass(frozen=True, slots=True)
class RestContext:
    """Everything a route may use.

    Attributes:
        inventory: the devices of this machine.
        version: of this program.
        device_id: names this appliance.
        started_at: monotonic seconds.
        documents: the thread that reads and writes large documents.
        updates: what the updater has said.
        prober: tries releases for the updater.
        store_dir: where releases lie that it may try.
        updater_socket: where it listens.
        publish_events: puts what the updater has done where it will leave by MQTT, through a loss
            of power, and gives the number of the last event that found a place, or raises NotKept;
            None while MQTT is off.
        guard: says who may ask what.
        certificate: shown to clients of the network; None where they are not spoken to by TLS.
        status: further facts for `/api/status`, e.g. {"mqtt": {...}}.
        max_body_bytes: a larger body is refused, however it is sent.
        bodies: the memory that large bodies and answers may take together.
    """

    service: InferenceService
    metrics: Metrics
    inventory: DeviceInventory
    config: HttpTable
    version: str
    device_id: str
    documents: DocumentThread = field(default_factory=DocumentThread)
    updates: UpdateBoard = field(default_factory=UpdateBoard)
    prober: Prober | None = None
    store_dir: Path | None = None
    updater_socket: Path | None = None
    publish_events: Callable[[Sequence[UpdateEvent]], Awaitable[int]] | None = None
    guard: Guard = field(default_factory=Guard)
    certificate: Certificate | None = None
    status: Callable[[], Mapping[str, object]] = _nothing
    started_at: float = field(default_factory=time.monotonic)
    max_body_bytes: int = field(init=False)
    bodies: BodyBudget = field(init=False)

    def __post_init__(self) -> None:
        limit = self.config.max_body_mib * _MIB
        object.__setattr__(self, "max_body_bytes", limit)
        object.__setattr__(self, "bodies", BodyBudget(limit * _LARGE_BODIES))


@dataclass(slots=True)
class Call:
    """What is counted of one prediction; the handler fills it in as soon as it has the lease.

    Attributes:
        model: "" while it is not known to exist, so that clients cannot invent metric labels.
        version: 0 while not known.
    """

    model: str = ""
    version: int = 0
