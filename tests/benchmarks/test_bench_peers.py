"""What every server is sent, and which answers count as right."""

from __future__ import annotations

import base64
import io
import json

import pytest
from support.bench_cases import make_case

from benchmarks.peers.echo import Echo
from benchmarks.peers.inferd import Inferd
from benchmarks.peers.litserve import LitServe
from benchmarks.peers.mlserver import MLServer
from benchmarks.peers.triton import Triton, make_config
from benchmarks.wire import Answer, read_answer
from benchmarks.workloads import Form


@pytest.fixture
def picture(tmp_path):
    file = tmp_path / "cat.jpg"
    file.write_bytes(b"\xff\xd8 a picture")
    return file


def kserve(output: dict[str, object], raw: bytes = b"") -> Answer:
    head = json.dumps({"outputs": [output]}).encode()
    headers = {"inference-header-content-length": str(len(head))} if raw else {}
    return Answer(200, headers, head + raw)


def test_inferd_and_triton_are_sent_the_same_tensor():
    case = make_case(rows=2)

    ours, theirs = Inferd().request(case), Triton().request(case)

    size = len(case.body())
    assert ours.body[-size:] == theirs.body[-size:] == case.body()
    assert ours.headers.keys() == theirs.headers.keys()


def test_binary_request_says_how_long_its_header_is():
    case = make_case(rows=3)

    request = Inferd().request(case)

    head = json.loads(request.body[: int(request.headers["Inference-Header-Content-Length"])])
    assert head["inputs"][0] == {
        "name": "x",
        "shape": [3, 4],
        "datatype": "INT8",
        "parameters": {"binary_data_size": 12},
    }


def test_json_has_the_numbers_of_the_binary_body():
    case = make_case(Form.JSON)

    (source,) = json.loads(Inferd().request(case).body)["inputs"]

    assert bytes(number % 256 for number in source["data"]) == case.body()


def test_echo_is_sent_what_inferd_is_sent():
    case = make_case()

    assert Echo().request(case).body == Inferd().request(case).body


def test_mlserver_is_sent_the_bytes_in_base64():
    case = make_case()

    (source,) = json.loads(MLServer().request(case).body)["inputs"]

    assert base64.b64decode(source["data"][0]) == case.body()


def test_triton_is_sent_a_file_as_one_element_with_its_length(picture):
    case = make_case(Form.JPEG, file=picture)

    request = Triton().request(case)

    split = int(request.headers["Inference-Header-Content-Length"])
    element = request.body[split:]
    assert int.from_bytes(element[:4], "little") == len(element) - 4
    assert element[4:] == picture.read_bytes()


@pytest.mark.parametrize(
    ("contender", "answer"),
    [
        (Inferd(), kserve({"name": "y", "parameters": {"binary_data_size": 2}}, b"\x01\x02")),
        (Triton(), kserve({"name": "y", "data": [1, 2]})),
        (LitServe(), Answer(200, {}, b"\x01\x02")),
        (MLServer(), kserve({"name": "y", "data": [base64.b64encode(b"\x01\x02").decode()]})),
    ],
)
def test_the_raw_runtimes_numbers_are_right(contender, answer):
    assert contender.is_right(make_case(), answer)


@pytest.mark.parametrize(
    ("contender", "answer"),
    [
        (Inferd(), kserve({"name": "y", "parameters": {"binary_data_size": 2}}, b"\x01\x03")),
        (Triton(), kserve({"name": "y", "data": [1]})),
        (LitServe(), Answer(200, {}, b"\x01\x02\x03")),
        (MLServer(), kserve({"name": "y", "data": [base64.b64encode(b"\x02\x01").decode()]})),
        (Echo(), Answer(200, {}, b"\x01\x02")),
    ],
)
def test_other_numbers_are_wrong(contender, answer):
    assert not contender.is_right(make_case(), answer)


@pytest.mark.parametrize(
    ("contender", "document"),
    [
        (Inferd(), {"classification": [{"index": 7}, {"index": 1}]}),
        (Inferd(), {"detection": [{"index": 7}]}),
        (LitServe(), {"index": [7, 1]}),
        (Triton(), {"outputs": [{"name": "score"}, {"name": "index", "data": [7, 1]}]}),
        (MLServer(), {"outputs": [{"name": "index", "data": [7, 1]}]}),
    ],
)
def test_of_a_file_the_best_class_must_be_right(contender, document, picture):
    answer = Answer(200, {}, json.dumps(document).encode())

    assert contender.is_right(make_case(Form.JPEG, file=picture), answer)


def test_triton_gets_the_models_own_shapes():
    config = make_config(make_case())

    assert 'input [{ name: "input", data_type: TYPE_INT8, dims: [-1, 4] }]' in config
    assert 'output [{ name: "output", data_type: TYPE_UINT8, dims: [-1, 2] }]' in config


def test_an_answer_is_read_to_its_content_length():
    stream = io.BytesIO(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Y: z\r\n\r\nabcd")

    assert read_answer(stream) == Answer(200, {"content-length": "2", "x-y": "z"}, b"ab")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"220 mail ready\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab",
    ],
)
def test_what_is_no_whole_answer_is_refused(raw):
    with pytest.raises(ValueError, match=r"HTTP|Content-Length|cut short"):
        read_answer(io.BytesIO(raw))
