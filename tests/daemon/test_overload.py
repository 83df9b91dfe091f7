"""More than a model can do: the accepted are answered, the rest refused at once, health lives."""

from __future__ import annotations

import asyncio

import aiohttp
from support.daemon import running_daemon

QUEUE = 4
ROUNDS = 5
CLIENTS = 64


async def ask_all(http, url, picture):
    """Every client asks at the same moment; gives (status, headers, body) of each."""

    async def ask():
        async with http.post(f"{url}/api/models/fashion/predict", data=picture) as answer:
            return answer.status, answer.headers, await answer.json()

    return await asyncio.gather(*(ask() for _ in range(CLIENTS)))


async def test_too_many_requests_are_refused_with_a_time_to_come_back_and_the_rest_answered(
    demo_model,
):
    picture = (demo_model / "samples" / "bag.png").read_bytes()
    connector = aiohttp.TCPConnector(limit=CLIENTS)
    async with (
        running_daemon([demo_model], defaults={"queue": QUEUE}) as daemon,
        aiohttp.ClientSession(connector=connector) as http,
    ):
        answers = [a for _ in range(ROUNDS) for a in await ask_all(http, daemon.url, picture)]
        async with http.get(f"{daemon.url}/healthz") as health:
            assert health.status == 200
        async with http.get(f"{daemon.url}/metrics") as metrics:
            counted = await metrics.text()

    good = [body for status, _, body in answers if status == 200]
    refused = [(headers, body) for status, headers, body in answers if status == 503]
    assert len(good) + len(refused) == ROUNDS * CLIENTS
    assert len(good) >= ROUNDS * QUEUE
    assert {body["classification"][0]["label"] for body in good} == {"bag"}
    assert refused
    assert all(int(headers["Retry-After"]) >= 1 for headers, _ in refused)
    assert all("queue is full" in body["error"] for _, body in refused)
    line = f'inferd_queue_rejections_total{{model="fashion",reason="queue_full"}} {len(refused)}.0'
    assert line in counted


async def test_a_request_that_would_wait_past_its_deadline_is_told_so(demo_model):
    picture = (demo_model / "samples" / "bag.png").read_bytes()
    async with running_daemon([demo_model]) as daemon, aiohttp.ClientSession() as http:
        headers = {"Inferd-Timeout-Ms": "1"}
        url = f"{daemon.url}/api/models/fashion/predict"

        async def ask():
            async with http.post(url, data=picture, headers=headers) as answer:
                return answer.status, await answer.json()

        answers = await asyncio.gather(*(ask() for _ in range(CLIENTS)))

    late = [(status, body["error"]) for status, body in answers if status != 200]
    assert late
    assert all(status in (503, 504) and "deadline" in error for status, error in late)
