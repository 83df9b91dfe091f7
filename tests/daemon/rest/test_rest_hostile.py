"""Bad input to the native API: each gets a clear JSON refusal, and the next good request works."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from support import tflite_builder
from support.daemon_thread import daemon_in_thread
from support.rest import Answer, Client, get, head, post

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo" / "fashion"
SNEAKER = (DEMO / "samples" / "sneaker.png").read_bytes()
FASHION = "/api/models/fashion/predict"
PAIR = "/api/models/pair/predict"
STRINGS = "/api/models/strings/predict"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (28, 28)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def tensors(*given: dict[str, object], **more: object) -> bytes:
    return json.dumps({"inputs": list(given), **more}).encode()


def pair_input(name: str = "a", **changes: object) -> dict[str, object]:
    return {"name": name, "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4], **changes}


GOOD_PAIR = tensors(pair_input("a"), pair_input("b"))

BAD_JSON = {
    "cut": GOOD_PAIR[:-2],
    "trailing bytes": GOOD_PAIR + b"}",
    "list": b"[1, 2]",
    "string": b'"inputs"',
    "null": b"null",
    "no inputs": b"{}",
    "inputs a number": b'{"inputs": 1}',
    "inputs of numbers": b'{"inputs": [1]}',
    "input without name": b'{"inputs": [{"shape": [1]}]}',
    "nan token": GOOD_PAIR.replace(b"[1, 2, 3, 4]", b"[NaN, 2, 3, 4]"),
    "infinity token": GOOD_PAIR.replace(b"[1, 2, 3, 4]", b"[1, 2, 3, -Infinity]"),
    "not utf-8": GOOD_PAIR.replace(b'"a"', b'"\xff\xfe"'),
    "utf-16": GOOD_PAIR.decode().encode("utf-16"),
    "deep lists": b'{"inputs": ' + b"[" * 100_000,
    "deep balanced": b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep objects": b'{"a":' * 100_000,
    "nul byte": GOOD_PAIR + b"\0",
    "single quotes": b"{'inputs': []}",
    "huge number": GOOD_PAIR.replace(b"[1, 2, 3, 4]", b"[1e999999, 2, 3, 4]"),
}

BAD_TENSORS = {
    "missing input": tensors(pair_input("a")),
    "extra input": tensors(pair_input("a"), pair_input("b"), pair_input("c")),
    "doubled input": tensors(pair_input("a"), pair_input("a")),
    "unknown name": tensors(pair_input("a"), pair_input("z")),
    "wrong rank": tensors(pair_input("a", shape=[4]), pair_input("b")),
    "wrong shape": tensors(pair_input("a", shape=[2, 3]), pair_input("b")),
    "negative shape": tensors(pair_input("a", shape=[-2, -2]), pair_input("b")),
    "huge shape": tensors(pair_input("a", shape=[2**40, 2**40]), pair_input("b")),
    "shape of floats": tensors(pair_input("a", shape=[2.0, 2.0]), pair_input("b")),
    "shape a string": tensors(pair_input("a", shape="[2, 2]"), pair_input("b")),
    "wrong datatype": tensors(pair_input("a", datatype="INT8"), pair_input("b")),
    "unknown datatype": tensors(pair_input("a", datatype="QUBIT"), pair_input("b")),
    "datatype a number": tensors(pair_input("a", datatype=5), pair_input("b")),
    "too few values": tensors(pair_input("a", data=[1]), pair_input("b")),
    "too many values": tensors(pair_input("a", data=[1] * 5), pair_input("b")),
    "text for numbers": tensors(pair_input("a", data=["1", "2", "3", "4"]), pair_input("b")),
    "null for numbers": tensors(pair_input("a", data=[None] * 4), pair_input("b")),
    "object for numbers": tensors(pair_input("a", data=[{}] * 4), pair_input("b")),
    "data an object": tensors(pair_input("a", data={}), pair_input("b")),
    "ragged": tensors(pair_input("a", data=[[1, 2, 3], [4]]), pair_input("b")),
    "too large": tensors(pair_input("a", data=[1e300] * 4), pair_input("b")),
    "unknown output": tensors(pair_input("a"), pair_input("b"), outputs=[{"name": "z"}]),
    "no data": tensors({"name": "a", "shape": [2, 2], "datatype": "FP32"}, pair_input("b")),
    "binary that is not there": tensors(
        {
            "name": "a",
            "shape": [2, 2],
            "datatype": "FP32",
            "parameters": {"binary_data_size": 16},
        },
        pair_input("b"),
    ),
}

BAD_MEDIA = {
    "text": b"hello",
    "zeros": bytes(1000),
    "truncated jpeg": picture("JPEG", size=(200, 200))[:300],
    "jpeg head only": b"\xff\xd8\xff\xe0",
    "truncated png": SNEAKER[: len(SNEAKER) // 2],
    "png head only": SNEAKER[:8],
    "png of nothing": png_of(0, 0),
    "picture bomb": png_of(60_000, 60_000),
    "wav": b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + bytes(28),
    "tiff": b"II*\0" + bytes(100),
    "pdf": b"%PDF-1.7 ...",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "gif of nothing": b"GIF89a" + bytes(7),
    "bmp of nothing": b"BM" + bytes(60),
}

BAD_FORMS = {
    "no boundary": (b"x", {"Content-Type": "multipart/form-data"}),
    "other boundary": (b"--c\r\n\r\nx\r\n--c--", FORM),
    "no file": (b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\nx\r\n--b--', FORM),
    "cut": (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + SNEAKER, FORM),
    "a thousand parts": (b"--b\r\n\r\nx\r\n" * 1000 + b"--b--", FORM),
}

BAD_QUERIES = {
    "unknown": "topk=3",
    "doubled": "top_k=3&top_k=4",
    "not a number": "top_k=many",
    "too large": "top_k=10001",
    "nan": "threshold=nan",
    "empty label": "label=",
    "semicolons": "top_k=3;threshold=1",
    "not utf-8": "label=%ff%fe",
    "nul": "%00=%00",
    "many": "&".join(f"outputs=o{number}" for number in range(300)),
}

BAD_PATHS = {
    "unknown model": ("/api/models/nobody/predict", 404),
    "encoded slash": ("/api/models/a%2Fb/predict", 404),
    "colon": ("/api/models/fashion:predict/predict", 404),
    "dots": ("/api/models/..%2f..%2fetc%2fpasswd/predict", 404),
    "nul": ("/api/models/%00/predict", 404),
    "not utf-8": ("/api/models/%ff%fe/predict", 404),
    "long": ("/api/models/" + "m" * 4000 + "/predict", 404),
    "broken percent": ("/api/models/%zz/predict", 404),
    "empty": ("/api/models//predict", 404),
    "unknown version": ("/api/models/fashion/versions/99/predict", 404),
    "version 0": ("/api/models/fashion/versions/0/predict", 400),
    "version text": ("/api/models/fashion/versions/latest/predict", 400),
    "version beyond int64": ("/api/models/fashion/versions/9223372036854775808/predict", 400),
    "unknown label": ("/api/models/fashion/predict?label=gold", 404),
}

BAD_CODINGS = {
    "not gzip": (SNEAKER, "gzip", 400),
    "cut gzip": (gzip.compress(SNEAKER)[:-4], "gzip", 400),
    "gzip twice": (gzip.compress(SNEAKER), "gzip, gzip", 415),
    "not deflate": (SNEAKER, "deflate", 400),
    "brotli": (SNEAKER, "br", 415),
    "gzip bomb": (gzip.compress(bytes(50 * 1024 * 1024)), "gzip", 413),
}


MIB = 1024 * 1024
HEAVY_JSON = {
    "lists": b'{"inputs": [' + b"[]," * (MIB - 20) + b"[]]}",
    "objects": b'{"inputs": [' + b"{}," * (MIB - 20) + b"{}]}",
    "members": b"{" + b'"a":1,' * (MIB // 2) + b'"inputs": []}',
    "numbers": b'{"inputs": [' + b"1," * (2 * MIB - 20) + b"1]}",
    "numbers and nan": b'{"instances": [' + b"1," * (2 * MIB - 20) + b"NaN]}",
}
"""What is parsed nowhere: it would keep everybody waiting."""
HEAVY_YET_TAKEN_UP = {
    "long numbers": b'{"instances": [' + (b"1" * 299 + b",") * 13_000 + b"NaN]}",
    "too long numbers": b'{"instances": [' + (b"1" * 4000 + b",") * 1000 + b"NaN]}",
    "many lists": b'{"inputs": [' + b"[]," * 290_000 + b"[]]}",
    "many numbers": b'{"inputs": [' + b"1.5," * 1_000_000 + b"1]}",
    "many escapes": b'{"inputs": "' + rb"\u00e9" * 600_000 + b'"}',
}
JSON_PATHS = (PAIR, "/v1/models/pair:predict", "/v1/models/pair:classify", "/v2/models/pair/infer")


def parameters(table: dict[str, object]) -> list[object]:
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), id=name)
        for name, value in table.items()
    ]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A daemon that serves a picture, a tensor and a string model."""
    root = tmp_path_factory.mktemp("models")
    models = {
        "pair": tflite_builder.two_signatures(),
        "strings": tflite_builder.strings(),
        "scalar": tflite_builder.scalar_double(),
    }
    for name, content in models.items():
        (root / f"{name}.tflite").write_bytes(content)
    served = [DEMO, *(root / f"{name}.tflite" for name in models)]
    http = {"max_body_mib": 4, "body_timeout_s": 0.3, "header_timeout_s": 0.3}
    with daemon_in_thread(served, http=http) as daemon:
        yield daemon.url


