"""Requests and their answers, over a real broker and a real model."""

import asyncio
import base64
import io
import json
import subprocess
import threading
import time

import numpy as np
import pytest
from PIL import Image
from support.daemon import running_daemon
from support.eventually import eventually
from support.mqtt_client import TestClient
from support.workers import paused_workers

from daemon.documents import DocumentThread

pytestmark = pytest.mark.broker

PREDICT = "inferd/box-1/models/fashion/predict"
RESULT = "inferd/box-1/models/fashion/result"

BUSY_S = 60
"""A bound for the test."""

_GOOD_JSON = {
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}]
}


def _json(**members):
    return json.dumps(members).encode()


def _jpeg(png):
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def ask(front_end, connect):
    """Sends one request and gives the answer that comes on the topic named."""
    client = connect()
    client.subscribe("answers/#")
    client.subscribe("inferd/+/models/+/result")

    async def ask(payload, topic=PREDICT, **facts):
        await asyncio.to_thread(client.publish, topic, payload, **facts)
        return await client.anext()

    return ask


async def test_a_jpeg_is_answered_on_the_response_topic_with_its_correlation_data(ask, picture):
    answer = await ask(
        _jpeg(picture),
        response_topic="answers/7",
        correlation=b"\0\xffc",
        content_type="image/jpeg",
    )

    assert answer.topic == "answers/7"
    assert answer.correlation == b"\0\xffc"
    assert answer.content_type == "application/json"
    assert answer.json["model"] == "fashion"
    assert answer.json["classification"][0]["label"] == "bag"


@pytest.mark.parametrize("qos", [0, 1])
async def test_an_answer_has_the_qos_of_its_request(ask, picture, qos):
    assert (await ask(picture, qos=qos, response_topic="answers/q")).qos == qos


async def test_without_a_response_topic_the_answer_goes_to_the_models_result_topic(ask, picture):
    answer = await ask(picture)

    assert answer.topic == RESULT
    assert not answer.retain


async def test_the_answer_is_what_http_says(broker, demo_model, picture):
    async with running_daemon([demo_model], mqtt={"url": broker.url}) as daemon:
        client = TestClient(broker.port)
        client.subscribe("inferd/box-1/availability")
        client.subscribe(RESULT)
        while (await client.anext()).payload != b"online":
            pass
        client.publish(PREDICT, picture)
        by_mqtt = (await client.anext()).json
        client.close()
        by_http = await asyncio.to_thread(
            _post, f"{daemon.url}/api/models/fashion/predict", picture
        )

    for answer in (by_mqtt, by_http):
        assert answer.pop("timing_ms").keys() == {
            "queue",
            "preprocess",
            "invoke",
            "postprocess",
            "total",
        }
        assert answer.pop("id")
    assert by_mqtt == by_http


def _post(url, body):
    import requests  # noqa: PLC0415 (only here)

    return requests.post(url, data=body, timeout=20).json()


async def test_raw_numbers_of_the_inputs_size_are_a_tensor(ask, demo_model):
    pixels = np.asarray(Image.open(demo_model / "samples" / "bag.png").convert("L"))

    answer = await ask(pixels.tobytes(), response_topic="answers/raw")

    (output,) = answer.json["outputs"]
    assert (output["name"], output["shape"]) == ("scores", [1, 10])
    assert np.argmax(output["data"]) == 8


async def test_json_tensors_are_answered_with_their_id(ask):
    answer = await ask(_json(id="i-1", **_GOOD_JSON), response_topic="answers/json")

    assert answer.json["id"] == "i-1"
    assert answer.json["outputs"][0]["shape"] == [1, 10]


async def test_mqtt_3_1_1_asks_by_json_with_id_and_reply_to(front_end, connect):
    client = connect(mqtt5=False)
    client.subscribe("answers/old")

    client.publish(PREDICT, _json(id="7", reply_to="answers/old", **_GOOD_JSON))

    answer = await client.anext()
    assert answer.topic == "answers/old"
    assert answer.json["id"] == "7"
    assert "outputs" in answer.json


async def test_mqtt_3_1_1_front_ends_serve_too(broker, start_front_end, connect, picture):
    await start_front_end(broker, protocol="3.1.1", device_id="old")
    client = connect(mqtt5=False)
    client.subscribe("answers/old")

    client.publish(
        "inferd/old/models/fashion/predict",
        _json(id="a", reply_to="answers/old", data_b64=base64.b64encode(picture).decode()),
    )

    assert (await client.anext()).json["classification"][0]["label"] == "bag"


