"""How slow a transfer may be before it is ended. Pure.

1. It ends by its deadline.
2. In every window of time it brings at least as many bytes as the least rate makes of it. So a
   server that drips, stalls, or never begins is left within one window, and a slow link is not.

Seconds of any clock that only goes forward.
"""

from __future__ import annotations

from collections import deque


class Pace:
    """Judges one transfer by how much has arrived when.

    Args:
        began: when the transfer did.
        deadline_s: after that, it must have ended.
        window_s: of rule 2.
        least_rate_bytes_s: of rule 2.
    """

    def __init__(
        self, began: float, *, deadline_s: float, window_s: float, least_rate_bytes_s: float
    ) -> None:
        self._deadline = began + deadline_s
        self._deadline_s = deadline_s
        self._window_s = window_s
        self._least_rate_bytes_s = least_rate_bytes_s
        self._seen = deque([(began, 0)])

    def judge(self, now: float, received_bytes: int) -> str:
        """Why the transfer must end; "" while it may go on.

        Args:
            received_bytes: since it began; called at least a few times in each window.
        """
        if now >= self._deadline:
            return f"not there after {self._deadline_s:g} s"
        self._seen.append((now, received_bytes))
        while len(self._seen) > 1 and self._seen[1][0] <= now - self._window_s:
            self._seen.popleft()
        since, before_bytes = self._seen[0]
        if now - since < self._window_s:
            return ""
        rate = (received_bytes - before_bytes) / (now - since)
        if rate >= self._least_rate_bytes_s:
            return ""
        return f"{rate:.0f} bytes/s, at least {self._least_rate_bytes_s:g} are expected"
