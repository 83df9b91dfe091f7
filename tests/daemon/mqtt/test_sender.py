"""What leaves, in which order, and what is settled when. The link here records what it is given."""

import asyncio
import json
import time

import pytest
from support.eventually import eventually

from daemon.mqtt.messages import BrokerLimits, Publication, Receipt, ReceiptKind
from daemon.mqtt.outbox import Outbox
from daemon.mqtt.sender import Sender

TAKEN = Receipt(ReceiptKind.TAKEN)
UNHEARD = Receipt(ReceiptKind.UNHEARD)
NO_LIMITS = BrokerLimits()


class RecordingLink:
    """The network's place: keeps what would have been sent, and takes QoS 0 while `is_open`."""

    def __init__(self):
        self.sent = []
        self.unconfirmed = []
        self.is_open = True

    def publish(self, connection, token, publication):
        self.sent.append((connection, token, publication))

    def publish_unconfirmed(self, connection, publication):
        self.unconfirmed.append((connection, publication))
        return self.is_open

    def payloads(self):
        return [publication.payload for _, _, publication in self.sent]


class Bench:
    """A started sender with all that it tells."""

    def __init__(self, path, **bounds):
        self.link = RecordingLink()
        self.lost = []
        self.settled = []
        self.waiting = []
        self.sender = Sender(
            self.link,
            Outbox(path, **{"max_messages": 1000, "max_bytes": 10**7, **bounds}),
            on_outbox=self.waiting.append,
            on_lost=self.lost.append,
            settle_s=0.0,
        )
        self._answered = 0

    def submit(self, *names, **changes):
        is_late = changes.pop("is_late", False)
        for name in names:
            self.sender.submit(
                _result(name, **changes),
                lambda name=name: self.settled.append(name),
                is_late=is_late,
            )

    def answer(self, receipt=TAKEN, count=None):
        """The broker acknowledges what it was sent and has not acknowledged yet."""
        open_ones = self.link.sent[self._answered :][:count]
        self._answered += len(open_ones)
        for _, token, _ in open_ones:
            self.sender.published(token, receipt)

    def drop(self):
        """The connection is lost; open ones will never be acknowledged."""
        self._answered = len(self.link.sent)
        self.sender.disconnected()

    async def sent(self, *names):
        """Wait until exactly these were sent, since the last call."""
        wanted = [name.encode() for name in names]
        await eventually(lambda: len(self.link.sent) >= len(wanted))
        assert self.link.payloads() == wanted

    def forget(self):
        self.link.sent.clear()
        self._answered = 0


def _result(name, **changes):
    facts = {"topic": f"answers/{name}", "payload": name.encode(), "request_id": name}
    return Publication(**{**facts, **changes})


@pytest.fixture
async def bench(tmp_path):
    bench = Bench(tmp_path / "outbox.db")
    await bench.sender.start()
    yield bench
    await bench.sender.stop()


async def test_a_result_is_settled_when_the_broker_has_it_and_not_before(bench):
    bench.sender.connected(1, NO_LIMITS)
    bench.submit("a")
    before = list(bench.settled)

    bench.answer()

    assert (before, bench.settled) == ([], ["a"])
    assert bench.link.sent[0][0] == 1


async def test_no_more_than_the_brokers_window_is_in_flight(bench):
    bench.sender.connected(1, BrokerLimits(receive_maximum=2))
    await eventually(lambda: not bench.sender._next_pass)
    bench.submit("a", "b", "c")
    at_first = bench.link.payloads()

    bench.answer(count=1)

    assert at_first == [b"a", b"b"]
    await bench.sent("a", "b", "c")


async def test_an_announcement_goes_before_results_and_only_the_newest_of_a_topic(bench):
    bench.sender.connected(1, BrokerLimits(receive_maximum=1))
    await eventually(lambda: not bench.sender._next_pass)
    bench.submit("a", "b")
    bench.sender.announce(Publication("state", b"old", retain=True))
    bench.sender.announce(Publication("state", b"new", retain=True))

    for _ in range(3):
        bench.answer()

    await bench.sent("a", "new", "b")


