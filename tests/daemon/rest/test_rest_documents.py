"""Large documents and answers: read and written off the loop, counted, sent as they are taken."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager

import numpy as np
import pytest
from aiohttp import web
from support import tflite_builder
from support.daemon import running_daemon
from support.eventually import eventually
from support.rest import ANSWER_TIMEOUT_S, Client, get, head, post, running_server

from daemon.rest.answers import json_bytes_response

MIB = 1024 * 1024
NATIVE = "/api/models/scale/predict"
KSERVE = "/v2/models/scale/infer"
TFSERVING = "/v1/models/scale:predict"
RAW = {"Content-Type": "application/octet-stream"}
RAW_KSERVE = {"Inference-Header-Content-Length": "0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "scale.tflite"
    path.write_bytes(tflite_builder.scale())
    return path


@pytest.fixture
async def service(model):
    async with running_daemon([model]) as daemon:
        yield daemon.service


@asynccontextmanager
async def busy_thread(server):
    """While it lasts, the thread for large documents is busy with another one."""
    begun, finish = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        finish.wait()

    deadline = asyncio.get_running_loop().time() + 60
    busy = asyncio.create_task(server.context.documents.run(wait, is_heavy=True, deadline=deadline))
    await asyncio.to_thread(begun.wait)
    try:
        yield
    finally:
        finish.set()
        await busy


def tensor(rows: int) -> bytes:
    data = [0.5] * (4 * rows)
    given = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": data}
    return json.dumps({"inputs": [given]}).encode()


def instances(rows: int) -> bytes:
    return json.dumps({"instances": [[0.5] * 4] * rows}).encode()


LIGHT = {
    "native": (NATIVE, tensor(1), {}),
    "kserve": (KSERVE, tensor(1), {}),
    "tfserving": (TFSERVING, instances(1), {}),
    "raw": (NATIVE, bytes(16 * 1000), RAW),
    "raw kserve": (KSERVE, bytes(16 * 100_000), RAW_KSERVE),
}
HEAVY = {
    "native": (NATIVE, tensor(5000), {}),
    "kserve": (KSERVE, tensor(5000), {}),
    "tfserving": (TFSERVING, instances(5000), {}),
    "tfserving examples": ("/v1/models/scale:classify", instances(5000), {}),
    "answer of native": (NATIVE, bytes(16 * 20_000), RAW),
}


def cases(table):
    return pytest.mark.parametrize(
        ("path", "body", "headers"), [pytest.param(*case, id=name) for name, case in table.items()]
    )


@cases(HEAVY)
async def test_a_large_document_waits_for_its_turn_in_the_one_thread(service, path, body, headers):
    async with running_server(service=service) as server:
        client = await server.connect()
        async with busy_thread(server):
            await client.send(post(path, body, headers={**headers, "Inferd-Timeout-Ms": "60000"}))
            await server.ask(get("/healthz"))
            late = await server.ask(
                post(path, body, headers={**headers, "Inferd-Timeout-Ms": "50"})
            )
        answer = await client.receive()

    assert late.status == 504
    assert answer.status == (400 if "classify" in path else 200)


@cases(LIGHT)
async def test_a_small_document_is_not_held_up_by_large_ones(service, path, body, headers):
    async with running_server(service=service) as server, busy_thread(server):
        answer = await server.ask(post(path, body, headers=headers))

    assert answer.status == 200


async def test_a_large_repository_request_is_read_in_the_thread(service):
    body = json.dumps({"parameters": {"file:1/model.tflite": "A" * 100_000}}).encode()
    async with running_server(service=service) as server:
        client = await server.connect()
        async with busy_thread(server):
            await client.send(post("/v2/repository/models/scale/load", body))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.reader.read(1), 0.2)
        answer = await client.receive()

    assert answer.status == 403


async def test_an_answer_too_large_for_json_is_refused_with_the_way_out(service):
    async with running_server(service=service) as server:
        answer = await server.ask(post(NATIVE, bytes(16 * 1_000_001), headers=RAW))

    assert answer.status == 413
    assert "binary" in answer.error


async def test_a_large_answer_arrives_whole(service):
    numbers = np.random.default_rng(1).random((600_000, 4), np.float32)
    async with running_server(service=service) as server:
        answer = await server.ask(post(KSERVE, numbers.tobytes(), headers=RAW_KSERVE))

    head_bytes = int(answer.headers["inference-header-content-length"])
    received = np.frombuffer(answer.body[head_bytes:], np.float32).reshape(numbers.shape)
    np.testing.assert_array_equal(received, numbers * 2)


async def test_answers_that_nobody_takes_share_the_budget_until_they_are_taken(service):
    body = bytes(20 * MIB)
    async with running_server(service=service, max_body_mib=20) as server:
        bodies = server.context.bodies
        clients = [await server.connect() for _ in range(4)]
        for client in clients:
            client.writer.transport.pause_reading()
            await client.send(post(KSERVE, body, headers=RAW_KSERVE))
        await eventually(lambda: bodies.used_bytes >= 4 * (19 * MIB))

        refused = await server.ask(post(KSERVE, body, headers=RAW_KSERVE))
        small = await server.ask(post(KSERVE, bytes(16), headers=RAW_KSERVE))
        for client in clients:
            client.writer.transport.resume_reading()
        answers = [await client.receive() for client in clients]
        await eventually(lambda: bodies.used_bytes == 0)

    assert (refused.status, small.status) == (503, 200)
    assert refused.headers["retry-after"]
    assert {answer.status for answer in answers} == {200}


async def test_an_answer_that_finds_no_room_is_refused_and_what_it_held_given_back(service):
    body = np.random.default_rng(1).random(MIB // 4, np.float32).tobytes()  # 2.5 MiB as JSON
    async with running_server(service=service, max_body_mib=1) as server:
        bodies = server.context.bodies
        answer = await server.ask(post(NATIVE, body, headers=RAW))
        await eventually(lambda: bodies.used_bytes == 0)
        bodies.used_bytes = almost_all = bodies.limit_bytes - MIB

        refused = await server.ask(post(NATIVE, body, headers=RAW))

        assert answer.status == 200
        assert refused.status == 503
        assert "answers" in refused.error
        assert bodies.used_bytes == almost_all


async def test_a_client_that_leaves_gives_back_what_its_answer_held(service):
    async with running_server(service=service) as server:
        bodies = server.context.bodies
        client = await server.connect()
        client.writer.transport.pause_reading()
        await client.send(post(KSERVE, bytes(20 * MIB), headers=RAW_KSERVE))
        await eventually(lambda: bodies.used_bytes > 19 * MIB)

        client.writer.transport.abort()

        await eventually(lambda: bodies.used_bytes == 0)


async def test_the_answer_to_head_is_a_head_whatever_the_size() -> None:
    response = json_bytes_response(bytes(MIB))
    async with running_application(response) as url:
        client = await Client.open(url)
        await client.send(head("HEAD", "/", {"Connection": "close"}))
        raw = await asyncio.wait_for(client.reader.read(), ANSWER_TIMEOUT_S)
        await client.close()

    assert f"Content-Length: {MIB}".encode() in raw
    assert raw.endswith(b"\r\n\r\n")


@asynccontextmanager
async def running_application(response):
    """A server whose only answer is this one."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        return response

    application = web.Application()
    application.router.add_get("/", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield "http://{}:{}".format(*runner.addresses[0])
    await runner.cleanup()