async def refused(url: str, raw_request: bytes) -> Answer:
    """Its refusal, once a good request after it was answered on the same connection."""
    client = await Client.open(url)
    refusal = await client.ask(raw_request)
    if refusal.headers.get("connection") == "close":
        await client.close()
        client = await Client.open(url)
    good = await client.ask(post(FASHION, SNEAKER))
    await client.close()

    assert good.status == 200, good.body
    assert good.document["classification"][0]["label"] == "sneaker"
    assert refusal.error.strip()
    assert "Traceback" not in refusal.error
    return refusal


@pytest.mark.parametrize("body", parameters(BAD_JSON))
async def test_bad_json_is_malformed(url, body) -> None:
    answer = await refused(url, post(PAIR, body, headers=JSON))

    assert answer.status in {400, 422}


@pytest.mark.parametrize("body", parameters(BAD_JSON))
async def test_bad_json_without_its_type_is_refused_too(url, body) -> None:
    answer = await refused(url, post(PAIR, body))

    assert answer.status in {400, 422}


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("body", parameters(HEAVY_JSON))
async def test_json_that_would_keep_everybody_waiting_is_too_large(url, path, body) -> None:
    answer = await refused(url, post(path, body, headers=JSON))

    assert answer.status == 413
    assert "binary" in answer.error


