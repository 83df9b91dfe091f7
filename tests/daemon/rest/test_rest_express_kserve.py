"""KServe v2 on the express lane: every answer, refusal and count is the ordinary way's."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import signal
import weakref

import numpy as np
import psutil
import pytest
import pytest_asyncio
from support import tflite_builder
from support.daemon import running_daemon
from support.eventually import eventually
from support.lane import (
    HEADER,
    ask,
    document,
    floats,
    given,
    infer,
    outputs_of,
    receive,
    running_lane,
    unknown,
)
from support.rest import get
from support.workers import paused_workers

from daemon.rest.express import MAX_BODY_BYTES

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODELS = {
    "scale": tflite_builder.scale(),
    "signatures": tflite_builder.two_signatures(),
    "strings": tflite_builder.strings(),
    "where": tflite_builder.where(),
    "gather": tflite_builder.gather(),
    "scalar": tflite_builder.scalar_double(),
    "repeat": tflite_builder.repeat(),
    "free": tflite_builder.repeat(rows=-1),
    "negation": tflite_builder.negation(),
    "total": tflite_builder.total(),
}
ASK = infer()
ONES, THREES = floats(1, 1, 1, 1), floats(3, 3, 3, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, content in MODELS.items():
        (folder / f"{name}.tflite").write_bytes(content)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(folder, demo_model):
    async with running_daemon([*folder.iterdir(), demo_model]) as daemon:
        yield daemon


@pytest_asyncio.fixture(loop_scope="module")
async def lane(daemon):
    async with running_lane(daemon) as lane:
        yield lane


def pair(name):
    return given(name, (2, 2))


def text_block(*elements: bytes) -> bytes:
    return b"".join(len(e).to_bytes(4, "little") + e for e in elements)


def wish(name="y", **parameters):
    return {"name": name, "parameters": parameters}


EXPRESS = {
    "one row": ASK,
    "three rows": infer(bytes(48), document(given(shape=(3, 4), size=48))),
    "nothing but the tensor": infer(ONES, b"", headers={HEADER: "0"}),
    "rank 0": infer(floats(4), document(given(shape=(), size=4)), model="scalar"),
    "two inputs": infer(ONES + THREES, document(pair("a"), pair("b")), model="signatures"),
    "in the other order": infer(ONES + THREES, document(pair("b"), pair("a")), model="signatures"),
    "another signature": infer(
        ONES + THREES,
        {
            "inputs": [pair("a"), pair("b")],
            "parameters": {"signature": "mul", "binary_data_output": True},
        },
        model="signatures",
    ),
    "an output by name": infer(asked={"inputs": [given()], "outputs": [wish(binary_data=True)]}),
    "an id": infer(asked=document(given(), id="caller's \u00e9")),
    "an empty id": infer(asked=document(given(), id="")),
    "a priority": infer(
        asked={"inputs": [given()], "parameters": {"priority": 3, "binary_data_output": True}}
    ),
    "much time": infer(headers={"Inferd-Timeout-Ms": "3600000"}),
    "an index": infer(
        np.int32(2).tobytes(), document(given("index", (1,), "INT32", size=4)), model="gather"
    ),
    "many rows": infer(bytes(MAX_BODY_BYTES), b"", model="total", headers={HEADER: "0"}),
    "a version": ASK.replace(b"/infer", b"/versions/1/infer", 1),
}
ORDINARY = {
    "truths": infer(
        bytes([1, 0, 1, 0, 0, 1]), document(given("x", (6,), "BOOL", size=6)), model="where"
    ),
    "truths as large as numbers": infer(
        bytes([0, 1, 2, 255]), document(given(datatype="BOOL", size=4)), model="negation"
    ),
    "texts": infer(
        text_block(b"a", b"bc"), document(given("a", (1, 2), "BYTES", size=11)), model="strings"
    ),
    "values in the JSON": infer(
        b"", document({"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]})
    ),
    "an answer in JSON": infer(asked={"inputs": [given()]}),
    "classes": infer(asked={"inputs": [given()], "outputs": [wish(classification=2)]}),
    "classes as bytes": infer(
        asked={"inputs": [given()], "outputs": [wish(classification=2, binary_data=True)]}
    ),
    "as many values as the model likes": infer(
        floats(1, 2) + np.array([9, 1], "<i4").tobytes(),
        document(given("x", (1, 2), size=8), given("times", (2,), "INT32", size=8)),
        model="repeat",
    ),
    "long JSON": infer(pad_to=4097),
    "more than a large body": infer(
        bytes(MAX_BODY_BYTES + 256), b"", model="total", headers={HEADER: "0"}
    ),
}


class TestForms:
    @pytest.mark.parametrize("raw", EXPRESS.values(), ids=EXPRESS)
    async def test_numbers_behind_the_json_take_the_lane(self, lane, raw):
        expected = await lane.ask_ordinarily(raw)
        client = await lane.connect()

        answers = [await ask(client, raw) for _ in range(4)]

        assert expected.status == 200
        assert answers == [expected] * 4
        assert lane.ordinary == 2

    @pytest.mark.parametrize("raw", ORDINARY.values(), ids=ORDINARY)
    async def test_everything_else_does_not(self, lane, raw):
        expected = await lane.ask_ordinarily(raw)
        client = await lane.connect()

        answers = [await ask(client, raw) for _ in range(3)]

        assert expected.status == 200
        assert answers == [expected] * 3
        assert lane.ordinary == 4
        # That is remembered too, so that nothing is decoded twice.
        plans = [plan for plan, _ in lane.network.heads._plans.values()]
        assert all(list(plan._calls.values()) in ([], [None]) for plan in plans)

    async def test_an_answer_may_have_another_shape_each_time(self, lane):
        asked = document(given("x", (1, 2), size=8), given("times", (2,), "INT32", size=8))
        raw = [
            infer(floats(1, 2) + np.array([n, 1], "<i4").tobytes(), asked, model="free")
            for n in (1, 3, 3, 2)
        ]
        expected = [await lane.ask_ordinarily(request) for request in raw]
        await lane.teach(raw[0])
        client = await lane.connect()

        answers = [await ask(client, request) for request in raw]

        assert answers == expected
        assert len({len(answer.body) for answer in answers}) == 3
        assert lane.ordinary == 5

    async def test_texts_are_not_even_looked_at(self, lane):
        asked = document(given("a", (1, 2), "BYTES", size=11))
        good = infer(text_block(b"a", b"bc"), asked, model="strings")
        bad = infer(b"\xff" * 11, asked, model="strings")
        await lane.teach(good)
        client = await lane.connect()

        assert await ask(client, bad) == await lane.ask_ordinarily(bad)

        (plan,) = [plan for plan, _ in lane.network.heads._plans.values()]
        assert list(plan._calls.values()) == [None]

    @pytest.mark.parametrize("wanted", [True, False])
    async def test_details_are_always_those_of_this_request(self, lane, wanted):
        parameters = {"inferd_details": wanted, "binary_data_output": True}
        raw = infer(asked={"inputs": [given()], "parameters": parameters})
        client = await lane.connect()

        answers = [await ask(client, raw) for _ in range(3)]

        assert all((b"invoke_ms" in answer.body) is wanted for answer in answers)
        assert lane.ordinary == 3

    async def test_a_picture_does_not(self, lane, demo_model):
        picture = (demo_model / "samples" / "sneaker.png").read_bytes()
        name = lane.target("fashion").profile.input.name
        asked = document(given(name, (1,), "BYTES", size=len(picture)))
        raw = infer(picture, asked, model="fashion")
        client = await lane.connect()

        first, *later = [await ask(client, raw) for _ in range(3)]

        assert first.status == 200
        assert later == [first] * 2
        assert lane.ordinary == 3

    async def test_each_request_gets_its_own_id_back(self, lane):
        client = await lane.connect()
        names = [f"id-{number:03}" for number in range(20)]

        answers = [await ask(client, infer(asked=document(given(), id=name))) for name in names]

        assert all(
            f'"id":"{name}"'.encode() in answer.body
            for name, answer in zip(names, answers, strict=True)
        )
        assert lane.ordinary == 1

    async def test_requests_of_several_clients_share_invocations(self, lane):
        await lane.teach(ASK)
        counters = lane.target().counters
        before = counters.executions
        clients = [await lane.connect() for _ in range(8)]
        with paused_workers():
            for number, client in enumerate(clients):
                await client.send(infer(floats(number, 0, 0, 0)))
            await eventually(lambda: lane.target().gate.pending == 8)

        answers = [await receive(client) for client in clients]

        assert [row[0] for row in outputs_of(answers)] == [2 * n for n in range(8)]
        assert counters.executions - before < 8
        assert lane.ordinary == 1


PAD = 320
KNOWN = infer(pad_to=PAD)
INVALID = {
    "another shape": document(given(shape=(2, 2))),
    "no rows": document(given(shape=(0, 4), size=16)),
    "another rank": document(given(shape=(4,))),
    "another name": document(given("y")),
    "another datatype": document(given(datatype="INT32")),
    "no datatype": document(given(datatype="FP99")),
    "fewer bytes": document(given(size=12)),
    "more bytes": document(given(size=20)),
    "no bytes": document(given(size=0)),
    "negative bytes": document(given(size=-16)),
    "an input twice": document(given(size=8), given(size=8)),
    "an input too many": document(given(), given("z", size=0)),
    "no inputs": {"inputs": []},
    "inputs of another kind": {"inputs": 3},
    "an unknown output": {"inputs": [given()], "outputs": [wish("z", binary_data=True)]},
    "an unknown signature": document(given(), parameters={"signature": "nobody"}),
    "a sequence": document(given(), parameters={"sequence_id": 3}),
    "shared memory": document({**given(), "parameters": {"shared_memory_region": "r"}}),
    "an id of another kind": document(given(), id=3),
    "a list": b"[]",
    "nothing": b"",
    "a text": b'"inputs"',
    "cut JSON": json.dumps(document(given())).encode()[:-1],
    "not UTF-8": b'{"inputs": "\xff"}',
    "deep JSON": b"[" * PAD,
    "NUL": b"\0" * PAD,
}
VALID = {
    "an id": document(given(), id="7"),
    "named outputs": {"inputs": [given()], "outputs": [wish(binary_data=True)]},
    "JSON outputs": {"inputs": [given()]},
    "classes": {"inputs": [given()], "outputs": [wish(classification=3)]},
    "other members": document(given(), nothing={"of": ["interest"]}),
    "keys twice": b'{"inputs": [], ' + json.dumps(document(given())).encode()[1:],
}


class TestOtherJsonUnderAKnownHead:
    @pytest.mark.parametrize("asked", [*VALID.values(), *INVALID.values()], ids=[*VALID, *INVALID])
    async def test_is_answered_for_what_it_says(self, lane, asked):
        first = await lane.teach(KNOWN)
        other = infer(asked=asked, pad_to=PAD)
        assert other[: other.index(b"\r\n\r\n")] == KNOWN[: KNOWN.index(b"\r\n\r\n")]
        expected = await lane.ask_ordinarily(other)
        client = await lane.connect()

        answers = [await ask(client, raw) for raw in (KNOWN, other, KNOWN, other, KNOWN)]

        assert answers == [first, expected, first, expected, first]
        assert (expected.status == 200) is (asked in VALID.values())

    async def test_is_remembered_up_to_a_bound(self, lane):
        client = await lane.connect()
        for number in range(50):
            await ask(client, infer(asked=document(given(), id=f"{number:03}")))
            await ask(client, infer(asked=document(given(), parameters={"a": number}), pad_to=PAD))

        for plan, _ in lane.network.heads._plans.values():
            assert 0 < len(plan._calls) <= 4
            assert not any(
                call.decoded.inputs or call.decoded.parameters
                for call in plan._calls.values()
                if call
            )

    async def test_random_bytes_in_place_of_json_break_nothing(self, lane):
        await lane.teach(KNOWN)
        client = await lane.connect()
        noise = np.random.default_rng(0)

        for _ in range(50):
            raw = infer(asked=noise.bytes(PAD), pad_to=PAD)
            assert (await ask(client, raw)).status == 400
        assert lane.target().gate.pending == 0

    async def test_any_numbers_are_tensors(self, lane):
        await lane.teach(ASK)
        client = await lane.connect()
        noise = np.random.default_rng(1)

        for _ in range(50):
            raw = infer(noise.bytes(16))
            assert await ask(client, raw) == await lane.ask_ordinarily(raw)


class TestRefusals:
    async def test_a_full_queue_refuses_and_counts_as_ordinarily(self, folder):
        async with (
            running_daemon([folder / "scale.tflite"], defaults={"queue": 1}) as daemon,
            running_lane(daemon) as lane,
        ):
            first = await lane.teach(ASK)
            holder, client = await lane.connect(), await lane.connect()
            with paused_workers():
                await holder.send(ASK)
                await eventually(lambda: lane.target().gate.pending == 1)
                counts = []
                answers = []
                for raw in (ASK, unknown(ASK)):
                    before = lane.counts()
                    answers.append(await ask(client, raw))
                    counts.append(_difference(before, lane.counts()))

            assert answers[0] == answers[1]
            assert answers[0].status == 503
            assert any(line.startswith("Retry-After: ") for line in answers[0].headers)
            assert counts[0] == counts[1]
            assert sorted(counts[0].values()) == [1, 1]  # a request that ended, a rejection
            assert await receive(holder) == first
            assert await ask(client, ASK) == first

    @pytest.mark.parametrize("by", ["header", "parameter"])
    async def test_a_passed_deadline_is_told_and_counted_as_ordinarily(self, lane, by):
        parameters = {"binary_data_output": True}
        if by == "parameter":
            parameters["timeout"] = 150_000
        headers = {"Inferd-Timeout-Ms": "150"} if by == "header" else {}
        raw = infer(asked={"inputs": [given()], "parameters": parameters}, headers=headers)
        first = await lane.teach(raw)
        client = await lane.connect()
        target = lane.target()
        with paused_workers():
            counts = []
            answers = []
            for request in (raw, unknown(raw)):
                before = lane.counts()
                answers.append(await ask(client, request))
                counts.append(_difference(before, lane.counts()))
        assert target.gate.pending == 0

        assert answers[0] == answers[1]
        assert answers[0].status == 504
        assert counts[0] == counts[1]
        assert lane.requests("deadline") == 2
        assert lane.ordinary == 2
        await eventually(lambda: target.dispatcher._running == set())
        assert await _eventually_ok(lane, raw) == first

    async def test_a_model_that_fails_on_its_input_says_so_as_ordinarily(self, lane):
        asked = document(given("index", (1,), "INT32", size=4))
        good, bad = (infer(np.int32(n).tobytes(), asked, model="gather") for n in (1, 100))
        first = await lane.teach(good)
        client = await lane.connect()
        before = lane.counts()

        answers = [await ask(client, raw) for raw in (bad, bad, good)]
        express = _difference(before, lane.counts())
        before = lane.counts()
        ordinary = [await ask(client, unknown(raw)) for raw in (bad, bad, good)]

        assert answers == ordinary
        assert [answer.status for answer in answers] == [500, 500, 200]
        assert answers[2] == first
        assert express == _difference(before, lane.counts())
        assert lane.ordinary == 4

    async def test_a_worker_that_is_killed_costs_answers_and_nothing_else(self, folder):
        async with (
            running_daemon([folder / "scale.tflite"], defaults={"instances": 2}) as daemon,
            running_lane(daemon) as lane,
        ):
            first = await lane.teach(ASK)
            killed = 0

            async def load():
                client = await lane.connect()
                return [await ask(client, ASK) for _ in range(150)]

            async def kill():
                nonlocal killed
                served = daemon.registry._models["scale"].default
                for _ in range(3):
                    before = lane.target().counters.successes
                    await eventually(
                        lambda before=before: lane.target().counters.successes > before + 50
                    )
                    for pid in served.pids:
                        psutil.Process(pid).send_signal(signal.SIGKILL)
                        killed += 1

            *answers, _ = await asyncio.gather(*(load() for _ in range(8)), kill())
            found = list(itertools.chain(*answers))

            assert killed >= 3
            assert {answer.status for answer in found} <= {200, 500, 503}
            good = [answer for answer in found if answer.status == 200]
            assert good == [first] * len(good)
            assert len(good) > len(found) / 2
            assert lane.target().gate.pending == 0
            assert lane.requests("ok") == len(good) + 1
            assert sum(map(lane.requests, ("failed", "unavailable"))) == len(found) - len(good)
            assert await _eventually_ok(lane, ASK) == first


async def _eventually_ok(lane, raw):
    """The answer, once the worker is back at work."""
    answer = await lane.ask(raw)
    while answer.status in {503, 504}:
        answer = await lane.ask(raw)
    return answer


def _difference(before, after):
    names = before.keys() | after.keys()
    changed = {name: after.get(name, 0) - before.get(name, 0) for name in names}
    return {name: value for name, value in changed.items() if value}


class TestVersions:
    @pytest_asyncio.fixture(loop_scope="module")
    async def tree(self, tmp_path):
        """A model in version 1, which answers with double."""
        path = tmp_path / "tree"
        self._put(path, 1)
        # The dispatcher's timer keeps what it serves for as long as a request may take.
        async with (
            running_daemon([path], defaults={"timeout_ms": 1000}) as daemon,
            running_lane(daemon) as lane,
        ):
            yield lane, path

    @staticmethod
    def _put(path, version):
        half_done = path.parent / "half-done"
        half_done.mkdir()
        (half_done / "model.tflite").write_bytes(tflite_builder.scale(2.0 * version))
        path.mkdir(exist_ok=True)
        half_done.rename(path / str(version))

    async def _answers_by(self, lane, version):
        await eventually(lambda: lane.target("tree").version == version)

    async def test_a_new_version_answers_at_once_and_in_its_name(self, tree):
        lane, path = tree
        raw = infer(model="tree")
        client = await lane.connect()
        old = [await ask(client, raw) for _ in range(2)]
        self._put(path, 2)
        await self._answers_by(lane, 2)

        new = [await ask(client, raw) for _ in range(2)]

        assert outputs_of(old + new) == [[2, 4, 6, 8]] * 2 + [[4, 8, 12, 16]] * 2
        assert all(b'"model_version":"2"' in answer.body for answer in new)
        assert new == [await lane.ask_ordinarily(raw)] * 2
        assert lane.ordinary == 2

    async def test_a_swap_under_load_loses_nothing(self, tree):
        lane, path = tree
        raw = infer(model="tree")
        await lane.teach(raw)
        ended = asyncio.Event()

        async def load():
            client = await lane.connect()
            found = []
            while not ended.is_set():
                found.append(await ask(client, raw))
            return [*found, await ask(client, raw)]

        async def swap():
            self._put(path, 2)
            await self._answers_by(lane, 2)
            ended.set()

        *answers, _ = await asyncio.gather(*(load() for _ in range(4)), swap())

        for found in answers:
            versions = [b'"model_version":"2"' in answer.body for answer in found]
            assert versions == sorted(versions)
            assert versions[-1]
            assert {answer.status for answer in found} == {200}
        assert lane.ordinary == 1

    async def test_a_version_that_is_gone_is_refused_by_name_and_let_go(self, tree):
        lane, path = tree
        model = lane.daemon.registry._models["tree"]
        raw = infer(model="tree")
        by_number = raw.replace(b"/infer", b"/versions/2/infer", 1)
        client = await lane.connect()
        self._put(path, 2)  # not the first one, which the collector never looks at
        await self._answers_by(lane, 2)
        for request in (raw, raw, by_number, by_number):
            assert (await ask(client, request)).status == 200
        old = weakref.ref(model.default)
        self._put(path, 3)
        await self._answers_by(lane, 3)
        await eventually(lambda: not model.retiring)

        answers = [await ask(client, request) for request in (by_number, raw)]

        assert answers[0] == await lane.ask_ordinarily(by_number)
        assert [answer.status for answer in answers] == [404, 200]
        await eventually(lambda: _is_dead(old))

    async def test_a_model_that_was_unloaded_is_refused_and_one_loaded_again_is_not(self, tree):
        lane, _ = tree
        raw = infer(model="tree")
        client = await lane.connect()
        first = [await ask(client, raw) for _ in range(2)]
        await lane.daemon.service.unload("tree")

        refused = await ask(client, raw)
        assert refused == await lane.ask_ordinarily(raw)
        assert refused.status == 503

        await lane.daemon.service.load("tree")
        assert [await ask(client, raw) for _ in range(2)] == first
        assert lane.ordinary == 3


def _is_dead(reference):
    gc.collect()
    return reference() is None


class TestCounts:
    async def test_are_those_of_the_ordinary_way(self, lane):
        await lane.teach(ASK)
        client = await lane.connect()
        before = lane.counts()
        for _ in range(3):
            await ask(client, ASK)
        express = _difference(before, lane.counts())
        before = lane.counts()
        for _ in range(3):
            await ask(client, unknown(ASK))
        ordinary = _difference(before, lane.counts())

        assert express == ordinary
        assert set(express.values()) == {3}
        assert {name.partition(" ")[0] for name in express} == {
            "inferd_requests_total",
            "inferd_request_duration_seconds_count",
            "inferd_stage_duration_seconds_count",
            "inferd_batch_size_count",
        }
        assert lane.ordinary == 4

    async def test_of_the_statistics_are_those_of_the_ordinary_way(self, lane):
        await lane.teach(ASK)
        client = await lane.connect()
        found = [await self._statistics(lane)]
        for make in (bytes, unknown):
            for _ in range(3):
                await ask(client, make(ASK))
            found.append(await self._statistics(lane))

        express, ordinary = (
            {name: after[name] - before[name] for name in after}
            for before, after in itertools.pairwise(found)
        )

        assert express == ordinary
        assert (express["inference_count"], express["success"]) == (3, 3)

    @staticmethod
    async def _statistics(lane):
        answer = await lane.server.ask(get("/v2/models/scale/versions/1/stats"))
        (entry,) = answer.document["model_stats"]
        stats = {name: value["count"] for name, value in entry["inference_stats"].items()}
        return {
            **stats,
            "inference_count": entry["inference_count"],
            "execution_count": entry["execution_count"],
        }

    async def test_durations_lie_within_what_passed(self, lane):
        await lane.teach(ASK)
        counters = lane.target().counters
        before = _seconds(counters)
        began = asyncio.get_running_loop().time()
        client = await lane.connect()
        for _ in range(20):
            await ask(client, ASK)
        passed_s = asyncio.get_running_loop().time() - began

        after = _seconds(counters)
        parts = [now - then for now, then in zip(after[1:], before[1:], strict=True)]
        total_s = after[0] - before[0]

        assert 0 < total_s <= passed_s
        assert all(part > 0 for part in parts)
        assert sum(parts) == pytest.approx(total_s)


def _seconds(counters):
    return (
        counters.success_s,
        counters.queue_s,
        counters.input_s,
        counters.infer_s,
        counters.output_s,
    )
