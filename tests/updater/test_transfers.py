"""Downloads in their own thread: one at a time, told once, never two writers on one part."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from updater import fetch
from updater.errors import FetchFailed, TrustReason, Untrusted
from updater.transfers import Order, Transfers

DATA = bytes(range(256)) * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
WAIT_S = 20


@pytest.fixture
def transfers():
    transfers = Transfers(fetch.Limits())
    yield transfers
    transfers.stop()


@pytest.fixture
def stick(tmp_path):
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "bundle").write_bytes(DATA)
    return folder


@pytest.fixture
def order(tmp_path, stick):
    return Order(str(stick), "bundle", tmp_path / "one.part", len(DATA), DIGEST)


class Slow(BaseHTTPRequestHandler):
    """Sends half of the file, then the rest when it is let."""

    let = threading.Event()
    asked = threading.Semaphore(0)

    def do_GET(self) -> None:
        half = len(DATA) // 2
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        try:
            self.wfile.write(DATA[:half])
            self.asked.release()
            self.let.wait(WAIT_S)
            self.wfile.write(DATA[half:])
        except ConnectionError:
            pass  # it was cancelled

    def log_message(self, *_: object) -> None:
        """Not needed."""


@contextmanager
def serving():
    Slow.let, Slow.asked = threading.Event(), threading.Semaphore(0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        Slow.let.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def slow(tmp_path):
    with serving() as url:
        yield Order(url, "bundle", tmp_path / "slow.part", len(DATA), DIGEST)


def wait_for_half(order: Order) -> None:
    assert Slow.asked.acquire(timeout=WAIT_S)
    for _ in range(1000):
        if order.part.exists() and order.part.stat().st_size == len(DATA) // 2:
            return
        threading.Event().wait(0.01)
    raise AssertionError("half of it does not arrive")


def arrive(transfers: Transfers, order: Order) -> None:
    assert not transfers.want(order)
    transfers.wait(WAIT_S)


def test_a_file_is_there_when_it_was_asked_for_again(transfers, order):
    arrive(transfers, order)

    assert transfers.want(order)
    assert order.part.read_bytes() == DATA
    assert transfers.progress(order) == (len(DATA), len(DATA))


def test_nothing_is_there_before_it_was_asked_for(transfers, order):
    assert transfers.progress(order) == (0, len(DATA))


def test_who_asks_does_not_wait_for_bytes(transfers, slow):
    assert not transfers.want(slow)
    wait_for_half(slow)

    assert not transfers.want(slow)
    assert transfers.progress(slow) == (len(DATA) // 2, len(DATA))

    Slow.let.set()
    transfers.wait(WAIT_S)
    assert transfers.want(slow)


def test_a_failure_is_told_once_and_the_next_wish_begins_anew(transfers, order, stick):
    (stick / "bundle").rename(stick / "elsewhere")
    arrive(transfers, order)

    with pytest.raises(FetchFailed):
        transfers.want(order)
    (stick / "elsewhere").rename(stick / "bundle")
    arrive(transfers, order)
    assert transfers.want(order)


def test_other_bytes_than_those_signed_are_told_as_such(transfers, order, stick):
    (stick / "bundle").write_bytes(DATA[::-1])
    arrive(transfers, order)

    with pytest.raises(Untrusted) as caught:
        transfers.want(order)
    assert caught.value.reason is TrustReason.MISMATCH


def test_one_at_a_time_the_others_wait_their_turn(transfers, slow, order):
    assert not transfers.want(slow)
    wait_for_half(slow)
    assert not transfers.want(order)
    assert not order.part.exists()

    Slow.let.set()
    transfers.wait(WAIT_S)
    arrive(transfers, order)

    assert transfers.want(order)
    assert transfers.want(slow), "an outcome is kept for who asks later"


def test_what_nobody_wants_any_more_is_cancelled_and_its_bytes_stay(transfers, slow, order):
    assert not transfers.want(slow)
    wait_for_half(slow)

    transfers.keep({order.part})
    transfers.wait(WAIT_S)

    assert transfers.progress(slow) == (len(DATA) // 2, len(DATA))
    arrive(transfers, order)
    assert transfers.want(order)


def test_what_is_wanted_is_not_cancelled(transfers, slow):
    assert not transfers.want(slow)
    wait_for_half(slow)
    transfers.keep({slow.part})

    Slow.let.set()
    transfers.wait(WAIT_S)

    assert transfers.want(slow)


def test_an_outcome_that_nobody_waits_for_is_forgotten(transfers, order, stick):
    (stick / "bundle").unlink()
    arrive(transfers, order)
    transfers.keep(())

    assert not transfers.want(order)


def test_from_another_source_the_old_writer_leaves_the_part_first(transfers, slow, stick):
    """A stick is put in while the network drips."""
    other = Order(str(stick), "bundle", slow.part, len(DATA), DIGEST)
    assert not transfers.want(slow)
    wait_for_half(slow)

    assert not transfers.want(other)
    transfers.wait(WAIT_S)
    arrive(transfers, other)

    assert transfers.want(other)
    assert slow.part.read_bytes() == DATA


def test_a_stop_cancels_what_is_on_its_way(transfers, slow):
    assert not transfers.want(slow)
    wait_for_half(slow)

    transfers.stop()

    assert not [thread for thread in threading.enumerate() if thread.name == "transfer"]
    assert transfers.progress(slow) == (len(DATA) // 2, len(DATA))


def test_a_stop_when_nothing_is_on_its_way_is_nothing(transfers):
    transfers.stop()
    transfers.wait(0)
