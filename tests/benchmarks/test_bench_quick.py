"""`make bench` as a whole, with a real daemon and the model of the demo."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(repository, tmp_path_factory, mosquitto):  # mosquitto: or skip
    """What a quick run wrote. Its figures mean nothing; that there are any does."""
    file = tmp_path_factory.mktemp("bench") / "results.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--json", str(file)]
    done = subprocess.run(
        command, cwd=repository, check=False, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text(encoding="utf-8"))


def test_every_way_in_answers_rightly(results):
    (workload,) = results["workloads"]

    lanes = {each["lane"] for each in workload["measurements"]}
    assert workload["absences"] == []
    assert lanes == {
        "raw invoke()",
        "aiohttp echo",
        "inferd",
        "inferd thread",
        "inferd unix socket",
        "inferd MQTT",
        "paho echo",
    }


def test_nothing_went_wrong_under_load(results):
    (workload,) = results["workloads"]

    loads = [load for each in workload["measurements"] for load in each["rounds"]]
    assert all(load["errors"] == 0 for load in loads)
    assert all(load["rate_per_s"] > 0 for load in loads)


def test_memory_and_start_are_measured_of_every_server_alone(results):
    (workload,) = results["workloads"]

    footprints = {each["lane"]: each for each in workload["footprints"]}
    assert footprints.keys() == {"aiohttp echo", "inferd", "inferd thread"}
    assert all(each["pss_mb"] > 5 and each["start_s"] > 0 for each in footprints.values())
    assert footprints["inferd"]["processes"] > footprints["inferd thread"]["processes"]


def test_a_quick_run_judges_nothing(results):
    assert results["quick"]
    assert results["bounds"] == []


@pytest.mark.parametrize("argument", ["fc_mnits", "--peers=tritn"])
def test_an_unknown_name_is_refused_with_those_there_are(repository, argument):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", argument],
        cwd=repository,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 2
    assert "there are" in done.stderr
