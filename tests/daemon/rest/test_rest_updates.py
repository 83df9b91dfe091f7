"""What the updater may ask of the daemon: real releases in a real store, over the unix socket."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest
from support import tflite_builder
from support.daemon import running_daemon
from support.eventually import eventually
from support.mosquitto import running_broker
from support.mqtt_client import TestClient
from support.shortage import few_descriptors
from support.updaterpeer import Peer, answering

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DIGEST = "a1" * 32


class Box:
    """A daemon with a store, and what the updater would do to it."""

    def __init__(self, root: Path, http: aiohttp.ClientSession, network_url: str) -> None:
        self.root = root
        self.http = http
        self.network_url = network_url

    def release(self, model: str, digest: str, source: Path | bytes, tables: str = "") -> Path:
        folder = self.root / "var/lib/inferd/store" / model / digest
        folder.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            shutil.copytree(source, folder)
        else:
            folder.mkdir()
            (folder / "model.tflite").write_bytes(source)
        if tables:
            (folder / "model.toml").write_text(tables)
        return folder

    def point(self, model: str, digest: str) -> None:
        link = self.root / "var/lib/inferd/models" / model / "current"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(Path("../../store") / model / digest)

    async def post(self, path: str, document: object) -> tuple[int, dict[str, Any]]:
        async with self.http.post(f"http://box{path}", json=document) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        async with self.http.get(f"http://box{path}") as response:
            return response.status, await response.json()


@asynccontextmanager
async def a_box(**tables: Any) -> AsyncIterator[Box]:
    # A unix socket's path may have 107 characters, which pytest's folders exceed.
    tables = {"models": {"folders": ["var/lib/inferd/models"]}, **tables}
    async with running_daemon([], **tables) as daemon:
        socket_path = next(a for a in daemon.addresses if a.startswith("unix:"))[5:]
        connector = aiohttp.UnixConnector(socket_path)
        async with aiohttp.ClientSession(connector=connector) as http:
            yield Box(daemon.root, http, daemon.url)


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    async with a_box() as box:
        yield box


async def probe(box: Box, folder: Path) -> dict[str, Any]:
    status, verdict = await box.post("/api/updates/probe", {"path": str(folder)})
    assert status == 200, verdict
    return verdict


async def test_a_release_that_knows_its_samples_is_found_good(box, demo_model):
    verdict = await probe(box, box.release("fashion", DIGEST, demo_model))

    assert verdict["ok"], verdict["reasons"]
    assert (verdict["model"], verdict["version"], verdict["samples"]) == ("fashion", 1, 3)
    assert verdict["latency_ms"] > 0
    assert verdict["memory_bytes"] > 0


async def test_a_probe_leaves_nothing_that_is_served_or_counted(box, demo_model):
    await probe(box, box.release("fashion", DIGEST, demo_model))

    assert (await box.get("/api/models"))[1] == {"models": []}
    async with box.http.get("http://box/metrics") as response:
        assert "fashion" not in await response.text()


async def test_wrong_answers_are_told_with_what_was_expected(box, demo_model):
    folder = box.release("fashion", DIGEST, demo_model)
    tables = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(tables.replace('label = "bag"', 'label = "trouser"'))

    verdict = await probe(box, folder)

    assert not verdict["ok"]
    assert "samples/bag.png" in verdict["reasons"][0]
    assert "expected 'trouser'" in verdict["reasons"][0]
    assert "'bag'" in verdict["reasons"][0]


async def test_a_tensor_is_compared_within_its_tolerance(box):
    tables = """
        [[health.samples]]
        input = "x.npy"
        outputs = { y = "y.npy" }
        tolerance = 0.5
    """
    folder = box.release("double", DIGEST, tflite_builder.scale(2.0, batch=1), tables)
    given = np.arange(4, dtype=np.float32).reshape(1, 4)
    np.save(folder / "x.npy", given)
    np.save(folder / "y.npy", given * 2 + 0.4)
    assert (await probe(box, folder))["ok"]

    np.save(folder / "y.npy", given * 2 + 0.6)

    assert "differs by 0.6" in (await probe(box, folder))["reasons"][0]


async def test_a_release_without_samples_must_answer_zeros_at_least(box):
    assert (await probe(box, box.release("double", DIGEST, tflite_builder.scale(2.0))))["ok"]


async def test_answers_that_are_no_numbers_are_refused(box):
    verdict = await probe(box, box.release("nan", DIGEST, tflite_builder.scale(float("nan"))))

    assert "NaN or infinity" in verdict["reasons"][0]


async def test_a_model_that_hangs_is_ended_and_refused(box):
    tables = "[limits]\ntimeout_ms = 300\n"
    model = tflite_builder.hangs_while_at_most(0.0)

    verdict = await probe(box, box.release("hangs", DIGEST, model, tables))

    assert not verdict["ok"]


async def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason(box):
    verdict = await probe(box, box.release("junk", DIGEST, b"TFL3 this is no model"))

    assert not verdict["ok"]
    assert verdict["reasons"][0]


async def test_limits_of_latency_and_memory_are_kept(box):
    tables = "[health]\nmax_latency_ms = 0.000001\nmax_memory_mib = 1\n"
    verdict = await probe(box, box.release("hog", DIGEST, tflite_builder.hog(8), tables))

    assert any("allowed are 1e-06 ms" in reason for reason in verdict["reasons"])
    assert any("allowed are 1 MiB" in reason for reason in verdict["reasons"])


@pytest.mark.parametrize("sample", ["missing.png", "../outside.png", "model.toml"])
async def test_a_sample_that_cannot_be_read_is_refused(box, demo_model, sample):
    folder = box.release("fashion", DIGEST, demo_model)
    (folder.parent / "outside.png").write_bytes((demo_model / "samples/bag.png").read_bytes())
    (folder / "model.toml").write_text(f'[[health.samples]]\ninput = "{sample}"\nlabel = "bag"\n')

    verdict = await probe(box, folder)

    assert not verdict["ok"]
    assert sample in verdict["reasons"][0]


@pytest.mark.parametrize("path", ["/etc", "nothing", "../..", "", 5, None])
async def test_only_folders_of_the_store_are_probed(box, path):
    status, answer = await box.post("/api/updates/probe", {"path": path})

    assert status == 400
    assert "'path'" in answer["error"]


async def test_a_link_out_of_the_store_is_not_followed(box, demo_model):
    box.release("fashion", DIGEST, demo_model)
    link = box.root / "var/lib/inferd/store/fashion/link"
    link.symlink_to(demo_model)

    assert (await box.post("/api/updates/probe", {"path": str(link)}))[0] == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/updates/probe"),
        ("POST", "/api/updates/activate"),
        ("POST", "/api/updates/events"),
        ("PUT", "/api/updates"),
    ],
)
async def test_nobody_comes_here_by_the_network(box, method, path):
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, box.network_url + path, json={}) as response,
    ):
        assert response.status == 403
        assert "unix socket" in (await response.json())["error"]


async def test_what_the_link_points_to_is_served_when_the_updater_says_so(box, demo_model):
    box.release("fashion", DIGEST, demo_model)
    box.point("fashion", DIGEST)

    status, traffic = await box.post("/api/updates/activate", {"model": "fashion"})

    assert (status, traffic["version"], traffic["release"]) == (200, 1, DIGEST)


async def test_another_release_under_the_same_name_takes_over_and_back(box, demo_model):
    tables = (demo_model / "model.toml").read_text()
    newer = "b2" * 32
    box.release("fashion", DIGEST, demo_model)
    second = box.release("fashion", newer, demo_model)
    (second / "model.toml").write_text(tables.replace("version = 1", "version = 2"))
    served = []
    for digest in (DIGEST, newer, DIGEST):
        box.point("fashion", digest)
        _, traffic = await box.post("/api/updates/activate", {"model": "fashion"})
        served.append((traffic["version"], traffic["release"]))

    assert served == [(1, DIGEST), (2, newer), (1, DIGEST)]


async def test_activating_what_is_not_there_is_refused(box):
    assert (await box.post("/api/updates/activate", {"model": "nobody"}))[0] == 404
    assert (await box.post("/api/updates/activate", {}))[0] == 400


async def test_traffic_counts_what_a_version_answered_and_how_fast(box, demo_model):
    box.release("fashion", DIGEST, demo_model)
    box.point("fashion", DIGEST)
    await box.post("/api/updates/activate", {"model": "fashion"})
    picture = (demo_model / "samples/bag.png").read_bytes()
    for _ in range(5):
        async with box.http.post("http://box/api/models/fashion/predict", data=picture) as answer:
            assert answer.status == 200

    _, traffic = await box.get("/api/models/fashion/traffic")

    assert (traffic["answered"], traffic["faults"], traffic["not_finite"]) == (5, 0, 0)
    assert 0 < traffic["latency_ms"]["p50"] <= traffic["latency_ms"]["p95"]


async def test_answers_that_are_no_numbers_show_in_the_traffic(box):
    box.release("nan", DIGEST, tflite_builder.scale(float("nan"), batch=1))
    box.point("nan", DIGEST)
    await box.post("/api/updates/activate", {"model": "nan"})
    document = {
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    }
    async with box.http.post("http://box/v2/models/nan/infer", json=document) as answer:
        assert answer.status == 200, await answer.text()

    assert (await box.get("/api/models/nan/traffic"))[1]["not_finite"] == 1


async def test_what_the_updater_says_is_repeated_everywhere(box):
    said = {
        "models": [{"model": "fashion", "state": "DOWNLOADING", "version": 2, "progress": 0.5}],
        "counts": [{"model": "fashion", "outcome": "committed", "count": 1}],
        "expires": {"timestamp": 1.8e9},
    }
    async with box.http.put("http://box/api/updates", json=said) as response:
        assert response.status == 200

    _, status = await box.get("/api/status")
    assert status["updates"]["enabled"]
    assert status["updates"]["models"][0]["state"] == "DOWNLOADING"
    async with box.http.get("http://box/metrics") as response:
        text = await response.text()
    assert 'inferd_update_state{model="fashion",state="DOWNLOADING"} 1.0' in text
    assert 'inferd_updates_total{model="fashion",outcome="committed"} 1.0' in text


@pytest.mark.parametrize(
    "document",
    [
        {"models": 5},
        {"models": [{"model": "", "state": "IDLE"}]},
        {"models": [{"state": "X"}]},
        {"models": [{"model": "m", "state": "IDLE"}, {"model": "m", "state": "TRYING"}]},
        {"counts": [{"model": "m", "outcome": "committed", "count": n} for n in (1, 2)]},
        [],
    ],
)
async def test_a_report_that_is_none_is_refused_and_changes_nothing(box, document):
    async with box.http.put("http://box/api/updates", json=document) as response:
        assert response.status == 400

    assert (await box.get("/api/updates"))[1] == {"enabled": False}


async def test_wishes_for_the_updater_are_refused_while_it_does_not_run(box):
    status, answer = await box.post("/api/updates/refresh", {})

    assert status == 503
    assert "inferd-updater" in answer["error"]


@pytest.fixture
async def updater(box) -> AsyncIterator[Peer]:
    """Somebody at the updater's socket."""
    peer = Peer()
    async with answering(box.root / "run/inferd/updater.sock", peer.answer):
        yield peer


