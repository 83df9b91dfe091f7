"""The baseline: an aiohttp handler that answers with the body it was sent. A program."""

from __future__ import annotations

import sys

import uvloop
from aiohttp import web

MAX_BODY_BYTES = 64 << 20


async def echo(request: web.Request) -> web.Response:
    """The body, again."""
    return web.Response(body=await request.read())


def main() -> None:
    """Serve a port of loopback until stopped, on the event loop that inferd uses."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/", echo)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
