"""ForkServer: a small process that has the runtime imported and forks workers on request."""

from __future__ import annotations


class ForkServer:
    """Owns the fork server process; one for the whole daemon, restarted when it dies."""

    async def start(self) -> None:
        """Start the process; returns once it is ready to fork."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End it, and with it every worker that is left."""
        raise NotImplementedError
