"""DeviceInventory: which devices are here, which of them can be used, and when that changes.

1. Devices of the kinds that somebody wishes for are looked for every second, by what the kernel
   says of them. While nobody wishes for any, nothing is polled; whoever asks gets a fresh look.
2. What only a driver knows is asked in a child process, once, until the kernel says something else
   of the device. A driver that crashes or hangs there, or names a problem, is asked again later. No
   driver is touched before somebody wishes for its kind, has named the device, or asks for all.
3. A device that is gone stays listed, with that as its problem, until it is back or another of its
   kind comes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from accelerators.base import CPU, Device
from accelerators.driverlook import DriverStuck, ask_driver
from accelerators.registry import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from accelerators.forkserver import ForkServer
    from accelerators.registry import HardwareSettings

    Listener = Callable[[frozenset[str]], None]

_log = logging.getLogger(f"inferd.{__name__}")

POLL_INTERVAL_S = 1.0

# What was seen so shortly before is fresh enough for one who asks: many may ask at a time.
_FRESH_S = 0.25

# Whoever asks waits so long for drivers that are being asked; their devices are listed meanwhile.
_PATIENCE_S = 5.0

# A driver that named a problem is asked again after so long, then after twice as long, and so on:
# somebody may have mended what `find` does not see, such as a library.
_AGAIN_S = 10.0
_AGAIN_MOST_S = 600.0

_DEVICES_MAX = 64  # of one kind; more are not listed

_STILL = frozenset({"cpu"})  # kinds whose devices neither come nor go

_NOT_LOOKED_AT = "its driver was not asked yet, as nobody wishes for it"
_BEING_LOOKED_AT = "it is being looked at"
_GONE = "it was here and is gone"
_RESTART = "disconnect the device, or restart the machine"
_REPORT = "report this to inferd's makers, with the log"


@dataclass(eq=False, slots=True)
class _Look:
    """What a driver said of a device, or is being asked.

    Attributes:
        found: the device as the kernel told of it.
        shown: as it is to be listed.
        again_s: how long to wait the next time.
        again_at: when to ask (monotonic); infinity for never again.
    """

    found: Device
    shown: Device
    again_s: float
    again_at: float = 0.0
    task: asyncio.Task[None] | None = None


@dataclass(eq=False, slots=True)
class _Subscription:
    listener: Listener
    kinds: frozenset[str]


@dataclass(slots=True)
class _History:
    """Of one device: as it was when it could last be used, and how often it was lost since."""

    last: Device
    losses: int = 0


class DeviceInventory:
    """The devices of this machine.

    Not thread-safe: use it from the event loop it was started on.
    """

    def __init__(
        self,
        settings: HardwareSettings,
        forkserver: ForkServer,
        *,
        interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        """Store only; until `start` there is the CPU."""
        self._settings = settings
        self._forkserver = forkserver
        self._interval_s = interval_s
        self._found: dict[str, tuple[Device, ...]] = {"cpu": (CPU,)}
        self._found_at = float("-inf")
        self._looks: dict[str, _Look] = {}
        self._histories: dict[str, _History] = {}
        self._devices: dict[str, Device] = {CPU.id: CPU}
        self._subscriptions: set[_Subscription] = set()
        self._wished = asyncio.Event()
        self._finding = asyncio.Lock()
        self._poller: asyncio.Task[None] | None = None
        self._is_stopped = False

    async def start(self) -> None:
        """See what is here, and poll from now on while somebody wishes for a device."""
        await self._find(KINDS, self._expected_kinds)
        self._poller = asyncio.create_task(self._poll(), name="devices")

    async def stop(self) -> None:
        """Poll no more; asks no driver any more."""
        self._is_stopped = True
        tasks = [look.task for look in self._looks.values() if look.task is not None]
        if self._poller is not None:
            tasks.append(self._poller)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def is_polling(self) -> bool:
        """Whether somebody wishes for devices that may come or go."""
        return self._wished.is_set()

    def devices(self) -> tuple[Device, ...]:
        """Every device as it was seen last, by kind; of a kind of which nothing is here, why.

        Of what nobody wishes for this may be old: `refresh` looks now.
        """
        return tuple(self._devices.values())

    def known(self) -> tuple[Device, ...]:
        """Those of `devices` that an operator expects.

        They can or could be used, are wished for, or are named.
        """
        wished = self._wished_kinds
        return tuple(
            device
            for device in self._devices.values()
            if device.up
            or device.id in self._histories
            or device.kind in wished
            or (device.kind == "external" and device.id != device.kind)
        )

    def losses(self) -> Mapping[str, int]:
        """How often each device of `known` could no longer be used though it had been, by id."""
        return {id_: history.losses for id_, history in self._histories.items()}

    def of_kind(self, wish: str) -> tuple[Device, ...]:
        """What a wish may mean, at least one device: those that can be used first.

        Args:
            wish: a kind, or a device's id, such as "external:NAME".
        """
        devices = [each for each in self._devices.values() if wish in (each.kind, each.id)]
        return tuple(sorted(devices, key=lambda each: not each.up)) or (self._absent(wish),)

    def subscribe(
        self, listener: Listener, wishes: Collection[str] | None = None
    ) -> Callable[[], None]:
        """Be told of changes from now on; gives what ends that.

        Args:
            listener: called on the loop with the ids of devices that came, went, or have another
                problem than before. Must not raise or wait.
            wishes: what to watch, as for `of_kind`; None for every kind, () to be told of what
                others watch or ask for.
        """
        subscription = _Subscription(listener, _kinds_of(wishes) - _STILL)
        self._subscriptions.add(subscription)
        if subscription.kinds:
            self._wished.set()
        return lambda: self._unsubscribe(subscription)

    async def refresh(self, wishes: Collection[str] | None = None) -> tuple[Device, ...]:
        """Look for everything now, and give `devices`.

        Args:
            wishes: of these, as for `of_kind`, drivers are asked that were not asked yet; None for
                all. They are waited for some seconds; the devices of slower ones have that as their
                problem until then.
        """
        kinds = _kinds_of(wishes)
        try:
            await self._find(KINDS, self._expected_kinds | kinds)
        except RuntimeError as exc:  # no thread is to be had
            _log.warning("devices are not looked for reason=%s", exc)
        looks = [each for each in self._looks.values() if each.found.kind in kinds]
        if tasks := [each.task for each in looks if each.task and not each.task.done()]:
            await asyncio.wait(tasks, timeout=_PATIENCE_S)
        return self.devices()

    @property
    def _wished_kinds(self) -> frozenset[str]:
        return frozenset().union(*(each.kinds for each in self._subscriptions))

    @property
    def _expected_kinds(self) -> frozenset[str]:
        """Kinds whose drivers may be asked though nobody asks for all: wished for, or named."""
        return self._wished_kinds | ({"external"} if self._settings.externals else set())

    def _unsubscribe(self, subscription: _Subscription) -> None:
        self._subscriptions.discard(subscription)
        if not self._wished_kinds:
            self._wished.clear()

    async def _poll(self) -> None:
        while True:
            await self._wished.wait()
            try:
                await self._find(self._wished_kinds, self._wished_kinds)
            except Exception:  # noqa: BLE001 (a defect must not end the watch)
                _log.exception("looking for devices failed")
            await asyncio.sleep(self._interval_s)

    async def _find(self, kinds: Collection[str], drivers_of: Collection[str]) -> None:
        """See what the kernel says of these kinds, and what drivers say of those."""
        async with self._finding:
            wanted = [kind for kind in KINDS if kind in kinds]
            now = time.monotonic()
            is_all = len(wanted) == len(KINDS)
            if not is_all or now - self._found_at >= _FRESH_S:
                self._found |= await asyncio.to_thread(_find_kinds, wanted, self._settings)
                if is_all:
                    self._found_at = now
            for kind in () if self._is_stopped else drivers_of:
                self._look_at(kind)
            self._forget_looks()
            self._publish()

    def _look_at(self, kind: str) -> None:
        """Ask the drivers of devices of which the kernel says something new, or that are due.

        One that could be used so far, and is still here, can be until its driver denies it.
        """
        if KINDS[kind].look is None:
            return
        for found in self._found[kind]:
            known = self._looks.get(found.id)
            if not found.up:
                continue
            if known is None:
                known = _Look(found, _pending(found), again_s=_AGAIN_S)
                self._looks[found.id] = known
            elif known.found != found:
                known.found = found
                known.shown = found if known.shown.up else _pending(found)
                known.again_s = _AGAIN_S
                known.again_at = 0.0
            if known.task is None and time.monotonic() >= known.again_at:
                known.task = asyncio.create_task(self._ask(known), name=f"device-look-{found.id}")

    async def _ask(self, look: _Look) -> None:
        """Ask a driver, and once more when the kernel says something else by then.

        It is not cut short for that: who kills a driver at work may leave its device stuck.
        """
        asked: Device | None = None
        again = True
        while again and asked != look.found:
            asked = look.found
            try:
                looked = await ask_driver(asked, self._forkserver)
            except DriverStuck as exc:
                again = False  # not while it hangs there: they would pile up
                looked = replace(asked, problem=f"its driver hangs: {exc}", next_step=_RESTART)
            except Exception as exc:  # noqa: BLE001 (a defect here is no defect of the device's)
                _log.exception("device cannot be looked at device=%s", asked.id)
                looked = replace(asked, problem=f"looking at it failed: {exc}", next_step=_REPORT)
        look.task = None
        look.shown = looked
        look.again_at = float("inf")
        if not looked.up and again:
            look.again_at = time.monotonic() + look.again_s
            look.again_s = min(_AGAIN_MOST_S, look.again_s * 2)
        self._publish()

    def _forget_looks(self) -> None:
        """What a driver said holds no longer once its device is gone or has a problem."""
        usable = {each.id for devices in self._found.values() for each in devices if each.up}
        for id_ in self._looks.keys() - usable:
            look = self._looks.pop(id_)
            if look.task is not None:
                look.task.cancel()

    def _publish(self) -> None:
        """Take over what was found, and tell who wants to know."""
        before, now = self._devices, self._compose()
        self._devices = now
        for device in now.values():
            if device.up:
                self._histories.setdefault(device.id, _History(device)).last = device
        changed = frozenset(
            id_ for id_ in before.keys() | now.keys() if before.get(id_) != now.get(id_)
        )
        for id_ in changed:
            self._note(before.get(id_), now.get(id_))
        if not changed:
            return
        for subscription in tuple(self._subscriptions):
            try:
                subscription.listener(changed)
            except Exception:  # noqa: BLE001 (one listener's defect is not the others')
                _log.exception("a listener for devices failed")

    def _compose(self) -> dict[str, Device]:
        """What is to be listed, by id: what is here, and after it what was."""
        listed: dict[str, Device] = {}
        for kind in KINDS:
            here = [self._as_known(found) for found in self._found.get(kind, ())]
            gone = self._gone(kind, {each.id for each in here})
            steps = [each.next_step for each in here if each.id == kind]
            listed |= {each.id: each for each in here if each.id != kind or not gone}
            listed |= {
                each.id: replace(each, problem=_GONE, next_step=(steps or ["connect it again"])[0])
                for each in gone
            }
        return listed

    def _as_known(self, found: Device) -> Device:
        """With what its driver has said of it."""
        if not found.up or KINDS[found.kind].look is None:
            return found
        look = self._looks.get(found.id)
        if look is None:
            step = "wish for it in placement.accelerators of a model, or call `inferctl devices`"
            return replace(found, problem=_NOT_LOOKED_AT, next_step=step)
        return look.shown

    def _gone(self, kind: str, here: set[str]) -> list[Device]:
        """Devices that could be used once and are not here; none when another came instead."""
        came = [id_ for id_ in here if id_ not in self._devices and id_ != kind]
        gone = [
            id_
            for id_, history in self._histories.items()
            if history.last.kind == kind and id_ not in here
        ]
        if came:
            for id_ in gone:
                del self._histories[id_]
            return []
        return [self._histories[id_].last for id_ in gone]

    def _note(self, before: Device | None, now: Device | None) -> None:
        """Log a change, and count it when a device is lost."""
        if now is None:
            return
        history = self._histories.get(now.id)
        was_up = before is not None and before.up
        if now.up:
            if not was_up:
                _log.info("device can be used device=%s name=%s", now.id, now.name)
        elif now.problem not in {_NOT_LOOKED_AT, _BEING_LOOKED_AT}:
            expected = history is not None or now.kind in self._wished_kinds
            _log.log(
                logging.WARNING if expected else logging.DEBUG,
                "device cannot be used device=%s problem=%s next_step=%s",
                now.id,
                now.problem,
                now.next_step,
            )
        if was_up and not now.up and history is not None:
            history.losses += 1

    def _absent(self, wish: str) -> Device:
        """A device that nothing is found for, with the reason."""
        kind = _kind_of(wish)
        if kind not in KINDS:
            kinds = ", ".join(KINDS)
            problem = f"there is no kind of accelerator '{kind[:40]}'"
            return Device(wish, kind, problem=problem, next_step=f"wish for one of: {kinds}")
        names = ", ".join(each.id for each in self._found.get(kind, ()) if each.id != kind)
        return Device(
            wish,
            kind,
            problem=f"there is no device '{wish[:80]}'",
            next_step=(
                f"wish for one of: {names}"
                if names
                else "connect one, or name it in [accelerators] of inferd.toml"
            ),
        )


def _find_kinds(kinds: Iterable[str], settings: HardwareSettings) -> dict[str, tuple[Device, ...]]:
    return {kind: _find_kind(kind, settings) for kind in kinds}


def _find_kind(kind: str, settings: HardwareSettings) -> tuple[Device, ...]:
    try:
        return KINDS[kind].find(settings)[:_DEVICES_MAX]
    except Exception as exc:  # noqa: BLE001 (one kind's defect is not the others')
        _log.debug("looking for devices failed kind=%s", kind, exc_info=True)
        problem = f"looking for it failed: {type(exc).__name__}: {exc}"
        return (Device(kind, kind, problem=problem, next_step=_REPORT),)


def _kinds_of(wishes: Collection[str] | None) -> frozenset[str]:
    """Kinds that are wished for and known; all when None."""
    if wishes is None:
        return frozenset(KINDS)
    return frozenset(_kind_of(wish) for wish in wishes) & KINDS.keys()


def _kind_of(wish: str) -> str:
    return wish.partition(":")[0]


def _pending(found: Device) -> Device:
    return replace(found, problem=_BEING_LOOKED_AT, next_step="wait some seconds")
