"""A folder on a real static web server, with ranges and entity tags, on a port of its own."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

START_S = 20


@contextmanager
def serving_folder(folder: Path, *, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve a folder until the block ends; gives its URL."""
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_static("/", folder)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    thread = threading.Thread(target=loop.run_forever, name="webfolder", daemon=True)
    thread.start()
    try:
        port = asyncio.run_coroutine_threadsafe(_start(runner, tls), loop).result(START_S)
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(START_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(START_S)
        loop.close()


async def _start(runner: web.AppRunner, tls: ssl.SSLContext | None) -> int:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port: int = runner.addresses[0][1]
    return port