async def test_while_the_broker_is_away_results_go_to_disk_and_are_settled_there(bench):
    bench.submit("a", "b")

    await eventually(lambda: bench.settled == ["a", "b"])

    assert bench.waiting[-1] == 2
    assert bench.link.sent == []


async def test_what_waited_leaves_in_order_and_is_forgotten_when_acknowledged(bench):
    bench.submit(*"abcde")
    await eventually(lambda: len(bench.settled) == 5)

    bench.sender.connected(1, NO_LIMITS)
    await bench.sent(*"abcde")
    bench.answer()

    await eventually(lambda: bench.waiting[-1] == 0)
    assert await bench.sender.flush(5)


async def test_a_loss_of_the_connection_sends_everything_in_flight_again_in_order(bench):
    bench.sender.connected(1, NO_LIMITS)
    bench.submit(*"abcd")
    bench.answer(count=1)
    bench.drop()
    await eventually(lambda: bench.settled == ["a", "b", "c", "d"])
    bench.forget()

    bench.sender.connected(2, NO_LIMITS)

    await bench.sent("b", "c", "d")


async def test_results_submitted_after_a_loss_follow_those_that_were_in_flight(bench):
    bench.sender.connected(1, NO_LIMITS)
    bench.submit(*"ab")
    bench.drop()
    bench.submit(*"cd", is_late=True)
    await eventually(lambda: bench.settled == ["a", "b", "c", "d"])
    bench.forget()

    bench.sender.connected(2, NO_LIMITS)

    await bench.sent(*"abcd")


async def test_many_results_leave_in_order_over_several_losses(bench):
    names = [f"{number:03}" for number in range(150)]
    bench.submit(*names)
    await eventually(lambda: len(bench.settled) == 150)
    acknowledged = []
    for connection in range(1, 12):
        bench.forget()
        bench.sender.connected(connection, NO_LIMITS)
        await eventually(lambda: len(bench.link.sent) == min(20, bench.waiting[-1]))
        first = bench.link.payloads()[:15]
        bench.answer(count=15)
        acknowledged += [payload.decode() for payload in first]
        bench.drop()
        left = 150 - len(acknowledged)
        await eventually(lambda left=left: bench.waiting[-1] == left)

    assert acknowledged == names


async def test_a_result_whose_request_came_before_the_loss_goes_through_the_disk(bench):
    bench.sender.connected(2, NO_LIMITS)

    bench.submit("late", is_late=True)

    await eventually(lambda: bench.settled == ["late"])
    await bench.sent("late")


async def test_of_a_topic_one_result_is_tried_until_it_is_heard_and_then_the_rest_follow(bench):
    bench.submit(*"abc", topic="answers/same")
    await eventually(lambda: len(bench.settled) == 3)
    bench.sender.connected(1, NO_LIMITS)
    await bench.sent("a")
    bench.answer(UNHEARD)

    await bench.sent("a", "a")
    bench.answer()

    await bench.sent("a", "a", "b", "c")
    bench.answer()
    await eventually(lambda: bench.waiting[-1] == 0)
    assert await bench.sender.flush(5)


async def test_a_topic_that_is_not_heard_holds_no_other_up(bench):
    bench.submit(*"ab", topic="answers/nobody")
    bench.submit(*"cde", topic="answers/somebody")
    await eventually(lambda: len(bench.settled) == 5)
    bench.sender.connected(1, NO_LIMITS)
    await bench.sent("a")

    bench.answer(UNHEARD)
    await bench.sent("a", "c")
    bench.answer()

    await bench.sent("a", "c", "d", "e")


async def test_fresh_results_go_past_one_that_waits_for_the_brokers_word(bench):
    bench.submit(*"ab", topic="answers/same")
    await eventually(lambda: len(bench.settled) == 2)
    bench.sender.connected(1, NO_LIMITS)
    await bench.sent("a")

    bench.submit("fresh")

    await bench.sent("a", "fresh")


