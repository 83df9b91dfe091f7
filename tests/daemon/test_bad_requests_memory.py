"""Ten thousand bad requests of every kind leave the daemon as it was: same process, same memory."""

from __future__ import annotations

import gzip
import http.client
import json
import struct
from contextlib import closing

import psutil
import pytest
from support.daemon import daemon_process, free_port, wait_settled

TRIES = 10_000
WARM_TRIES = 2_000
"""Caches fill up during the first ones."""
MAX_GROWTH_MIB = 8
"""Less than a kilobyte a request, which is what one forgotten object of each would take."""

pytestmark = pytest.mark.timeout(300)

INFER = "/v2/models/fashion/infer"
PREDICT = "/v1/models/fashion:predict"
NATIVE = "/api/models/fashion/predict"


def tensor(**changes):
    facts = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}
    return json.dumps({"inputs": [{**facts, **changes}]}).encode()


def png_of(width, height):
    """The head of a PNG that claims this size, and no more."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(
        ">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0
    )


BAD = {
    "malformed json": ("POST", INFER, b'{"inputs": [', {}),
    "deep json": ("POST", INFER, b"[" * 100_000, {}),
    "not utf-8": ("POST", INFER, b'{"inputs": "\xff\xfe"}', {}),
    "nan token": ("POST", INFER, tensor(data=[1]).replace(b"[1]", b"[NaN]"), {}),
    "wrong shape": ("POST", INFER, tensor(shape=[1, 28, 29, 1]), {}),
    "wrong datatype": ("POST", INFER, tensor(datatype="FP32"), {}),
    "unknown datatype": ("POST", INFER, tensor(datatype="QUBIT"), {}),
    "negative shape": ("POST", INFER, tensor(shape=[-1, 28, 28, 1]), {}),
    "too few numbers": ("POST", INFER, tensor(data=[0]), {}),
    "out of range": ("POST", INFER, tensor(data=[256] * 784), {}),
    "extra input": ("POST", INFER, tensor(name="other"), {}),
    "no input": ("POST", INFER, b'{"inputs": []}', {}),
    "short binary": ("POST", INFER, tensor(parameters={"binary_data_size": 784}), {}),
    "header length": ("POST", INFER, b"{}", {"Inference-Header-Content-Length": "9999"}),
    "header length text": ("POST", INFER, b"{}", {"Inference-Header-Content-Length": "-1"}),
    "wrong gzip": ("POST", INFER, b"not gzip", {"Content-Encoding": "gzip"}),
    "cut gzip": ("POST", INFER, gzip.compress(tensor())[:-9], {"Content-Encoding": "gzip"}),
    "unknown encoding": ("POST", INFER, b"{}", {"Content-Encoding": "rot13"}),
    "row json": ("POST", PREDICT, b'{"instances": [[1], [1, 2]]}', {}),
    "row mixed": ("POST", PREDICT, b'{"instances": [1, "a", {"b": 2}]}', {}),
    "no keys": ("POST", PREDICT, b"{}", {}),
    "not an object": ("POST", PREDICT, b"[]", {}),
    "unknown signature": ("POST", PREDICT, b'{"signature_name": "x", "inputs": 1}', {}),
    "unknown model": ("POST", "/v1/models/nobody:predict", b"{}", {}),
    "unknown version": ("POST", "/v1/models/fashion/versions/99:predict", b"{}", {}),
    "unknown label": ("POST", "/v1/models/fashion/labels/x:predict", b"{}", {}),
    "odd name": ("POST", "/api/models/a%2Fb%3Ac/predict", b"x", {}),
    "picture bomb": ("POST", NATIVE, png_of(100_000, 100_000), {}),
    "truncated picture": ("POST", NATIVE, png_of(28, 28), {}),
    "no picture": ("POST", NATIVE, b"\x00" * 100, {}),
    "empty": ("POST", NATIVE, b"", {}),
    "bad timeout": ("POST", NATIVE, b"x", {"Inferd-Timeout-Ms": "soon"}),
    "bad multipart": ("POST", NATIVE, b"x", {"Content-Type": "multipart/form-data"}),
    "wrong method": ("PUT", NATIVE, b"x", {}),
    "unknown path": ("GET", "/nothing/here", b"", {}),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, demo_model):
    root = tmp_path_factory.mktemp("bad")
    with daemon_process([demo_model], root=root, port=free_port()) as running:
        wait_settled(running.url)
        yield running


class Client:
    """One connection that is opened again whenever the daemon closed it."""

    def __init__(self, daemon):
        self._port = int(daemon.url.rsplit(":", 1)[1])
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)

    def send(self, method, path, body, headers):
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            content = answer.read()
        except (http.client.RemoteDisconnected, ConnectionError):
            self._connection.close()
            return self.send(method, path, body, headers)
        return answer.status, content

    def close(self):
        self._connection.close()


@pytest.fixture
def client(daemon):
    with closing(Client(daemon)) as opened:
        yield opened


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_gets_an_error_in_json_that_says_what_was_expected(client, kind):
    status, content = client.send(*BAD[kind])

    assert 400 <= status < 500
    assert len(json.loads(content)["error"]) > 5


def test_ten_thousand_bad_requests_leave_the_same_process_and_the_same_memory(
    daemon, client, demo_model
):
    process = psutil.Process(daemon.process.pid)
    workers = process.children(recursive=True)
    kinds = list(BAD.values())
    for number in range(WARM_TRIES):
        client.send(*kinds[number % len(kinds)])
    before = process.memory_info().rss
    files = process.num_fds()

    for number in range(TRIES):
        client.send(*kinds[number % len(kinds)])

    grown_mib = (process.memory_info().rss - before) / 2**20
    assert grown_mib < MAX_GROWTH_MIB
    assert process.children(recursive=True) == workers
    assert process.num_fds() <= files + 4
    picture = (demo_model / "samples" / "bag.png").read_bytes()
    status, content = client.send("POST", NATIVE, picture, {})
    assert (status, json.loads(content)["classification"][0]["label"]) == (200, "bag")
