"""Acknowledgements leave in the order in which the messages came. Pure.

Requests are answered in any order, and MQTT wants PUBACKs in the order of the PUBLISHes
(MQTT 3.1.1 and 5, [MQTT-4.6.0-2]); rumqttd closes the connection of a client that does otherwise.
So an acknowledgement waits for those of earlier messages. What waits is bounded by the broker's
window, and how long by the requests' deadlines.
"""

from __future__ import annotations


class OrderedAcks:
    """The QoS 1 messages of one connection that are not acknowledged yet."""

    def __init__(self) -> None:
        self._settled: dict[int, bool] = {}  # by packet id, in order of arrival

    def __len__(self) -> int:
        return len(self._settled)

    def received(self, mid: int) -> None:
        """A message came. A packet id that is still open is the broker's error: it stays open."""
        self._settled.setdefault(mid, False)

    def settle(self, mid: int) -> tuple[int, ...]:
        """A message is done with: the packet ids that may be acknowledged now, in this order."""
        if mid not in self._settled:
            return ()
        self._settled[mid] = True
        ready: list[int] = []
        for earliest, settled in self._settled.items():
            if not settled:
                break
            ready.append(earliest)
        for done in ready:
            del self._settled[done]
        return tuple(ready)
