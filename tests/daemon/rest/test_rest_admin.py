"""What the appliance says of itself, and the operator's load and unload."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import requests
from support import tflite_builder
from support.daemon_thread import daemon_in_thread

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo" / "fashion"
HOSTILE_NAME = "<script>alert('x')&"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    (root / "scale.tflite").write_bytes(tflite_builder.scale())
    (root / "broken.tflite").write_bytes(b"this is no model")
    shutil.copytree(DEMO, root / "odd")
    served = [
        DEMO,
        root / "scale.tflite",
        root / "broken.tflite",
        {"path": root / "odd", "name": HOSTILE_NAME, "labels": {"stable": 1}},
    ]
    with daemon_in_thread(served) as daemon:
        yield daemon.url


def get(url, path):
    return requests.get(url + path, timeout=30)


def post(url, path, **options):
    return requests.post(url + path, timeout=30, **options)


def model(url, name):
    return get(url, f"/api/models/{requests.utils.quote(name, safe='')}").json()


def test_every_model_is_listed_by_name(url):
    names = [entry["name"] for entry in get(url, "/api/models").json()["models"]]

    assert set(names) == {"fashion", "scale", "broken", HOSTILE_NAME}


def test_the_processor_is_a_device_that_is_up(url):
    metrics = get(url, "/metrics").text

    assert 'inferd_device_up{device="cpu",kind="cpu"} 1.0' in metrics


def test_a_ready_model_tells_what_it_takes_and_gives(url):
    version = model(url, "scale")["versions"][0]

    assert (version["version"], version["state"], version["reason"]) == ("1", "READY", "")
    assert (version["device"], version["requested_device"], version["degraded"]) == (
        "cpu",
        "cpu",
        False,
    )
    assert version["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert version["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]


def test_kinds_and_labels_are_told(url):
    entry = model(url, HOSTILE_NAME)

    assert entry["labels"] == {"stable": "1"}
    assert entry["versions"][0]["input_kind"] == "image"
    assert entry["versions"][0]["output_kind"] == "classification"


def test_a_model_that_cannot_be_served_stays_listed_with_its_reason(url):
    version = model(url, "broken")["versions"][0]

    assert version["state"] == "UNAVAILABLE"
    assert version["reason"]
    assert (version["device"], version["inputs"]) == (None, [])


def test_one_model_is_listed_as_in_the_list(url):
    listed = {entry["name"]: entry for entry in get(url, "/api/models").json()["models"]}

    assert model(url, "scale") == listed["scale"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", "/load"), ("POST", "/unload"), ("POST", "/rollback")],
)
def test_an_unknown_model_is_404(url, method, path):
    response = requests.request(method, f"{url}/api/models/nobody{path}", timeout=30)

    assert response.status_code == 404
    assert response.json() == {"error": "model 'nobody' is not here", "model": "nobody"}


def test_readiness_names_what_does_not_answer(url):
    response = get(url, "/readyz")

    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert list(response.json()["reasons"]) == ["broken"]


def test_alive_is_alive_whatever_models_do(url):
    assert get(url, "/healthz").json() == {"status": "ok"}


def test_status_counts_and_names(url):
    status = get(url, "/api/status").json()

    assert status["device"] == "box-1"
    assert status["models"] == 4
    assert status["versions"] == {"READY": 3, "UNAVAILABLE": 1}
    assert status["uptime_s"] >= 0
    assert status["mqtt"] == {"enabled": False}


def test_devices_name_the_cpu_and_who_runs_on_it(url):
    cpu = get(url, "/api/devices").json()["devices"][0]

    assert (cpu["id"], cpu["kind"], cpu["up"]) == ("cpu", "cpu", True)
    assert (cpu["problem"], cpu["next_step"], cpu["losses"]) == ("", "", 0)
    assert cpu["facts"]["cores"] >= 1
    assert {"fashion/1", "scale/1"} <= set(cpu["models"])


def test_a_kind_of_which_nothing_is_here_is_listed_with_why_and_what_to_do(url):
    devices = {device["id"]: device for device in get(url, "/api/devices").json()["devices"]}

    assert devices["external"]["up"] is False
    assert "no external delegate is named" in devices["external"]["problem"]
    assert "[[accelerators.external]]" in devices["external"]["next_step"]


def test_what_is_not_here_and_not_wished_for_is_no_metric(url):
    metrics = get(url, "/metrics").text

    assert 'inferd_device_up{device="external"' not in metrics


@pytest.mark.parametrize("path", ["/metrics", "/monitoring/prometheus/metrics"])
def test_metrics_are_served_at_both_paths(url, path):
    response = get(url, path)

    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "inferd_build_info" in response.text


def test_unload_stops_a_model_and_load_brings_it_back(url):
    body = b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1,2,3,4]}]}'

    unloaded = post(url, "/api/models/scale/unload")
    refused = post(url, "/api/models/scale/predict", data=body)
    loaded = post(url, "/api/models/scale/load")
    answered = post(url, "/api/models/scale/predict", data=body)

    assert unloaded.json()["wanted"] is False
    assert refused.status_code == 503
    assert "Retry-After" not in refused.headers
    assert loaded.json()["versions"][0]["state"] == "READY"
    assert answered.status_code == 200


def test_loading_what_cannot_be_loaded_says_why(url):
    response = post(url, "/api/models/broken/load")

    assert response.status_code == 503
    assert response.json()["reason"]


@pytest.mark.parametrize("path", ["/api/models/scale/rollback", "/api/updates/refresh"])
def test_what_needs_the_updater_is_refused_while_none_runs(url, path):
    response = post(url, path)

    assert response.status_code == 503
    assert "inferd-updater" in response.json()["error"]


def test_the_page_escapes_names_and_forbids_scripts(url):
    response = get(url, "/")

    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "<script" not in response.text
    assert "&lt;script&gt;" in response.text


def test_the_page_links_to_pages_that_exist(url):
    text = get(url, "/").text
    links = [part.partition('"')[0] for part in text.split('href="')[1:]]

    statuses = {link: get(url, link).status_code for link in links}

    assert len(links) >= 10
    assert {link for link, status in statuses.items() if status != 200} == {"/readyz"}
