"""The baseline: aiohttp, echoing the body that inferd is sent."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from benchmarks.lanes import ECHO
from benchmarks.peers.inferd import make_request
from benchmarks.processes import Command
from benchmarks.programs import program

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.wire import Answer, Request
    from benchmarks.workloads import Case


class Echo:
    """No model at all."""

    name = ECHO

    def prepare(self) -> str:
        """It comes with inferd."""
        return version("aiohttp")

    def command(self, case: Case, folder: Path, port: int) -> Command:  # noqa: ARG002 (no model)
        """One program of ours."""
        return Command(program("benchmarks.echo", str(port)))

    def request(self, case: Case) -> Request:
        """The bytes that inferd is sent."""
        return replace(make_request(case), path="/")

    def is_right(self, case: Case, answer: Answer) -> bool:
        """They came back."""
        return answer.body == self.request(case).body