async def test_a_picture_in_json_may_have_options_beside_it(ask, picture):
    body = _json(
        id="p", reply_to="answers/b64", top_k=1, data_b64=base64.b64encode(picture).decode()
    )

    answer = await ask(body)

    assert answer.topic == "answers/b64"
    assert answer.json["id"] == "p"
    assert [c["label"] for c in answer.json["classification"]] == ["bag"]


async def test_user_properties_are_options_and_unknown_ones_are_ignored(ask, picture):
    answer = await ask(
        picture,
        response_topic="answers/o",
        user=[("Top-K", "2"), ("outputs", "scores"), ("id", "mine"), ("traceparent", "00-1")],
    )

    assert len(answer.json["classification"]) == 2
    assert answer.json["outputs"][0]["name"] == "scores"
    assert answer.json["id"] == "mine"


async def test_the_response_topic_goes_before_reply_to(ask):
    answer = await ask(_json(reply_to="answers/b", **_GOOD_JSON), response_topic="answers/a")

    assert answer.topic == "answers/a"


async def test_names_are_percent_encoded_in_the_topic(broker, connect, demo_model, picture):
    entry = {"path": str(demo_model), "name": "halle 3/süd+ 100%"}
    topic = "inferd/box-1/models/halle 3%2Fsüd%2B 100%25/"
    async with running_daemon([entry], mqtt={"url": broker.url}):
        client = connect()
        client.subscribe("inferd/box-1/availability")
        client.subscribe(topic + "result")
        while (await client.anext()).payload != b"online":
            pass
        client.publish(topic + "predict", picture)

        assert (await client.anext()).json["model"] == "halle 3/süd+ 100%"


