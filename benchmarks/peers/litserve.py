"""LitServe with an API of ours around LiteRT, in one worker process per instance.

Tensors go as plain bytes both ways, and its ZeroMQ queue is on, as it advises for small models.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.lanes import LITSERVE
from benchmarks.peers.environment import INSIDE, Environment
from benchmarks.processes import Command
from benchmarks.wire import Request
from benchmarks.workloads import FILE_FORMS, Form, predictor_settings

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.wire import Answer
    from benchmarks.workloads import Case

_PATH = "/predict"


class LitServe:
    """See the module."""

    name = LITSERVE
    _environment = Environment("litserve")

    def prepare(self) -> str:
        """Install it."""
        return self._environment.install()

    def command(self, case: Case, folder: Path, port: int) -> Command:
        """A program of ours in its environment."""
        argv = (
            str(self._environment.python),
            str(INSIDE / "litserve_app.py"),
            str(port),
            str(case.workload.instances),
        )
        return Command(argv, {"BENCH_PREDICTOR": predictor_settings(case.workload)}, folder)

    def request(self, case: Case) -> Request:
        """JSON numbers, or the tensor or file as it is."""
        if case.workload.form is Form.JSON:
            body = json.dumps({"data": case.numbers()}, separators=(",", ":")).encode("ascii")
            return Request(_PATH, body, {"Content-Type": "application/json"})
        return Request(_PATH, case.body(), {"Content-Type": "application/octet-stream"})

    def is_right(self, case: Case, answer: Answer) -> bool:
        """The same numbers, or the same best class."""
        if case.workload.form is Form.BINARY:
            return case.is_right(case.read_output(answer.body))
        document = json.loads(answer.body)
        if case.workload.form in FILE_FORMS:
            return case.is_right((document["index"][0],))
        return case.is_right(tuple(document["data"]))
