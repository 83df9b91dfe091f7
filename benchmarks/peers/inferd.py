"""inferd itself, started as its unit starts it: over HTTP, its unix socket and MQTT."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.lanes import INFERD, INFERD_THREAD
from benchmarks.processes import Command
from benchmarks.programs import program
from benchmarks.wire import Request, kserve_binary, kserve_json, read_kserve_tensor
from benchmarks.workloads import FILE_FORMS, Form
from daemon.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.wire import Answer
    from benchmarks.workloads import Case, Workload

DEVICE = "bench"
_CONTENT_TYPES = {Form.JPEG: "image/jpeg", Form.WAV: "audio/wav"}


@dataclass(frozen=True, slots=True)
class Inferd:
    """A daemon with one model.

    Attributes:
        isolation: "process" or "thread".
        broker_port: of an MQTT broker on loopback; 0 for none.
    """

    isolation: str = "process"
    broker_port: int = 0

    @property
    def name(self) -> str:
        """Process isolation, the default, needs no words."""
        return INFERD if self.isolation == "process" else INFERD_THREAD

    def prepare(self) -> str:
        """It is this repository."""
        return VERSION

    def command(self, case: Case, folder: Path, port: int) -> Command:
        """`inferd --config`, with its sockets and state in the folder."""
        workload = case.workload
        tables: dict[str, dict[str, object]] = {
            "paths": {"root": str(folder)},
            "http": {"listen": [f"127.0.0.1:{port}"]},
            "device": {"id": DEVICE},
            "models": {"folders": []},
            "defaults": {"isolation": self.isolation, "instances": workload.instances},
            "logs": {"level": "warning"},
        }
        if self.broker_port:
            tables["mqtt"] = {"url": f"mqtt://127.0.0.1:{self.broker_port}"}
        served = {"path": str(workload.model), "name": model_name(workload)}
        config = folder / "inferd.toml"
        config.write_text(_to_toml(tables, served), encoding="utf-8")
        return Command(program("daemon", "--config", str(config)))

    def request(self, case: Case) -> Request:
        """See `make_request`."""
        return make_request(case)

    def is_right(self, case: Case, answer: Answer) -> bool:
        """The same numbers, or the same best class."""
        if case.workload.form not in FILE_FORMS:
            return case.is_right(read_kserve_tensor(case, answer))
        document = json.loads(answer.body)
        best = (document.get("classification") or document["detection"])[0]
        return case.is_right((best["index"],))


def make_request(case: Case) -> Request:
    """KServe v2 for a tensor, the native endpoint for a file."""
    workload = case.workload
    kserve_path = f"/v2/models/{model_name(workload)}/infer"
    match workload.form:
        case Form.BINARY:
            return kserve_binary(case, kserve_path, case.source.name)
        case Form.JSON:
            return kserve_json(case, kserve_path, case.source.name)
        case Form.JPEG | Form.WAV:
            headers = {"Content-Type": _CONTENT_TYPES[workload.form]}
            path = f"/api/models/{model_name(workload)}/predict"
            return Request(path, case.body(), headers)


def model_name(workload: Workload) -> str:
    """By which clients know the workload's model."""
    return workload.model.stem


def socket_path(folder: Path) -> Path:
    """The unix socket of a daemon whose files are in this folder."""
    return folder / "run" / "inferd" / "inferd.sock"


def predict_topic(workload: Workload) -> str:
    """Where MQTT requests for the workload's model go."""
    return f"inferd/{DEVICE}/models/{model_name(workload)}/predict"


def mqtt_payload(case: Case) -> bytes:
    """The file, the tensor's bytes, or the JSON that HTTP is sent."""
    return make_request(case).body if case.workload.form is Form.JSON else case.body()


def _to_toml(tables: dict[str, dict[str, object]], served: dict[str, str]) -> str:
    lines = []
    for table, keys in tables.items():
        lines += [f"[{table}]", *_keys(keys)]
    return "\n".join([*lines, "[[models.serve]]", *_keys(served), ""])


def _keys(keys: dict[str, object] | dict[str, str]) -> list[str]:
    """Of TOML; strings, numbers and lists of strings are written as in JSON."""
    return [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
