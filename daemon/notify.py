"""Tells systemd that the daemon is ready, reloading, alive or stopping; nothing without systemd.

Source: sd_notify(3) and systemd.service(5), Type=notify-reload: one datagram of `KEY=value` lines
to the unix socket that $NOTIFY_SOCKET names; "@" begins an abstract one.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_log = logging.getLogger(f"inferd.{__name__}")

_MAX_STATUS_CHARACTERS = 200  # `systemctl status` shows one line


class Notifier:
    """The service's side of the notify protocol. Sends without waiting, and raises nothing."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Store only; without NOTIFY_SOCKET every call does nothing."""
        self._address = _read_address(environment.get("NOTIFY_SOCKET", ""))
        self._failed = False

    def ready(self, status: str = "") -> None:
        """The service answers, for the first time or after `reloading`."""
        self._send("READY=1", *_status_line(status))

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends it."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self) -> None:
        """The service drains and will exit."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(*_status_line(text))

    def watchdog(self) -> None:
        """The event loop turns; due twice in every interval of `watchdog_interval_s`."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address or not lines:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.setblocking(False)
                client.sendto("\n".join(lines).encode(), self._address)
        except OSError as exc:
            # Once: it would be the same line for every watchdog message.
            if not self._failed:
                _log.warning("systemd was not told message=%s error=%s", lines[0], exc)
            self._failed = True


def watchdog_interval_s(environment: Mapping[str, str], pid: int) -> float | None:
    """Seconds within which systemd wants a sign of life from this process; None for never.

    Source: sd_watchdog_enabled(3).
    """
    interval_us = environment.get("WATCHDOG_USEC", "")
    if not _is_number(interval_us) or int(interval_us) == 0:
        return None
    if environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(interval_us) / 1_000_000


def _read_address(text: str) -> str:
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _status_line(text: str) -> tuple[str, ...]:
    line = " ".join(text.split())[:_MAX_STATUS_CHARACTERS]
    return (f"STATUS={line}",) if line else ()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20  # noqa: PLR2004 (a uint64's digits)
