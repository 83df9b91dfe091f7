"""schemathesis finds nothing in the running server that its description does not say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.daemon_thread import daemon_in_thread

pytest.importorskip("schemathesis", reason="needs schemathesis")

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo" / "fashion"
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
EXAMPLES = 25
TIMEOUT_S = 240

# Requests go to a model that is there. The server may be busy, and some endpoints say that they
# are not offered. What a given model takes is no matter of a schema.
CONFIG = """
[parameters]
"path.model" = "fashion"
"path.version" = 1

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 501, 503, 504]

[[operations]]
include-operation-id = ["predict", "predictVersion"]

[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", 400, 404, 415, 422, 503, 504]
"""


@pytest.fixture(scope="module")
def url():
    with daemon_in_thread([DEMO]) as daemon:
        yield daemon.url


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("seed", [1, 20])
def test_every_check_of_schemathesis_passes(url, seed, tmp_path):
    if not SCHEMATHESIS.is_file():
        pytest.skip("needs the command schemathesis beside this Python")
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")

    done = subprocess.run(
        [
            SCHEMATHESIS,
            "--config-file=config.toml",
            "run",
            f"{url}/openapi.json",
            "--checks=all",
            f"--max-examples={EXAMPLES}",
            f"--seed={seed}",
            "--generation-database=none",
            "--no-color",
            "--no-shrink",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = re.search(r"Selected: (\d+)/(\d+)\s+Tested: (\d+)", done.stdout)
    assert counts is not None, done.stdout[-2000:]
    assert len(set(counts.groups())) == 1, "not every operation was tried"