HOSTILE = {
    "empty": (b"", {}, "malformed"),
    "broken JSON": (b'{"inputs": [}', {}, "malformed"),
    "JSON cut short": (b'{"inputs": [', {}, "malformed"),
    "JSON of another kind": (b'{"hello": 1}', {}, "malformed"),
    "JSON not UTF-8": (b'{"inputs": "\xff\xfe"}', {}, "malformed"),
    "NaN token": (b'{"inputs": [{"name": "image", "data": [NaN]}]}', {}, "malformed"),
    "deep nesting": (b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, "malformed"),
    "a list": (b"[1, 2, 3]", {}, "malformed"),
    "wrong shape": (
        _json(inputs=[{"name": "image", "datatype": "UINT8", "shape": [1, 2], "data": [1, 2]}]),
        {},
        "bad_tensor",
    ),
    "wrong datatype": (
        _json(inputs=[{"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}]),
        {},
        "bad_tensor",
    ),
    "wrong name": (
        _json(inputs=[{"name": "nobody", "datatype": "UINT8", "shape": [1], "data": [1]}]),
        {},
        "bad_tensor",
    ),
    "value out of range": (
        _json(
            inputs=[
                {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [999] * 784}
            ]
        ),
        {},
        "bad_tensor",
    ),
    "huge shape": (
        _json(inputs=[{"name": "image", "datatype": "UINT8", "shape": [2**62, 28, 28, 1]}]),
        {},
        "bad_tensor",
    ),
    "random bytes": (b"\x01\x02\x03\x04\x05", {}, "unsupported_media"),
    "cut picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, {}, "malformed"),
    "cut JPEG": (b"\xff\xd8\xff\xe0" + b"\0" * 30, {}, "malformed"),
    "b64 that is none": (_json(data_b64="***"), {}, "bad_tensor"),
    "b64 of another type": (_json(data_b64=7), {}, "bad_tensor"),
    "b64 of nothing": (_json(data_b64=""), {}, "malformed"),
    "reply_to of another type": (_json(reply_to=7, **_GOOD_JSON), {}, "malformed"),
    "reply_to empty": (_json(reply_to="", **_GOOD_JSON), {}, "malformed"),
    "reply_to wildcard": (_json(reply_to="a/#", **_GOOD_JSON), {}, "malformed"),
    "reply_to of the broker": (_json(reply_to="$SYS/x", **_GOOD_JSON), {}, "malformed"),
    "reply_to too long": (_json(reply_to="x" * 70_000, **_GOOD_JSON), {}, "malformed"),
    "reply_to a surrogate": (
        b'{"reply_to": "\\ud800", ' + json.dumps(_GOOD_JSON).encode()[1:],
        {},
        "malformed",
    ),
    "reply_to a loop": (_json(reply_to=PREDICT, **_GOOD_JSON), {}, "malformed"),
    "reply_to a loop through any": (
        _json(reply_to="inferd/any/models/fashion/predict", **_GOOD_JSON),
        {},
        "malformed",
    ),
    "response topic a loop": (b"", {"response_topic": PREDICT}, "malformed"),
    "response topic an announcement": (
        b"",
        {"response_topic": "inferd/box-1/availability"},
        "malformed",
    ),
    "top_k of nonsense": (b"", {"user": [("top_k", "many")]}, "malformed"),
    "timeout of nothing": (b"", {"user": [("timeout-ms", "0")]}, "malformed"),
    "threshold not finite": (b"", {"user": [("threshold", "nan")]}, "malformed"),
    "version zero": (b"", {"user": [("version", "0")]}, "malformed"),
    "version and label": (b"", {"user": [("version", "1"), ("label", "x")]}, "malformed"),
    "option of another type": (_json(top_k=[1], **_GOOD_JSON), {}, "malformed"),
    "unknown version": (b"", {"user": [("version", "99")]}, "version_not_found"),
    "unknown label": (b"", {"user": [("label", "canary")]}, "label_not_found"),
    "unknown signature": (b"\0", {"user": [("signature", "train")]}, "signature_not_found"),
    "unknown output": (b"\0" * 784, {"user": [("outputs", "nothing")]}, "bad_tensor"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_bad_request_gets_a_refusal_and_the_next_good_one_an_answer(ask, picture, name):
    payload, facts, code = HOSTILE[name]

    refusal = await ask(payload, **facts)
    answer = await ask(picture)

    assert refusal.topic == RESULT
    assert refusal.json.keys() == {"error", "id"}
    assert refusal.json["error"].keys() == {"code", "message"}
    assert refusal.json["error"]["code"] == code
    assert answer.json["classification"][0]["label"] == "bag"


async def test_an_unknown_model_is_refused_on_its_own_result_topic(ask):
    refusal = await ask(b"x", "inferd/box-1/models/no%2Fbody/predict")

    assert refusal.topic == "inferd/box-1/models/no%2Fbody/result"
    assert refusal.json["error"]["code"] == "model_not_found"
    assert "no/body" in refusal.json["error"]["message"]


async def test_a_picture_bomb_is_refused(ask):
    file = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(file, "PNG")

    refusal = await ask(file.getvalue())

    assert refusal.json["error"]["code"] == "too_large"


async def test_a_payload_over_the_limit_is_refused_with_the_limit(
    broker, start_front_end, connect, picture
):
    await start_front_end(broker, device_id="small", max_payload_mib=1)
    client = connect()
    client.subscribe("answers/x")
    topic = "inferd/small/models/fashion/predict"

    client.publish(topic, b"\0" * (2**20 + 1), response_topic="answers/x", user=[("id", "big")])
    refusal = await client.anext()
    client.publish(topic, picture, response_topic="answers/x")

    assert refusal.json["error"]["code"] == "too_large"
    assert "1048576" in refusal.json["error"]["message"]
    assert refusal.json["id"] == "big"
    assert "classification" in (await client.anext()).json


async def test_retained_requests_are_not_run_at_every_connect(broker, start_front_end, connect):
    client = connect()
    client.subscribe("answers/#")
    client.publish(PREDICT, _json(id="old", **_GOOD_JSON), retain=True, response_topic="answers/r")
    await start_front_end(broker)
    await start_front_end(broker, device_id="box-2", protocol="3.1.1")

    client.publish(PREDICT, _json(id="new", **_GOOD_JSON), response_topic="answers/r")

    assert (await client.anext()).json["id"] == "new"


async def test_a_message_that_expires_bounds_the_deadline_and_its_answer(ask, picture):
    with paused_workers():
        refusal = await ask(picture, response_topic="answers/e", expiry_s=1)
    answer = await ask(picture, response_topic="answers/e", expiry_s=60)

    assert refusal.json["error"]["code"] == "deadline_exceeded"
    assert answer.json["classification"][0]["label"] == "bag"
    assert 55 <= answer.expiry_s <= 60


async def test_a_timeout_bounds_the_deadline(ask, picture):
    with paused_workers():
        refusal = await ask(picture, user=[("timeout-ms", "50")])

    assert refusal.json["error"]["code"] == "deadline_exceeded"
    assert refusal.expiry_s is None


async def test_a_flood_is_refused_at_once_and_those_accepted_are_answered(
    broker, start_front_end, connect, picture
):
    front_end = await start_front_end(broker, max_inflight=2)
    client = connect()
    client.subscribe("answers/flood")
    with paused_workers():
        for number in range(10):
            client.publish(
                PREDICT, picture, qos=0, response_topic="answers/flood", user=[("id", str(number))]
            )
        refused = [(await client.anext()).json for _ in range(6)]
        status = front_end.status()
    answered = [(await client.anext()).json for _ in range(4)]

    assert {answer["error"]["code"] for answer in refused} == {"overloaded"}
    assert [answer["id"] for answer in refused] == ["4", "5", "6", "7", "8", "9"]
    assert (status["requests_running"], status["requests_waiting"]) == (2, 2)
    assert {answer["id"] for answer in answered} == {"0", "1", "2", "3"}


async def test_qos_1_requests_beyond_the_limit_wait_and_none_is_refused(
    broker, start_front_end, connect, picture
):
    front_end = await start_front_end(broker, max_inflight=3)
    client = connect()
    client.subscribe("answers/wait")
    with paused_workers():
        for number in range(12):
            client.publish(
                PREDICT, picture, response_topic="answers/wait", user=[("id", str(number))]
            )
        await eventually(lambda: front_end.status()["requests_running"] == 3)
    answers = [(await client.anext()).json for _ in range(12)]

    assert sorted(int(answer["id"]) for answer in answers) == list(range(12))
    assert [answer for answer in answers if "classification" not in answer] == []


async def test_each_request_is_counted_once(front_end, ask, picture):
    await ask(picture)
    await ask(b"")
    await ask(b"x", "inferd/box-1/models/nobody/predict")

    text = front_end._metrics.render()[0].decode()

    assert (
        'inferd_requests_total{model="fashion",outcome="ok",protocol="mqtt",version=""} 1.0' in text
    )
    assert 'model="fashion",outcome="bad_request",protocol="mqtt",version=""} 1.0' in text
    assert 'model="",outcome="not_found",protocol="mqtt",version=""} 1.0' in text
    assert "inferd_mqtt_connected 1.0" in text


def _run(*command):
    return subprocess.run(command, capture_output=True, check=True, timeout=30)


async def test_mosquitto_rr_gets_an_answer(broker, front_end, picture):
    request = _json(data_b64=base64.b64encode(_jpeg(picture)).decode())
    done = await asyncio.to_thread(
        _run,
        "mosquitto_rr",
        "-V",
        "5",
        "-p",
        str(broker.port),
        "-q",
        "1",
        "-W",
        "20",
        "-t",
        PREDICT,
        "-e",
        "answers/rr",
        "-m",
        request,
    )

    assert json.loads(done.stdout)["classification"][0]["label"] == "bag"


async def test_mosquitto_pub_sends_a_file_and_names_topic_and_correlation(
    broker, front_end, connect, picture, tmp_path
):
    client = connect()
    client.subscribe("answers/pub")
    (tmp_path / "bag.jpg").write_bytes(_jpeg(picture))
    await asyncio.to_thread(
        _run,
        "mosquitto_pub",
        "-V",
        "5",
        "-p",
        str(broker.port),
        "-q",
        "1",
        "-t",
        PREDICT,
        "-f",
        str(tmp_path / "bag.jpg"),
        "-D",
        "publish",
        "response-topic",
        "answers/pub",
        "-D",
        "publish",
        "correlation-data",
        "c-1",
        "-D",
        "publish",
        "content-type",
        "image/jpeg",
    )

    answer = await client.anext()
    assert answer.correlation == b"c-1"
    assert answer.json["classification"][0]["label"] == "bag"


async def test_a_large_document_is_read_in_the_thread_for_them(start_front_end, broker, connect):
    documents = DocumentThread()
    await start_front_end(broker, documents=documents)
    client = connect()
    client.subscribe("answers/#")
    begun, finish = threading.Event(), threading.Event()

    def wait():
        begun.set()
        finish.wait()

    busy = asyncio.create_task(
        documents.run(wait, is_heavy=True, deadline=time.monotonic() + BUSY_S)
    )
    await asyncio.to_thread(begun.wait)
    large = json.dumps({**_GOOD_JSON, "id": "large", "note": "x" * 100_000}).encode()
    small = json.dumps({**_GOOD_JSON, "id": "small"}).encode()
    for payload in (large, small):
        await asyncio.to_thread(client.publish, PREDICT, payload, response_topic="answers/1")
    first = await client.anext()
    finish.set()
    await busy
    second = await client.anext()

    assert [json.loads(answer.payload)["id"] for answer in (first, second)] == ["small", "large"]
