"""inferctl against a daemon that `inferctl serve` runs."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
import requests
from support.inferctl import inferctl, run_python, serving

from daemon.cli.arguments import parse
from daemon.cli.broker import Broker, run_broker
from daemon.cli.client import Client, parse_address
from daemon.cli.demo import Stage, StoryBroken, predict_over_http
from daemon.cli.demofleet import Fleet
from daemon.cli.serve import _configure
from daemon.cli.updaterclient import Updater


@pytest.fixture(scope="module")
def served(demo_model, tmp_path_factory):
    """The demo model, and beside it a file that is no model."""
    bad = tmp_path_factory.mktemp("models") / "bad.tflite"
    bad.write_bytes(b"no model at all")
    with serving(demo_model, bad) as running:
        yield running


@pytest.fixture
def sneaker(demo_model):
    return demo_model / "samples" / "sneaker.png"


def test_serve_says_what_it_serves_and_why_not(served):
    assert "fashion  version 1  READY        on cpu" in served.said
    assert "bad      version 1  UNAVAILABLE  " in served.said


def test_the_request_that_serve_suggests_is_one_that_works(served, sneaker):
    example = next(line for line in served.said.splitlines() if line.startswith("try: "))
    *command, url = example.removeprefix("try: ").split()

    assert command == ["curl", "--data-binary", "@picture.jpg"]
    assert requests.post(url, data=sneaker.read_bytes(), timeout=30).status_code == 200


def test_predict_names_what_is_in_the_picture(served, sneaker):
    done = inferctl("--url", served.url, "predict", "fashion", sneaker)

    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "0.996  sneaker"


def test_predict_reads_standard_input(served, sneaker):
    done = inferctl("predict", "fashion", "-", "--url", served.url, stdin=sneaker.read_bytes())

    assert done.stdout.startswith("0.996  sneaker\n")


def test_predict_lists_as_many_as_asked_for(served, sneaker):
    options = ("--top-k", "2", "--json", "--url", served.url)

    done = inferctl("predict", "fashion", sneaker, *options)

    assert len(json.loads(done.stdout)["classification"]) == 2


def test_predict_leaves_out_what_is_below_the_threshold(served, sneaker):
    options = ("--threshold", "0.9", "--json", "--url", served.url)

    done = inferctl("predict", "fashion", sneaker, *options)

    labels = [each["label"] for each in json.loads(done.stdout)["classification"]]
    assert labels == ["sneaker"]


def test_predict_asks_the_version_it_was_told(served, sneaker):
    done = inferctl("predict", "fashion", sneaker, "--model-version", "9", "--url", served.url)

    assert done.returncode == 1
    assert "version 9" in done.stderr


def test_predict_of_json_shows_the_raw_numbers(served, tmp_path):
    pixels = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"inputs": [pixels]}))

    done = inferctl("predict", "fashion", file, "--json", "--url", served.url)

    assert json.loads(done.stdout)["outputs"][0]["shape"] == [1, 10]


def test_the_address_may_come_from_the_environment(served):
    assert inferctl("models", INFERD_URL=served.url).returncode == 0


@pytest.mark.parametrize(
    ("verb", "key"), [("status", "ready"), ("models", "models"), ("devices", "devices")]
)
def test_reading_verbs_print_the_daemons_json(served, verb, key):
    done = inferctl(verb, "--json", "--url", served.url)

    assert json.loads(done.stdout)[key] is not None


@pytest.mark.parametrize(
    ("verb", "text"),
    [
        ("status", "2 (1 READY, 1 UNAVAILABLE)"),
        ("models", "fashion  1        READY        cpu     image  classification"),
        ("devices", "fashion/1"),
    ],
)
def test_reading_verbs_print_for_people(served, verb, text):
    assert text in inferctl(verb, "--url", served.url).stdout


def test_doctor_fails_for_the_bad_model_and_names_it(served):
    done = inferctl("doctor", "--url", served.url)

    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == 1
    assert [line.split()[1:3] for line in failed] == [["model", "bad"]]


def test_doctor_warns_of_labels_that_do_not_fit_the_model(demo_model, tmp_path):
    model = tmp_path / "short"
    shutil.copytree(demo_model, model)
    (model / "labels.txt").write_text("boot\nbag\n")

    with serving(model) as running:
        done = inferctl("doctor", "--url", running.url)

    assert done.returncode == 0
    assert (
        "WARN  model fashion 1  READY on cpu; labels.txt has 2 lines, the model 10" in done.stdout
    )


def test_doctor_prints_its_findings_as_json(served):
    done = inferctl("doctor", "--json", "--url", served.url)

    levels = {each["check"]: each["level"] for each in json.loads(done.stdout)["findings"]}
    assert levels["model fashion 1"] == "OK"


def test_a_model_that_is_not_there_is_refused(served, sneaker):
    done = inferctl("predict", "nobody", sneaker, "--url", served.url)

    assert done.returncode == 1
    assert done.stderr == "inferctl predict: model 'nobody' is not here\n"


def test_a_daemon_that_is_not_there_is_unreachable(tmp_path):
    done = inferctl("status", "--url", f"unix:{tmp_path}/none.sock")

    assert done.returncode == 69
    assert "no answer from unix:" in done.stderr


def test_serving_a_file_that_is_not_there_is_a_usage_error(tmp_path):
    done = inferctl("serve", tmp_path / "none.tflite")

    assert done.returncode == 2
    assert "none.tflite" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--http", "foo", "'foo': expected \"host:port\""),
        ("--http", "127.0.0.1:99999", "'127.0.0.1:99999': expected"),
        ("--http", "0.0.0.0:0", "add --allow-anonymous to let them in"),
        ("--mqtt", "foo", "expected mqtt://HOST[:PORT]"),
    ],
)
def test_an_option_that_cannot_be_used_is_a_usage_error(demo_model, option, value, words):
    done = inferctl("serve", demo_model, option, value)

    assert done.returncode == 2
    assert done.stderr.startswith("usage: inferctl serve ")
    assert f"error: argument {option}: " in done.stderr
    assert words in done.stderr


def test_a_bad_variable_is_a_bad_configuration(demo_model):
    done = inferctl("serve", demo_model, "--http", "0.0.0.0:0", INFERD_DEFAULTS__QUEUE="0")

    assert done.returncode == 78
    assert "INFERD_DEFAULTS__QUEUE: defaults.queue = 0: expected" in done.stderr
    assert "--allow-anonymous" not in done.stderr


def test_an_open_address_may_be_allowed_by_a_variable(demo_model, monkeypatch, tmp_path):
    monkeypatch.setenv("INFERD_HTTP__ALLOW_ANONYMOUS", "true")

    config = _configure(parse(["serve", str(demo_model), "--http", "0.0.0.0:0"]), tmp_path)

    assert config.http.allow_anonymous is True


def test_where_nothing_can_be_served_it_says_so_once_and_ends(tmp_path):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"no model at all")

    done = inferctl("serve", bad, tmp_path / "..", "--http", "127.0.0.1:0")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("inferctl serve: nothing can be served\n")
    assert done.stderr.count("bad ") == 1
    assert done.stderr.count("UNAVAILABLE") == 2


def test_a_path_named_twice_is_served_once(demo_model, tmp_path):
    link = tmp_path / demo_model.name
    link.symlink_to(demo_model)

    with serving(demo_model, demo_model, link) as running:
        assert requests.get(f"{running.url}/readyz", timeout=30).status_code == 200

    assert running.said.count("fashion  version") == 1


def test_predict_of_a_file_that_is_not_there_is_a_usage_error(tmp_path):
    done = inferctl("predict", "m", tmp_path / "none.png", "--url", "unix:/n")

    assert done.returncode == 2
    assert "error: argument FILE: cannot read" in done.stderr


def test_a_taken_port_is_a_failure_in_one_line(served, demo_model):
    done = inferctl("serve", demo_model, "--http", served.url.removeprefix("http://"))

    assert done.returncode == 1
    assert done.stderr.startswith("inferctl serve: cannot start: ")
    assert len(done.stderr.splitlines()) == 1


def test_reading_verbs_start_without_the_server_libraries():
    """They would take longer to import than a request takes."""
    heavy = "{'aiohttp', 'msgspec', 'numpy', 'orjson', 'paho', 'uvloop'}"
    program = (
        "import sys; from daemon.cli.main import main; code = main(['models', '--url', 'unix:/n']);"
        f"print(code, {heavy} & set(sys.modules))"
    )

    done = run_python(program)

    assert done.stdout == "69 set()\n"


def test_a_wrong_answer_breaks_the_story(served, demo_model, tmp_path, capsys):
    mixed_up = shutil.copytree(demo_model, tmp_path / "fashion")
    (mixed_up / "samples" / "bag.png").replace(mixed_up / "samples" / "coat.png")
    shutil.copy(demo_model / "samples" / "bag.png", mixed_up / "samples" / "bag.png")
    stage = Stage(
        client=Client(parse_address(served.url)),
        broker=Broker("none", 1),
        device="demo",
        model_folder=mixed_up,
        fleet=Fleet(tmp_path, mixed_up),
        updater=Updater(tmp_path / "none.sock"),
        over=threading.Event(),
    )

    with pytest.raises(StoryBroken, match=r"coat\.png"):
        predict_over_http(stage)


@pytest.mark.broker
def test_serve_answers_over_mqtt_too(mosquitto, demo_model, tmp_path):
    with (
        run_broker(tmp_path) as broker,
        serving(demo_model, "--mqtt", broker.url) as running,
    ):
        status = inferctl("status", "--json", "--url", running.url)

    assert json.loads(status.stdout)["mqtt"]["enabled"] is True