async def test_who_missed_one_in_the_middle_gets_all_from_there_on_in_order(bench):
    bench.submit(*"abcd", topic="answers/same")
    await eventually(lambda: len(bench.settled) == 4)
    bench.sender.connected(1, NO_LIMITS)
    await bench.sent("a")
    bench.answer()
    await bench.sent(*"abcd")

    bench.answer(UNHEARD, count=1)  # b: gone, and back for c and d
    bench.answer()
    bench.forget()

    await bench.sent("b")
    bench.answer()
    await bench.sent("b", "c", "d")


async def test_a_result_that_is_refused_lets_the_next_of_its_topic_be_tried(bench):
    bench.submit(*"abc", topic="answers/same")
    await eventually(lambda: len(bench.settled) == 3)
    bench.sender.connected(1, NO_LIMITS)
    await bench.sent("a")

    bench.answer(Receipt(ReceiptKind.REFUSED, "Not authorized"))
    await bench.sent("a", "b")
    bench.answer()

    await bench.sent("a", "b", "c")


async def test_late_results_of_a_topic_are_tried_one_at_a_time_again(bench):
    bench.sender.connected(2, NO_LIMITS)
    bench.submit(*"ab", topic="answers/same", is_late=True)
    await bench.sent("a")
    bench.answer()
    await bench.sent("a", "b")
    bench.answer()
    await eventually(lambda: bench.waiting[-1] == 0)

    bench.submit(*"cd", topic="answers/same", is_late=True)

    await bench.sent("a", "b", "c")


async def test_fresh_results_that_nobody_hears_are_done_with(bench):
    bench.sender.connected(1, NO_LIMITS)
    bench.submit("a")

    bench.answer(UNHEARD)

    assert bench.settled == ["a"]
    assert await bench.sender.flush(5)
    assert bench.waiting[-1] == 0


async def test_fresh_results_go_past_those_that_wait_to_be_heard(bench):
    bench.submit("old")
    await eventually(lambda: bench.settled == ["old"])
    bench.sender.connected(1, NO_LIMITS)
    await bench.sent("old")
    bench.answer(UNHEARD)

    bench.submit("fresh")

    await bench.sent("old", "fresh")


async def test_qos_0_is_sent_or_dropped_at_once(bench):
    bench.submit("away", qos=0)
    bench.sender.connected(1, NO_LIMITS)
    bench.submit("sent", qos=0)
    bench.link.is_open = False
    bench.submit("congested", qos=0)

    assert bench.settled == ["away", "sent", "congested"]
    assert [p.payload for _, p in bench.link.unconfirmed] == [b"sent", b"congested"]
    assert bench.lost == ["the broker is away", "the broker reads too slowly"]


async def test_results_that_may_expire_wait_in_memory_and_are_dropped_when_they_have(bench):
    now = time.monotonic()
    bench.submit("stale", expires_at=now - 1)
    bench.submit("good", expires_at=now + 60)

    bench.sender.connected(1, NO_LIMITS)

    await bench.sent("good")
    assert bench.settled == ["stale"]
    assert set(bench.waiting) == {0}


async def test_a_result_over_the_brokers_limit_is_replaced_by_a_small_refusal(bench):
    bench.sender.connected(1, BrokerLimits(max_packet_bytes=1000))

    bench.submit("big", payload=b"x" * 2000)
    bench.answer()

    (_, _, refusal), *_ = bench.link.sent
    assert json.loads(refusal.payload)["error"]["code"] == "too_large"
    assert bench.settled == ["big"]


async def test_not_even_a_refusal_is_sent_over_the_limit(bench):
    bench.sender.connected(1, BrokerLimits(max_packet_bytes=100))

    bench.submit("big", payload=b"x" * 2000)
    bench.sender.announce(Publication("state", b"y" * 2000, retain=True))

    assert bench.link.sent == []
    assert bench.settled == ["big"]
    assert bench.lost == ["over the broker's Maximum Packet Size"]


async def test_a_result_that_the_broker_calls_too_large_is_replaced_once(bench):
    bench.sender.connected(1, NO_LIMITS)
    bench.submit("big", payload=b"x" * 2000)

    bench.answer(Receipt(ReceiptKind.TOO_LARGE, "Packet too large"))
    refusal = json.loads(bench.link.sent[1][2].payload)
    bench.answer(Receipt(ReceiptKind.TOO_LARGE, "Packet too large"))

    assert refusal["error"]["code"] == "too_large"
    assert len(bench.link.sent) == 2
    assert bench.settled == ["big"]


