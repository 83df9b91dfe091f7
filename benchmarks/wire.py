"""HTTP requests as bytes, and numbers out of answers. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import BinaryIO

    from benchmarks.workloads import Case

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent again and again."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"

    def to_bytes(self) -> bytes:
        """The whole HTTP/1.1 request."""
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            "Host: localhost",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            f"Content-Length: {len(self.body)}",
        ]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + self.body


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, with the names of its headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def read_answer(stream: BinaryIO) -> Answer:
    """One HTTP/1.1 answer with a Content-Length.

    Raises:
        ValueError: that is not what came.
    """
    status = stream.readline().split(b" ", 2)
    if len(status) < 3:  # noqa: PLR2004 (version, status, reason)
        raise ValueError("no HTTP")
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if "content-length" not in headers:
        raise ValueError("no Content-Length")
    size = int(headers["content-length"])
    body = stream.read(size)
    if len(body) != size:
        raise ValueError("cut short")
    return Answer(int(status[1]), headers, body)


def kserve_binary(case: Case, path: str, name: str) -> Request:
    """KServe v2 with Triton's binary tensors both ways."""
    body = case.body()
    source = _kserve_input(case, name, {"parameters": {"binary_data_size": len(body)}})
    head = _compact({"inputs": [source], "parameters": {"binary_data_output": True}})
    return Request(path, head + body, {HEADER_LENGTH: str(len(head))})


def kserve_json(case: Case, path: str, name: str) -> Request:
    """KServe v2 with a flat list of numbers."""
    body = _compact({"inputs": [_kserve_input(case, name, {"data": case.numbers()})]})
    return Request(path, body, {"Content-Type": "application/json"})


def read_kserve_tensor(case: Case, answer: Answer) -> tuple[float, ...]:
    """The numbers of an answer's first output, binary or JSON."""
    split = int(answer.headers.get(HEADER_LENGTH.lower(), len(answer.body)))
    output = json.loads(answer.body[:split])["outputs"][0]
    size = output.get("parameters", {}).get("binary_data_size")
    return tuple(output["data"]) if size is None else case.read_output(answer.body[split:][:size])


def read_kserve_best(answer: Answer) -> tuple[float, ...]:
    """The first number of the output `index`."""
    outputs = {output["name"]: output for output in json.loads(answer.body)["outputs"]}
    return (outputs["index"]["data"][0],)


def _kserve_input(case: Case, name: str, more: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "shape": case.shape, "datatype": case.source.datatype, **more}


def _compact(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")
