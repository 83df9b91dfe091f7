"""Those who share a device take turns: nobody starves, nobody who has gone blocks, one is free."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerators.turns import HOLD_S, LINGER_S, Line, Turns

SLOTS = 2  # calls a user may have in flight, as a worker has
LONGEST_CALL_S = 0.1
SLACK_S = 1e-6  # sums of floating point numbers


def line_with(*users: str, at: float = 0.0) -> Line[str]:
    """Every user has asked in this order; the first has the device and a call in flight."""
    line: Line[str] = Line()
    for user in users:
        if line.ask(user, at):
            line.sent(user)
    return line


def test_lone_user_may_always_send():
    line = line_with("a")

    assert line.ask("a", 100.0)
    assert line.due() is None


def test_user_keeps_the_device_for_its_time_though_another_waits():
    line = line_with("a", "b")

    assert line.ask("a", HOLD_S - 0.01)
    assert not line.ask("a", HOLD_S)


def test_turn_ends_only_when_what_is_in_flight_is_answered():
    line = line_with("a", "b")

    assert line.advance(HOLD_S + 1) is None
    line.done("a", HOLD_S + 1)

    assert line.advance(HOLD_S + 1) == "b"


def test_user_that_asks_again_at_once_keeps_its_turn():
    line = line_with("a", "b")

    line.done("a", 0.01)

    assert line.advance(0.01) is None
    assert line.ask("a", 0.011)


def test_user_that_asks_no_more_loses_its_turn_soon():
    line = line_with("a", "b")

    line.done("a", 0.01)

    assert line.due() == pytest.approx(0.01 + LINGER_S)
    assert line.advance(0.01 + LINGER_S) == "b"


def test_whoever_was_long_alone_gives_way_at_once():
    line = line_with("a")

    assert not line.ask("b", 50.0)
    assert not line.ask("a", 50.0)
    line.done("a", 50.0)

    assert line.advance(50.0) == "b"


def test_idle_device_is_given_to_whoever_asks():
    line = line_with("a")
    line.done("a", 1.0)

    assert line.ask("b", 2.0)


def test_turns_go_round_in_the_order_of_asking():
    line = line_with("a", "b", "c")
    line.ask("a", HOLD_S)  # behind c
    line.done("a", HOLD_S)

    order = []
    for number in range(1, 4):
        order.append(line.advance(number * 1.0))
        line.offered(order[-1])

    assert order == ["b", "c", "a"]


def test_nobody_overtakes_those_who_wait():
    line = line_with("a", "b")
    line.done("a", 0.0)

    assert not line.ask("c", 1.0)
    assert line.advance(1.0) == "b"


def test_user_that_sends_nothing_in_its_turn_is_passed_over_at_once():
    line = line_with("a", "b", "c")
    line.leave("a")

    assert line.advance(0.0) == "b"
    line.offered("b")

    assert line.advance(0.0) == "c"


def test_leaver_with_calls_in_flight_frees_the_device():
    line = line_with("a", "b")

    line.leave("a")
    line.done("a", 0.0)  # its calls end later, which is nobody's business any more

    assert line.advance(0.0) == "b"
    assert line.running == 0


def test_leaver_has_no_place_in_the_line():
    line = line_with("a", "b", "c")

    line.leave("b")
    line.leave("a")

    assert line.advance(0.0) == "c"


def test_call_out_of_turn_is_a_bug():
    line = line_with("a", "b")

    with pytest.raises(RuntimeError, match="out of turn"):
        line.sent("b")


@dataclass
class Client:
    """A user of the simulated device: how many calls it still has, how long each runs."""

    calls: int = 0
    call_s: float = 0.01
    in_flight: int = 0
    asked_at: float | None = None
    has_left: bool = False


@dataclass
class Simulation:
    """One device that runs one call at a time, driven as the daemon drives it, in its own time."""

    users: int
    line: Line[int] = field(default_factory=Line)
    now: float = 0.0
    longest_wait_s: float = 0.0
    finished: int = 0
    events: list[tuple[float, int, str, int]] = field(default_factory=list)
    clients: list[Client] = field(init=False)
    busy_until: float = 0.0
    order: int = 0

    def __post_init__(self) -> None:
        self.clients = [Client() for _ in range(self.users)]

    def at(self, time: float, what: str, user: int) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, what, user))

    def run(self) -> None:
        while self.events or self.line.due() is not None:
            due = self.line.due()
            if due is not None and (not self.events or due <= self.events[0][0]):
                self.now = max(self.now, due)
                self.advance()
            else:
                self.now, _, what, user = heapq.heappop(self.events)
                getattr(self, what)(user)

    def advance(self) -> None:
        user = self.line.advance(self.now)
        assert user is not None, "the line was due and did not move"
        assert not self.clients[user].has_left
        self.pump(user)
        self.line.offered(user)

    def request(self, user: int) -> None:
        if not self.clients[user].has_left:
            self.clients[user].calls += 1
            self.pump(user)

    def pump(self, user: int) -> None:
        client = self.clients[user]
        while client.calls and client.in_flight < SLOTS:
            if not self.line.ask(user, self.now):
                if client.asked_at is None:
                    client.asked_at = self.now
                return
            if client.asked_at is not None:
                self.longest_wait_s = max(self.longest_wait_s, self.now - client.asked_at)
                client.asked_at = None
            self.line.sent(user)
            client.calls -= 1
            client.in_flight += 1
            self.busy_until = max(self.busy_until, self.now) + client.call_s
            self.at(self.busy_until, "answer", user)
            assert [c.in_flight for c in self.clients if not c.has_left].count(0) >= (
                sum(not c.has_left for c in self.clients) - 1
            ), "calls of two users at once"

    def answer(self, user: int) -> None:
        client = self.clients[user]
        client.in_flight -= 1
        self.line.done(user, self.now)
        if not client.has_left:
            self.finished += 1
            self.pump(user)

    def leave(self, user: int) -> None:
        client = self.clients[user]
        client.has_left, client.calls, client.asked_at = True, 0, None
        self.line.leave(user)
        if client.in_flight:  # its process is killed: the device is free
            self.busy_until = self.now


traffic = st.lists(
    st.tuples(
        st.floats(0.0, 3.0),  # when
        st.integers(0, 3),  # who
        st.integers(1, 40),  # how many calls at once
    ),
    max_size=20,
)
leavers = st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 3)), max_size=2)
lengths = st.tuples(*[st.floats(0.0005, LONGEST_CALL_S)] * 4)


@given(traffic, leavers, lengths)
def test_whatever_the_traffic_everybody_is_served_within_one_turn_of_each_other(
    requests, leaving, call_s
):
    sim = Simulation(users=4)
    for client, seconds in zip(sim.clients, call_s, strict=True):
        client.call_s = seconds
    for time, user, calls in requests:
        for _ in range(calls):
            sim.at(time, "request", user)
    for time, user in leaving:
        sim.at(time, "leave", user)

    sim.run()

    stayed = {user for user in range(4) if not sim.clients[user].has_left}
    assert all(sim.clients[user].calls == 0 for user in stayed)
    assert sim.finished >= sum(calls for _, user, calls in requests if user in stayed)
    turn_s = HOLD_S + SLOTS * LONGEST_CALL_S + LINGER_S
    assert sim.longest_wait_s <= 3 * turn_s + SLACK_S


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60), st.floats(0.0005, LONGEST_CALL_S))
def test_whatever_the_traffic_a_lone_user_never_waits(times, call_s):
    sim = Simulation(users=1)
    sim.clients[0].call_s = call_s
    for time in times:
        sim.at(time, "request", 0)

    sim.run()

    assert sim.longest_wait_s == 0.0
    assert sim.finished == len(times)


def test_calls_of_one_user_are_kept_together():
    sim = Simulation(users=2)
    for client in sim.clients:
        client.call_s = 0.002
    for user in (0, 1) * 500:
        sim.at(0.0, "request", user)
    held: list[int] = []
    real = sim.answer
    sim.answer = lambda user: (held.append(user), real(user))[1]  # type: ignore[method-assign]

    sim.run()

    switches = sum(one != other for one, other in pairwise(held))
    assert len(held) == 1000  # 2 s of work
    assert switches <= 2.0 / HOLD_S


class Sender:
    """A user of real turns: sends one call whenever it may while it has some."""

    def __init__(self, turns: Turns, device_id: str, calls: int = 0) -> None:
        self.calls = calls
        self.told = 0
        self.sent = 0
        self.turn = turns.join(device_id, self.on_turn)

    def on_turn(self) -> None:
        self.told += 1
        self.pump()

    def pump(self) -> None:
        while self.calls and self.turn.ask():
            self.turn.sent()
            self.calls -= 1
            self.sent += 1


async def test_devices_do_not_wait_for_each_other():
    turns = Turns()
    one, other = Sender(turns, "edgetpu:1", 1), Sender(turns, "edgetpu:2", 1)

    one.pump()
    other.pump()

    assert (one.sent, other.sent) == (1, 1)
    one.turn.leave()
    other.turn.leave()


async def test_who_waits_is_told_when_the_device_is_free(wait_until):
    turns = Turns()
    one, other = Sender(turns, "x", 1), Sender(turns, "x", 3)
    one.pump()
    other.pump()
    assert (other.sent, other.told) == (0, 0)

    one.turn.done()
    await wait_until(lambda: other.sent == 3)

    assert other.told == 1
    one.turn.leave()
    other.turn.leave()


async def test_who_waits_is_told_when_the_other_leaves_in_the_middle_of_a_call(wait_until):
    turns = Turns()
    one, other = Sender(turns, "x", 1), Sender(turns, "x", 1)
    one.pump()
    other.pump()

    one.turn.leave()
    await wait_until(lambda: other.sent == 1)

    one.turn.done()
    one.turn.leave()
    assert other.turn.ask()
    other.turn.leave()


async def test_who_has_left_is_never_told(wait_until):
    turns = Turns()
    one, gone, last = Sender(turns, "x", 1), Sender(turns, "x", 1), Sender(turns, "x", 1)
    for sender in (one, gone, last):
        sender.pump()

    gone.turn.leave()
    one.turn.done()
    await wait_until(lambda: last.sent == 1)

    assert gone.told == 0
    with pytest.raises(RuntimeError, match="has left"):
        gone.turn.ask()
    one.turn.leave()
    last.turn.leave()


async def test_who_wants_nothing_any_more_lets_its_turn_go(wait_until):
    turns = Turns()
    one, idle, last = Sender(turns, "x", 1), Sender(turns, "x", 1), Sender(turns, "x", 1)
    for sender in (one, idle, last):
        sender.pump()
    idle.calls = 0  # its request was withdrawn

    one.turn.done()
    await wait_until(lambda: last.sent == 1)

    assert idle.told == 1
    for sender in (one, idle, last):
        sender.turn.leave()


async def test_nothing_is_kept_of_a_device_that_nobody_shares_any_more():
    turns = Turns()
    senders = [Sender(turns, "x", 2) for _ in range(3)]
    for sender in senders:
        sender.pump()

    for sender in senders:
        sender.turn.leave()

    assert turns._devices == {}  # a leak would be seen nowhere else