async def test_a_wish_to_look_reaches_the_updater(box, updater):
    assert await box.post("/api/updates/refresh", {}) == (202, {"in_s": 0.0})
    assert updater.asked == [("refresh", {"origin": "http"})]


async def test_a_model_that_cannot_be_served_can_be_rolled_back(box, updater):
    box.release("double", DIGEST, b"TFL3 this is no model")
    box.point("double", DIGEST)
    assert (await box.post("/api/updates/activate", {"model": "double"}))[0] == 503
    updater.document = {"model": "double", "version": 1}

    answer = await box.post("/api/models/double/rollback", {})

    assert answer == (202, {"model": "double", "version": 1})
    assert updater.asked == [("rollback", {"model": "double"})]


async def test_a_rollback_that_the_updater_refuses_is_refused_in_its_words(
    box, updater, demo_model
):
    box.release("fashion", DIGEST, demo_model)
    box.point("fashion", DIGEST)
    await box.post("/api/updates/activate", {"model": "fashion"})
    updater.status, updater.document = 409, {"error": "there is no release before it"}

    answer = await box.post("/api/models/fashion/rollback", {})

    assert answer == (409, {"error": "there is no release before it"})


async def test_a_model_that_nobody_knows_is_not_rolled_back(box, updater):
    assert (await box.post("/api/models/nobody/rollback", {}))[0] == 404
    assert updater.asked == []


