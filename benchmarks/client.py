"""Our own closed-loop HTTP load, for unix sockets and where there is no wrk: a program.

One thread and epoll: about 20 microseconds of client per request, where asyncio's streams take 100.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from benchmarks.measure import load_from

_OK = 200
_RECEIVE_BYTES = 1 << 18
_STALLED_S = 30.0
"""No answer on any connection for so long ends the load."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer; times are of the monotonic clock, which all processes share."""

    began: float
    ended: float
    status: int


class _Connection:
    """One keep-alive connection with one request under way."""

    def __init__(self, address: int | str, request: bytes) -> None:
        if isinstance(address, int):
            self.socket = socket.create_connection(("127.0.0.1", address))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        self._request = request
        self._received = b""
        self._missing = 0
        self._status = 0
        self._began = 0.0

    def send(self) -> None:
        self._received, self._status = b"", 0
        self._began = time.monotonic()
        self.socket.sendall(self._request)

    def receive(self) -> Sample | None:
        """Take what is there; a sample when the answer is whole.

        Raises:
            ConnectionError: it was closed, or is no HTTP.
        """
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionError("closed by the server")
        if self._status:
            self._missing -= len(data)
        else:
            self._received += data
            self._read_head()
        if not self._status or self._missing > 0:
            return None
        return Sample(self._began, time.monotonic(), self._status)

    def _read_head(self) -> None:
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        status, *lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b":", 1) for line in lines)
        self._status = int(status.split(b" ", 2)[1])
        self._missing = int(headers[b"content-length"]) - len(body)


def closed_loop(
    address: int | str, request: bytes, *, connections: int, seconds: float
) -> tuple[list[Sample], int]:
    """So many connections, each sending its next request when it has its answer.

    Returns:
        Every answer, and how many connections failed; a failed one is opened again.
    """
    samples: list[Sample] = []
    failures = 0
    poll = select.epoll()
    under_way: dict[int, _Connection] = {}

    def start() -> None:
        connection = _Connection(address, request)
        under_way[connection.socket.fileno()] = connection
        poll.register(connection.socket, select.EPOLLIN)
        connection.send()

    for _ in range(connections):
        start()
    ends = time.monotonic() + seconds
    while under_way:
        events = poll.poll(_STALLED_S)
        if not events:
            return samples, failures + len(under_way)
        for number, _ in events:
            connection = under_way[number]
            try:
                sample = connection.receive()
            except ConnectionError:
                failures += 1
                _end(under_way.pop(number), poll)
                if time.monotonic() < ends:
                    start()
                continue
            if sample is None:
                continue
            samples.append(sample)
            if sample.ended < ends:
                connection.send()
            else:
                _end(under_way.pop(number), poll)
    return samples, failures


def _end(connection: _Connection, poll: select.epoll) -> None:
    poll.unregister(connection.socket)
    connection.socket.close()


def main() -> int:
    """Print the load's figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="a port of loopback, or the path of a unix socket")
    parser.add_argument("request", type=Path, help="a file with the whole request")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--samples", type=Path, help="takes every answer, as JSON")
    options = parser.parse_args()
    address = int(options.address) if options.address.isdecimal() else options.address
    began = time.monotonic()
    samples, failures = closed_loop(
        address,
        options.request.read_bytes(),
        connections=options.connections,
        seconds=options.seconds,
    )
    seconds = time.monotonic() - began
    if options.samples:
        options.samples.write_text(json.dumps([astuple(each) for each in samples]))
    good = [each.ended - each.began for each in samples if each.status == _OK]
    errors = len(samples) - len(good) + failures
    print(json.dumps(asdict(load_from(good, seconds, errors))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
