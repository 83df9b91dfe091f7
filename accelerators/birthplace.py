"""Birthplace: where workers come from. The fork server is one; a device's process is another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from accelerators.forkserver import Exit


class WorkerProcess(Protocol):
    """Where a worker lives. Whoever asked for it calls `close` after its end."""

    @property
    def pid(self) -> int:
        """Of its process."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether other workers live in the same process: to kill one is to kill all."""
        ...

    @property
    def exited(self) -> asyncio.Future[Exit]:
        """Done when the worker is gone."""
        ...

    def kill(self) -> None:
        """End it at once. Does nothing when it is gone; a failure is logged, not raised."""
        ...

    def close(self) -> None:
        """Give back what belongs to it here."""
        ...


class Birthplace(Protocol):
    """Starts workers; see `accelerators.forkserver.ForkServer` and `accelerators.hosts`."""

    async def fork(self, fds: Sequence[int]) -> WorkerProcess:
        """Start a worker that gets copies of `fds`: its socket, its stderr, and its slots.

        Raises:
            ForkFailed: none can be had now; it may work later.
        """
        ...
