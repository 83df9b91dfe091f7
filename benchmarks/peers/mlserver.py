"""MLServer with a runtime of ours around LiteRT, in one worker process per instance.

It takes no binary tensors over HTTP, so those go as base64 in a BYTES element: leaner than numbers.
Its debug mode, which is on by default and logs every request, is off.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

from benchmarks.lanes import MLSERVER
from benchmarks.peers.environment import INSIDE, Environment
from benchmarks.processes import Command, free_port
from benchmarks.wire import Request, kserve_json, read_kserve_best
from benchmarks.workloads import FILE_FORMS, Form, predictor_settings

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.wire import Answer
    from benchmarks.workloads import Case

_MODEL = "model"
_PATH = f"/v2/models/{_MODEL}/infer"


class MLServer:
    """See the module."""

    name = MLSERVER
    # With uvloop 0.22 its worker processes end at once: "There is no current event loop".
    _environment = Environment("mlserver", ("uvloop<0.22",))

    def prepare(self) -> str:
        """Install it."""
        return self._environment.install()

    def command(self, case: Case, folder: Path, port: int) -> Command:
        """`mlserver start` on a folder with its two files of settings."""
        settings = {
            "host": "127.0.0.1",
            "http_port": port,
            "grpc_port": free_port(),
            "metrics_port": free_port(),
            "debug": False,
            "parallel_workers": case.workload.instances,
        }
        model = {"name": _MODEL, "implementation": "mlserver_runtime.TFLiteRuntime"}
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
        environment = {
            "PYTHONPATH": str(INSIDE),
            "BENCH_PREDICTOR": predictor_settings(case.workload),
        }
        program = self._environment.python.with_name("mlserver")
        return Command((str(program), "start", str(folder)), environment, folder)

    def request(self, case: Case) -> Request:
        """JSON, with the tensor's bytes or the file in base64."""
        if case.workload.form is Form.JSON:
            return kserve_json(case, _PATH, "input")
        text = base64.b64encode(case.body()).decode("ascii")
        source = {"name": "input", "shape": [1], "datatype": "BYTES", "data": [text]}
        body = json.dumps({"inputs": [source]}).encode("ascii")
        return Request(_PATH, body, {"Content-Type": "application/json"})

    def is_right(self, case: Case, answer: Answer) -> bool:
        """The same numbers, or the same best class."""
        if case.workload.form in FILE_FORMS:
            return case.is_right(read_kserve_best(answer))
        data = json.loads(answer.body)["outputs"][0]["data"]
        if case.workload.form is Form.BINARY:
            data = case.read_output(base64.b64decode(data[0]))
        return case.is_right(tuple(data))