EVENTS = {"events": [{"sequence": 3, "time": 1.76e9, "event": {"event": "committed"}}]}


async def test_events_are_not_taken_while_mqtt_is_off(box):
    status, answer = await box.post("/api/updates/events", EVENTS)

    assert status == 503
    assert "mqtt.url" in answer["error"]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"events": []},
        {"events": 5},
        {"events": [{"sequence": 0, "time": 1.0, "event": {}}]},
        {"events": [{"sequence": 1, "event": {}}]},
        {"events": [{"sequence": 1, "time": "now", "event": {}}]},
        {"events": [{"sequence": 1, "time": 1.0, "event": []}]},
        {"events": [{"sequence": n, "time": 1.0, "event": {}} for n in (2, 1)]},
        {"events": [{"sequence": n, "time": 1.0, "event": {}} for n in (1, 1)]},
        {"events": [{"sequence": n, "time": 1.0, "event": {}} for n in range(1, 102)]},
    ],
)
async def test_what_are_no_events_is_refused(box, document):
    assert (await box.post("/api/updates/events", document))[0] == 400


@pytest.mark.broker
async def test_events_leave_by_mqtt_and_hints_come_in(tmp_path):
    with running_broker(tmp_path) as broker:
        async with a_box(mqtt={"url": broker.url}) as box:
            peer = Peer()
            async with answering(box.root / "run/inferd/updater.sock", peer.answer):
                client = TestClient(broker.port)
                client.subscribe("inferd/box-1/updates")

                taken = await box.post("/api/updates/events", EVENTS)
                message = await client.anext()
                client.publish("inferd/any/updates/refresh")
                await eventually(lambda: peer.asked)
                client.close()

    assert taken == (200, {"taken": 3})
    assert message.json == {
        "device": "box-1",
        "sequence": 3,
        "time": 1.76e9,
        "event": "committed",
    }
    assert peer.asked == [("refresh", {"origin": "mqtt"})]


