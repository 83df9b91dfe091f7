"""Devices as a running daemon tells of them: every view says the same, and follows each change.

The device is an external delegate whose node is a file that comes and goes.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from support.daemon_thread import daemon_in_thread
from support.inferctl import inferctl
from support.mosquitto import running_broker
from support.mqtt_client import TestClient
from support.standin import NO_COMPILER

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo" / "fashion"
WAIT_S = 60.0
ID = "external:dsp"


def tables(standin, node: Path, **more) -> dict[str, object]:
    entry = {"name": "dsp", "path": str(standin.library), "node": str(node), "exclusive": True}
    return {"accelerators": {"external": [entry]}, **more}


def get(url: str, path: str) -> requests.Response:
    return requests.get(url + path, timeout=30)


def device(url: str) -> dict[str, object]:
    (found,) = [each for each in get(url, "/api/devices").json()["devices"] if each["id"] == ID]
    return found


def metric(url: str, name: str) -> float | None:
    text = get(url, "/metrics").text
    return next(
        (
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and sample.labels == {"device": ID, "kind": "external"}
        ),
        None,
    )


def until(condition) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def next_device(client: TestClient, *, up: bool) -> dict[str, object]:
    """The device in the first state from now on in which it is up, or is not."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            state = client.next(timeout_s=WAIT_S).json
        except queue.Empty:
            break
        found = [each for each in state["devices"] if each["id"] == ID and each["up"] is up]
        if found:
            return found[0]
    raise AssertionError(f"no state in which the device is up={up}")


@pytest.fixture(scope="module")
def node(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("dev") / "dsp0"


@pytest.fixture(scope="module")
def url(standin, node):
    with daemon_in_thread([DEMO], **tables(standin, node)) as daemon:
        yield daemon.url


@pytest.fixture(autouse=True)
def away(node):
    node.unlink(missing_ok=True)


def test_a_device_that_is_away_is_told_with_the_next_step(url, node):
    found = device(url)

    assert (found["kind"], found["name"], found["up"]) == ("external", "dsp", False)
    assert str(node) in found["problem"]
    assert found["next_step"]
    assert found["facts"]["exclusive"] is True


def test_whoever_asks_gets_the_truth_of_now(url, node):
    node.touch()
    until(lambda: device(url)["up"])
    came = device(url)

    node.unlink()
    until(lambda: not device(url)["up"])

    assert (came["problem"], came["next_step"]) == ("", "")
    assert device(url)["losses"] > came["losses"]


def test_metrics_follow_the_device_though_nobody_watches_it(url, node):
    losses = metric(url, "inferd_device_losses_total")
    node.touch()
    until(lambda: metric(url, "inferd_device_up") == 1.0)
    until(lambda: device(url)["up"])  # its driver says so too

    node.unlink()

    until(lambda: metric(url, "inferd_device_up") == 0.0)
    assert metric(url, "inferd_device_losses_total") == losses + 1


def test_inferctl_devices_says_why_and_what_to_do(url, node):
    away = inferctl("devices", "--url", url)
    node.touch()
    until(lambda: device(url)["up"])
    here = inferctl("devices", "--url", url)
    as_json = json.loads(inferctl("devices", "--json", "--url", url).stdout)

    lines = away.stdout.splitlines()
    place = next(n for n, line in enumerate(lines) if line.startswith(ID))
    assert lines[place].split()[:3] == [ID, "no", "dsp"]
    assert str(node) in lines[place + 1]
    assert lines[place + 2].strip().startswith("-> ")
    assert [ID, "yes", "dsp"] in [line.split()[:3] for line in here.stdout.splitlines()]
    assert {each["id"]: each["up"] for each in as_json["devices"]}[ID] is True


def test_the_doctor_warns_of_a_configured_device_that_is_away(url, tmp_path):
    options = ("--config", tmp_path / "none.toml", "--url", url, "--json")

    findings = json.loads(inferctl("doctor", *options).stdout)["findings"]

    told = {each["check"]: each for each in findings}
    assert told[f"device {ID}"]["level"] == "WARN"
    assert told[f"device {ID}"]["next_step"]
    assert told["device cpu"]["level"] == "OK"
    assert "device external" not in told


def test_the_console_shows_the_devices(url):
    page = get(url, "/").text

    assert f"<td>{ID}<td>down<td>dsp" in page
    assert "<td>cpu<td>up" in page


def test_answers_fit_their_description(url):
    schema = get(url, "/openapi.json").json()["components"]["schemas"]["Devices"]
    expected = schema["properties"]["devices"]["items"]["properties"]

    assert set(expected) == set(device(url))


def bad_driver(folder: Path, name: str, when_opened: str) -> dict[str, str]:
    """A delegate whose library does this as soon as it is opened."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip(NO_COMPILER)
    path = folder / f"{name}.so"
    source = (
        "#include <stdlib.h>\n#include <unistd.h>\n"
        f"__attribute__((constructor)) static void opened(void) {{ {when_opened} }}\n"
    )
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", path]
    subprocess.run(command, input=source.encode(), check=True)
    return {"name": name, "path": str(path)}


def test_drivers_that_crash_and_hang_cost_nothing_but_their_devices(tmp_path):
    external = [
        bad_driver(tmp_path, "crashing", "abort();"),
        bad_driver(tmp_path, "hanging", "for (;;) pause();"),
    ]
    with daemon_in_thread([DEMO], accelerators={"external": external}) as daemon:
        until(
            lambda: any(
                "killed by SIGABRT" in each["problem"]
                for each in get(daemon.url, "/api/devices").json()["devices"]
            )
        )
        devices = {each["id"]: each for each in get(daemon.url, "/api/devices").json()["devices"]}
        ready = get(daemon.url, "/readyz").status_code
    left = [child.name() for child in psutil.Process().children(recursive=True)]

    assert "crashing.so" in devices["external:crashing"]["next_step"]
    assert devices["external:hanging"]["up"] is False
    assert devices["external:hanging"]["next_step"]
    assert ready == 200
    assert "inferd-look" not in left


@pytest.mark.broker
def test_every_change_is_on_mqtt_while_a_model_wishes_for_the_device(standin, tmp_path):
    node = tmp_path / "dsp0"
    wish = {"defaults": {"accelerators": ["external:dsp", "cpu"]}}
    with running_broker(tmp_path) as broker:
        client = TestClient(broker.port)
        client.subscribe("inferd/box-1/state")
        options = tables(standin, node, mqtt={"url": broker.url}, **wish)
        with daemon_in_thread([DEMO], **options):
            away = next_device(client, up=False)
            for _ in range(3):
                node.touch()
                here = next_device(client, up=True)
                node.unlink()
                gone = next_device(client, up=False)
        client.close()

    assert str(node) in away["problem"]
    assert away["next_step"]
    assert here == {"id": ID, "kind": "external", "up": True, "problem": "", "next_step": ""}
    assert str(node) in gone["problem"]
