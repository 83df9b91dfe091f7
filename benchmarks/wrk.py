"""HTTP load from outside Python, with wrk: its script, its command, its result."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

from benchmarks.measure import Load
from benchmarks.processes import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.wire import Request

_MARK = "result "

# wrk counts statuses above 399 among the requests; they are no good answers. Its latencies are
# corrected for coordinated omission: an answer that took long counts for those that it held up.
_DONE = f"""
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{_MARK}{{"requests":%d,"duration_us":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,'
    .. '"bad_status":%d,"failed":%d}}\\n',
    summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(90), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
"""


def is_installed() -> bool:
    """Whether wrk is here; Debian's package has its name."""
    return shutil.which("wrk") is not None


class Wrk:
    """Sends one request again and again to a port of loopback.

    Args:
        folder: takes the script and the body.
        name: of those files.
    """

    def __init__(self, port: int, request: Request, folder: Path, name: str) -> None:
        self._url = f"http://127.0.0.1:{port}{request.path}"
        self._script = folder / f"{name}.lua"
        body = folder / f"{name}.body"
        body.write_bytes(request.body)
        self._script.write_text(make_script(request, body), encoding="utf-8")

    def __call__(self, connections: int, seconds: int) -> Load:
        """Load it.

        Raises:
            Unavailable: nothing answers there.
        """
        command = [
            "wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds}s",
            "--timeout=30s", f"--script={self._script}", self._url,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise Unavailable(f"wrk failed: {(done.stderr or done.stdout).strip()}")
        return parse_result(done.stdout)


def make_script(request: Request, body: Path) -> str:
    """The Lua script that sends this request, whose body is in this file, and prints a result."""
    lines = [
        f"wrk.method = {json.dumps(request.method)}",
        f'wrk.body = io.open({json.dumps(str(body))}, "rb"):read("*a")',
        *(f"wrk.headers[{json.dumps(n)}] = {json.dumps(v)}" for n, v in request.headers.items()),
    ]
    return "\n".join(lines) + _DONE


def parse_result(text: str) -> Load:
    """What the script printed, among wrk's own lines.

    Raises:
        ValueError: there is no result in it.
    """
    line = next((line for line in text.splitlines() if line.startswith(_MARK)), None)
    if line is None:
        raise ValueError(f"wrk printed no result: {text[:500]!r}")
    result = json.loads(line.removeprefix(_MARK))
    good = result["requests"] - result["bad_status"]
    return Load(
        rate_per_s=good / (result["duration_us"] / 1e6),
        p50_ms=result["p50_us"] / 1e3,
        p90_ms=result["p90_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
        errors=result["bad_status"] + result["failed"],
    )
