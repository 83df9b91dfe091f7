"""wrk's script and its result."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.wire import Request
from benchmarks.wrk import make_script, parse_result

OUTPUT = """Running 2s test @ http://127.0.0.1:8080/
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   586.14us  705.68us   5.93ms   90.50%
Requests/sec:  16664.21
result {"requests":4000,"duration_us":2000000,"p50_us":331,"p90_us":600,"p99_us":5930,\
"bad_status":1000,"failed":3}
"""


def test_rate_is_of_good_answers_only():
    assert parse_result(OUTPUT).rate_per_s == 1500


def test_bad_answers_and_broken_connections_are_errors():
    assert parse_result(OUTPUT).errors == 1003


def test_latencies_are_milliseconds():
    load = parse_result(OUTPUT)

    assert (load.p50_ms, load.p90_ms, load.p99_ms) == (0.331, 0.6, 5.93)


def test_output_without_a_result_is_refused():
    with pytest.raises(ValueError, match="unable to connect"):
        parse_result("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_script_sends_the_body_of_its_file():
    request = Request("/x", b"body", {"Inference-Header-Content-Length": "4"})

    script = make_script(request, Path("folder/a.body"))

    assert 'wrk.method = "POST"' in script
    assert 'wrk.body = io.open("folder/a.body", "rb"):read("*a")' in script
    assert 'wrk.headers["Inference-Header-Content-Length"] = "4"' in script
