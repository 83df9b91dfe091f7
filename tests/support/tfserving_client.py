"""A TF Serving client as scripts are: `requests`, JSON, nothing else."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import Any

import requests


class Client:
    """A script's `requests` against one server; every path starts at its root."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = requests.Session()

    async def send(self, method: str, path: str, **options: Any) -> requests.Response:
        call = partial(self._session.request, method, self.url + path, timeout=60, **options)
        return await asyncio.to_thread(call)

    async def get(self, path: str) -> requests.Response:
        return await self.send("GET", path)

    async def predict(self, model: str, body: object, **options: Any) -> requests.Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send("POST", f"/v1/models/{model}:predict", data=data, **options)

    def close(self) -> None:
        self._session.close()
