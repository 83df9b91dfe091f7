"""What the runner asks of every server that is compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.processes import Command
    from benchmarks.wire import Answer, Request
    from benchmarks.workloads import Case


class Contender(Protocol):
    """A server and how to speak to it over HTTP."""

    @property
    def name(self) -> str:
        """Of its lane in the table."""

    def prepare(self) -> str:
        """Install it where it is not yet; gives its version.

        Raises:
            Unavailable: it cannot be installed; the message says why.
        """

    def command(self, case: Case, folder: Path, port: int) -> Command:
        """How to start it with this case's model on a port of loopback.

        Args:
            folder: an empty one, for its files.
        """

    def request(self, case: Case) -> Request:
        """The case's request, as this server's users would best send it."""

    def is_right(self, case: Case, answer: Answer) -> bool:
        """Whether this answer with status 200 says what the raw runtime said."""