@pytest.mark.parametrize("path", JSON_PATHS)
@pytest.mark.parametrize("body", parameters(HEAVY_YET_TAKEN_UP))
async def test_heavy_json_that_is_parsed_is_refused_for_what_it_is(url, path, body) -> None:
    answer = await refused(url, post(path, body, headers=JSON))

    assert answer.status in {400, 422}


@pytest.mark.parametrize("body", parameters(BAD_TENSORS))
async def test_bad_tensors_are_refused(url, body) -> None:
    answer = await refused(url, post(PAIR, body, headers=JSON))

    assert answer.status in {400, 422}


@pytest.mark.parametrize("body", parameters(BAD_MEDIA))
@pytest.mark.parametrize("kind", ["image/jpeg", "application/octet-stream"])
async def test_bad_pictures_are_refused(url, body, kind) -> None:
    answer = await refused(url, post(FASHION, body, headers={"Content-Type": kind}))

    assert answer.status in {400, 413, 415, 422}


async def test_a_picture_bomb_is_too_large(url) -> None:
    answer = await refused(url, post(FASHION, png_of(60_000, 60_000)))

    assert (answer.status, answer.document["unit"]) == (413, "pixels")


async def test_a_picture_for_a_tensor_model_is_unsupported(url) -> None:
    answer = await refused(url, post(PAIR, SNEAKER))

    assert answer.status == 415


