"""Turns: who of those that share a device may use it now.

A device that several models share has to bring in a model's weights when the model changes: 11 to
150 ms on an Edge TPU. So calls of one model are kept together. The rules:
1. One user has the device at a time: its turn. Whoever has it sends as it likes while no other
   waits; a lone user never waits.
2. While another waits, a turn ends `HOLD_S` after it began. What is in flight then is answered
   first.
3. It ends sooner when its user has had nothing in flight for `LINGER_S`: a client that asks again
   as soon as it has its answer keeps its turn, one that is content does not.
4. Those who wait get their turns in the order in which they asked, and wait again at the end.
5. Whoever leaves, with calls in flight or not, has no turn and no place any more.
So nobody waits longer than for one turn of each other user: `HOLD_S`, what it had in flight then,
and `LINGER_S`.

Not rationed: how long one call runs. That is a device's own business, and has its own limit.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds a user may keep the device while another waits. Longer, and a camera's pictures pile up;
# shorter, and the dearest switches known (150 ms) would be half of the work.
HOLD_S = 0.2

# Seconds that a user without calls keeps its turn while another waits. A client needs 1 to 5 ms to
# ask again; waiting costs less than the least switch known (11 ms), which it may save.
LINGER_S = 0.005

UserT = TypeVar("UserT")


class Line(Generic[UserT]):
    """The rules above for one device, and who stands where. Pure: `now` is monotonic seconds."""

    def __init__(self) -> None:
        self.holder: UserT | None = None
        self.running = 0  # calls of the holder's in flight
        self._waiting: dict[UserT, None] = {}  # in order
        self._since = -math.inf  # when the turn began
        self._idle_since = -math.inf  # when the holder had its last answer

    def ask(self, user: UserT, now: float) -> bool:
        """Whether `user` may send a call now; if not, it has a place in the line."""
        if user == self.holder:
            if not self._waiting or now - self._since < HOLD_S:
                return True
        elif not self._waiting and self._is_over(now):
            self._begin(user, now)
            return True
        self._waiting.setdefault(user)
        return False

    def sent(self, user: UserT) -> None:
        """A call of `user` is in flight.

        Raises:
            RuntimeError: it is not its turn.
        """
        if user != self.holder:
            raise RuntimeError("a call to a device out of turn")
        self.running += 1

    def done(self, user: UserT, now: float) -> None:
        """A call of `user` is over; does nothing when it has left meanwhile."""
        if user == self.holder and self.running:
            self.running -= 1
            self._idle_since = now

    def leave(self, user: UserT) -> None:
        """It has no turn and no place any more."""
        self._waiting.pop(user, None)
        if user == self.holder:
            self.holder = None
            self.running = 0

    def due(self) -> float | None:
        """When `advance` is to be called: not later; None until something is told again."""
        if not self._waiting or self.running:
            return None
        if self.holder is None:
            return -math.inf
        return min(self._since + HOLD_S, self._idle_since + LINGER_S)

    def advance(self, now: float) -> UserT | None:
        """Whose turn begins now, if one does."""
        if not self._waiting or not self._is_over(now):
            return None
        user = next(iter(self._waiting))
        del self._waiting[user]
        self._begin(user, now)
        return user

    def offered(self, user: UserT) -> None:
        """`user` was told of its turn: if it has sent nothing, it wants nothing."""
        if user == self.holder and not self.running:
            self._idle_since = -math.inf

    def _begin(self, user: UserT, now: float) -> None:
        self.holder = user
        self._since = self._idle_since = now

    def _is_over(self, now: float) -> bool:
        if self.holder is None:
            return True
        if self.running:
            return False
        return now >= min(self._since + HOLD_S, self._idle_since + LINGER_S)


class Turn:
    """One user's place at one device. Made by `Turns.join`; for use on the event loop only."""

    def __init__(self, device: _SharedDevice, on_turn: Callable[[], None]) -> None:
        self._device = device
        self.on_turn = on_turn

    def ask(self) -> bool:
        """Whether a call may be sent now.

        If not, `on_turn` is called once when it may be: then is the time to send. Whoever sends
        nothing before `on_turn` returns has let its turn go, and asks again.
        """
        return self._device.ask(self)

    def sent(self) -> None:
        """A call was sent; only right after `ask` said so, or in `on_turn` (else RuntimeError)."""
        self._device.sent(self)

    def done(self) -> None:
        """A call that was sent has been answered, failed or given up: once for each `sent`."""
        self._device.done(self)

    def leave(self) -> None:
        """Nothing is sent any more; `on_turn` is not called any more. May be called twice."""
        self._device.leave(self)


class FreeTurn:
    """The turn of one who shares a device that runs calls of several models side by side."""

    def ask(self) -> bool:
        """A call may always be sent."""
        return True

    def sent(self) -> None:
        """Nobody waits for it."""

    def done(self) -> None:
        """Nobody has waited for it."""

    def leave(self) -> None:
        """Nobody is in the way."""


class Turns:
    """The turns at every device. Not thread-safe: use it from one event loop."""

    def __init__(self) -> None:
        """Nobody uses anything yet."""
        self._devices: dict[str, _SharedDevice] = {}

    def join(self, device_id: str, on_turn: Callable[[], None]) -> Turn:
        """Share a device from now on, until `Turn.leave`.

        Args:
            device_id: any name.
            on_turn: called on the loop; see `Turn.ask`. Must not raise.
        """
        device = self._devices.get(device_id)
        if device is None:
            device = _SharedDevice(lambda: self._devices.pop(device_id, None))
            self._devices[device_id] = device
        return device.join(on_turn)


class _SharedDevice:
    """Drives one device's line: asks it whose turn begins, and sets the timer for when it may."""

    def __init__(self, on_empty: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_empty = on_empty
        self._line: Line[Turn] = Line()
        self._users: set[Turn] = set()
        self._timer: asyncio.Handle | None = None

    def join(self, on_turn: Callable[[], None]) -> Turn:
        turn = Turn(self, on_turn)
        self._users.add(turn)
        return turn

    def ask(self, turn: Turn) -> bool:
        if turn not in self._users:
            raise RuntimeError("a device's user has left")
        if self._line.ask(turn, self._loop.time()):
            return True
        self._set_timer()
        return False

    def sent(self, turn: Turn) -> None:
        self._line.sent(turn)

    def done(self, turn: Turn) -> None:
        self._line.done(turn, self._loop.time())
        self._set_timer()

    def leave(self, turn: Turn) -> None:
        if turn not in self._users:
            return
        self._users.remove(turn)
        self._line.leave(turn)
        self._set_timer()
        if not self._users:
            self._on_empty()

    def _set_timer(self) -> None:
        """Look again when the line says so.

        Never at once: whoever tells us something may be about to ask for more.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._line.due()
        if due is None:
            return
        if due <= self._loop.time():
            self._timer = self._loop.call_soon(self._advance)
        else:
            self._timer = self._loop.call_at(due, self._advance)

    def _advance(self) -> None:
        self._timer = None
        turn = self._line.advance(self._loop.time())
        try:
            if turn is not None:
                turn.on_turn()
                self._line.offered(turn)
        finally:
            self._set_timer()