ENOUGH_TO_LOOK = 5
"""Descriptors: a worker takes more."""


async def test_a_release_for_which_no_worker_is_to_be_had_is_not_called_bad(box, demo_model):
    folder = box.release("fashion", DIGEST, demo_model)
    await probe(box, folder)  # from here on there is a connection

    with few_descriptors(ENOUGH_TO_LOOK):
        status, answer = await box.post("/api/updates/probe", {"path": str(folder)})

    assert (status, answer["model"]) == (503, "fashion")
    assert (await probe(box, folder))["ok"]


async def test_a_release_that_lacks_a_worker_is_not_said_to_be_refused(box, demo_model):
    newer = "b2" * 32
    tables = (demo_model / "model.toml").read_text()
    box.release("fashion", DIGEST, demo_model)
    second = box.release("fashion", newer, demo_model)
    (second / "model.toml").write_text(tables.replace("version = 1", "version = 2"))
    box.point("fashion", DIGEST)
    await box.post("/api/updates/activate", {"model": "fashion"})
    box.point("fashion", newer)

    with few_descriptors(ENOUGH_TO_LOOK):
        async with box.http.post(
            "http://box/api/updates/activate", json={"model": "fashion"}
        ) as answer:
            during = answer.status, "Retry-After" in answer.headers
        _, serving = await box.get("/api/models/fashion/traffic")
    _, after = await box.post("/api/updates/activate", {"model": "fashion"})

    assert during == (503, True)
    assert serving["release"] == DIGEST
    assert after["release"] == newer