async def test_a_result_that_the_broker_refuses_is_dropped_and_told(bench):
    bench.sender.connected(1, NO_LIMITS)
    bench.submit("a")

    bench.answer(Receipt(ReceiptKind.REFUSED, "Not authorized"))

    assert bench.settled == ["a"]
    assert "Not authorized" in bench.lost[0]


async def test_a_result_on_which_the_broker_hangs_up_every_time_is_replaced(bench):
    bench.submit("poison", payload=b"x" * 2000)
    bench.submit("good")
    for connection in range(1, 5):
        await eventually(lambda: bench.waiting[-1] == 2)
        bench.forget()
        bench.sender.connected(connection, NO_LIMITS)
        await eventually(lambda: bench.link.sent)
        bench.drop()
    bench.forget()

    bench.sender.connected(9, NO_LIMITS)
    await eventually(lambda: bench.link.sent)
    replaced = json.loads(bench.link.sent[0][2].payload)
    bench.answer()

    assert replaced["error"]["code"] == "too_large"
    await eventually(lambda: bench.link.payloads()[1:] == [b"good"])


async def test_an_announcement_on_which_the_broker_hangs_up_is_given_up(bench):
    state = Publication("state", b"x" * 2000, retain=True)
    for connection in range(1, 5):
        bench.sender.connected(connection, NO_LIMITS)
        bench.sender.announce(state)
        bench.drop()
    bench.forget()

    bench.sender.connected(9, NO_LIMITS)
    bench.sender.announce(state)
    bench.submit("a")

    await bench.sent("a")


async def test_a_full_outbox_refuses_the_newest_and_lets_its_request_go(tmp_path):
    bench = Bench(tmp_path / "outbox.db", max_messages=2)
    await bench.sender.start()

    bench.submit("a", "b", "c")

    await eventually(lambda: bench.settled == ["a", "b", "c"])
    assert bench.lost == ["the outbox is full"]
    await bench.sender.stop()


async def test_a_stop_leaves_on_disk_what_was_not_acknowledged(tmp_path):
    bench = Bench(tmp_path / "outbox.db")
    await bench.sender.start()
    bench.sender.connected(1, NO_LIMITS)
    bench.submit("a", "b")
    await bench.sender.stop()

    again = Bench(tmp_path / "outbox.db")
    await again.sender.start()
    again.sender.connected(1, NO_LIMITS)

    await again.sent("a", "b")
    await again.sender.stop()


async def test_a_stop_while_results_are_written_leaves_each_on_disk_once_and_in_order(tmp_path):
    bench = Bench(tmp_path / "outbox.db")
    await bench.sender.start()
    bench.submit(*"abc")
    while not bench.sender._is_spilling:  # noqa: ASYNC110 (turn by turn, lest it be missed)
        await asyncio.sleep(0)
    bench.submit(*"de", is_late=True)
    await bench.sender.stop()

    outbox = Outbox(tmp_path / "outbox.db", max_messages=1000, max_bytes=10**7)
    outbox.open()
    on_disk = [each.publication.payload for each in outbox.peek(after_row=0, limit=100)]
    outbox.close()

    assert on_disk == [b"a", b"b", b"c", b"d", b"e"]
    assert bench.settled == ["a", "b", "c", "d", "e"]


async def test_a_disk_that_refuses_leaves_results_in_memory_and_they_still_leave(tmp_path, caplog):
    (tmp_path / "blocked").write_bytes(b"")
    bench = Bench(tmp_path / "blocked" / "outbox.db")
    await bench.sender.start()
    bench.submit("a")
    await eventually(lambda: "outbox cannot be used" in caplog.text)

    bench.sender.connected(1, NO_LIMITS)

    await bench.sent("a")
    bench.answer()
    assert bench.settled == ["a"]
    await bench.sender.stop()
