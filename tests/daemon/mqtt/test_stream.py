"""Bytes become packets, whatever pieces they come in; ours leave in order, in few writes.

The transport here records what it is given, and is full when the test says so.
"""

import asyncio

import pytest

from daemon.mqtt.packets import BrokenPacket, whole_packet
from daemon.mqtt.stream import Stream

MIB = 2**20


class RecordingTransport(asyncio.Transport):
    """The network's place. Takes `room` bytes, then says that it is full."""

    def __init__(self, stream, room=10 * MIB):
        super().__init__()
        self.stream = stream
        self.room = room
        self.writes = []
        self.is_reading = True
        self.end = ""

    def write(self, data):
        self.writes.append(bytes(data))
        self.room -= len(data)
        if self.room <= 0:
            self.stream.pause_writing()

    def drain(self, room):
        self.room = room
        self.stream.resume_writing()

    def is_closing(self):
        return self.end != ""

    def pause_reading(self):
        self.is_reading = False

    def resume_reading(self):
        self.is_reading = True

    def close(self):
        self.end = "closed"

    def abort(self):
        self.end = "aborted"


class Bench:
    """A stream on such a transport, and how often it called."""

    def __init__(self, room=10 * MIB):
        self.readable = self.writable = 0
        self.stream = Stream(self._on_readable, self._on_writable)
        self.transport = RecordingTransport(self.stream, room)
        self.stream.connection_made(self.transport)

    def _on_readable(self):
        self.readable += 1

    def _on_writable(self):
        self.writable += 1

    def packets(self):
        """All that are whole, as bytes."""
        found = []
        while (packet := self.stream.next_packet()) is not None:
            first, body = packet
            found.append(whole_packet(first, body))
            del packet, body
        return found


async def _turn():
    """Let the event loop run what is due."""
    await asyncio.sleep(0)


PACKETS = [whole_packet(0x30, memoryview(bytes(size))) for size in (0, 1, 127, 128, 20_000, 2)]


@pytest.mark.parametrize("piece", [1, 2, 3, 1000, 10**6])
async def test_packets_are_whole_whatever_pieces_they_come_in(piece):
    bench = Bench()
    data = b"".join(PACKETS)
    found = []

    for start in range(0, len(data), piece):
        bench.stream.data_received(data[start : start + piece])
        found += bench.packets()

    assert found == PACKETS
    assert bench.readable == -(-len(data) // piece)


async def test_bytes_that_are_no_packet_are_broken():
    bench = Bench()
    bench.stream.data_received(b"\x30\xff\xff\xff\xff")

    with pytest.raises(BrokenPacket):
        bench.stream.next_packet()


async def test_what_is_sent_in_one_turn_leaves_in_one_write():
    bench = Bench()
    for part in (b"a", b"b", b"c"):
        bench.stream.send(part)
    before = list(bench.transport.writes)
    await _turn()
    bench.stream.send(b"d")
    await _turn()

    assert before == []
    assert bench.transport.writes == [b"abc", b"d"]


async def test_a_large_message_leaves_in_pieces_and_in_order():
    bench = Bench()
    large = bytes(range(256)) * 4 * 1024
    bench.stream.send(b"before")
    bench.stream.send(large)
    bench.stream.send(b"after")

    await _turn()

    assert b"".join(bench.transport.writes) == b"before" + large + b"after"
    assert max(map(len, bench.transport.writes)) <= 256 * 1024


async def test_a_full_transport_is_given_no_more_until_it_takes_it():
    bench = Bench(room=1)
    bench.stream.send(bytes(MIB))
    await _turn()
    at_first = sum(map(len, bench.transport.writes))

    was_congested = bench.stream.is_congested
    bench.transport.drain(2 * MIB)

    assert at_first == 256 * 1024
    assert was_congested
    assert not bench.stream.is_congested
    assert sum(map(len, bench.transport.writes)) == MIB


async def test_it_says_when_it_takes_more_and_not_before():
    bench = Bench(room=1)
    bench.stream.send(bytes(MIB))
    await _turn()
    while_full = bench.writable
    bench.transport.drain(1)
    still_full = bench.writable

    bench.transport.drain(2 * MIB)

    assert (while_full, still_full, bench.writable) == (0, 0, 1)


async def test_much_that_waits_for_the_turns_end_is_congestion_too():
    bench = Bench()
    bench.stream.send(bytes(MIB))

    assert bench.stream.is_congested
    await _turn()
    assert not bench.stream.is_congested


async def test_it_closes_when_all_is_sent():
    bench = Bench(room=1)
    bench.stream.send(bytes(MIB))
    bench.stream.close()
    await _turn()
    while_full = bench.transport.end

    bench.transport.drain(2 * MIB)

    assert (while_full, bench.transport.end) == ("", "closed")
    assert sum(map(len, bench.transport.writes)) == MIB


async def test_an_abort_drops_what_was_not_sent():
    bench = Bench()
    bench.stream.send(b"a")
    bench.stream.abort()
    await _turn()

    assert bench.transport.end == "aborted"
    assert bench.transport.writes == []


async def test_the_end_is_told_and_what_is_sent_then_goes_nowhere():
    bench = Bench()
    error = ConnectionResetError("gone")

    bench.stream.connection_lost(error)
    taken = bench.stream.send(b"abc")
    bench.stream.close()
    await _turn()

    assert bench.readable == 1
    assert bench.stream.is_lost
    assert bench.stream.error is error
    assert taken == 3
    assert bench.transport.writes == []


async def test_reading_pauses_and_goes_on():
    bench = Bench()

    bench.stream.pause_reading()
    while_paused = bench.transport.is_reading
    bench.stream.resume_reading()

    assert (while_paused, bench.transport.is_reading) == (False, True)


async def test_paho_receives_what_it_is_given_and_never_waits():
    bench = Bench()
    bench.stream.give_to_paho(b"abc")

    assert (bench.stream.recv(1), bench.stream.recv(9)) == (b"a", b"bc")
    with pytest.raises(BlockingIOError):
        bench.stream.recv(1)