@pytest.mark.parametrize(("body", "headers"), parameters(BAD_FORMS))
async def test_bad_forms_are_malformed(url, body, headers) -> None:
    answer = await refused(url, post(FASHION, body, headers=headers))

    assert answer.status == 400


@pytest.mark.parametrize("query", parameters(BAD_QUERIES))
async def test_bad_queries_are_refused(url, query) -> None:
    answer = await refused(url, post(f"{FASHION}?{query}", SNEAKER))

    assert answer.status in {400, 404}


@pytest.mark.parametrize(("path", "status"), parameters(BAD_PATHS))
async def test_bad_paths_are_refused(url, path, status) -> None:
    answer = await refused(url, post(path, SNEAKER))

    assert answer.status == status


@pytest.mark.parametrize(("body", "coding", "status"), parameters(BAD_CODINGS))
async def test_bad_codings_are_refused(url, body, coding, status) -> None:
    answer = await refused(url, post(FASHION, body, headers={"Content-Encoding": coding}))

    assert answer.status == status


async def test_an_empty_body_is_malformed(url) -> None:
    answer = await refused(url, post(FASHION, b""))

    assert answer.status == 400


async def test_a_string_without_a_dimension_is_refused(url) -> None:
    body = tensors({"name": "a", "shape": [], "datatype": "BYTES", "data": ["x"]})

    answer = await refused(url, post(STRINGS, body))

    assert answer.status == 422


async def test_two_gigabytes_are_refused_at_once(url) -> None:
    answer = await refused(url, head("POST", FASHION, {"Content-Length": str(2 * 1024**3)}))

    assert answer.status == 413


async def test_a_body_that_drips_is_refused(url) -> None:
    answer = await refused(url, head("POST", FASHION, {"Content-Length": "1000"}) + b"slow")

    assert answer.status == 408


async def test_a_head_that_drips_ends_the_connection(url) -> None:
    client = await Client.open(url)
    await client.send(b"POST /api/models/fashion/predict HTTP/1.1\r\nHost: ")

    assert await client.is_closed_by_server()
    await client.close()
    good = await Client.open(url)
    assert (await good.ask(get("/healthz"))).status == 200
    await good.close()


@pytest.mark.parametrize("mode", ["CMYK", "L"])
async def test_a_jpeg_in_any_colours_is_answered(url, mode) -> None:
    client = await Client.open(url)

    answer = await client.ask(post(FASHION, picture("JPEG", mode)))
    await client.close()

    assert answer.status == 200


async def test_a_chunked_picture_is_answered(url) -> None:
    request = head("POST", FASHION, {"Transfer-Encoding": "chunked"})
    half = len(SNEAKER) // 2
    client = await Client.open(url)

    for chunk in (SNEAKER[:half], SNEAKER[half:], b""):
        request += b"%x\r\n%b\r\n" % (len(chunk), chunk)
    answer = await client.ask(request)
    await client.close()

    assert answer.document["classification"][0]["label"] == "sneaker"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_compressed_picture_is_answered(url, coding) -> None:
    packed = gzip.compress(SNEAKER) if coding == "gzip" else zlib.compress(SNEAKER)
    client = await Client.open(url)

    answer = await client.ask(post(FASHION, packed, headers={"Content-Encoding": coding}))
    await client.close()

    assert answer.document["classification"][0]["label"] == "sneaker"
