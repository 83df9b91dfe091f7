"""What the doctor finds, and what follows from it."""

from __future__ import annotations

import socket

import pytest
from support.daemon import free_port
from support.selftest_model import TARGET, build

from daemon.cli.client import Client, parse_address
from daemon.cli.doctor import (
    Level,
    available_memory_bytes,
    check_broker,
    check_config,
    check_daemon,
    check_devices,
    check_memory,
    check_runtime,
    check_shared_memory,
    describe_findings,
    judge_devices,
    judge_runtime,
    judge_version,
)
from daemon.config import (
    AcceleratorsTable,
    Config,
    DefaultsTable,
    ExternalDelegate,
    ModelsTable,
    MqttTable,
)
from daemon.models.store import scan


def make_model(**facts):
    return {"name": "m", "wanted": True, **facts}


def make_version(**facts):
    return {
        "version": "1",
        "state": "READY",
        "reason": "",
        "device": "cpu",
        "requested_device": "cpu",
        "degraded": False,
        **facts,
    }


@pytest.mark.parametrize(
    ("model", "version", "level"),
    [
        ({}, {}, Level.OK),
        ({}, {"state": "LOADING"}, Level.WARN),
        ({}, {"state": "UNAVAILABLE", "reason": "not a model"}, Level.FAIL),
        ({"wanted": False}, {"state": "UNAVAILABLE", "reason": "unloaded"}, Level.OK),
        ({}, {"degraded": True, "degraded_reason": "no device"}, Level.WARN),
    ],
)
def test_a_versions_state_decides_how_bad_it_is(model, version, level):
    assert judge_version(make_model(**model), make_version(**version)).level is level


def test_a_model_that_fails_is_told_with_its_reason_and_what_to_do():
    finding = judge_version(make_model(), make_version(state="UNAVAILABLE", reason="not a model"))

    text = describe_findings([finding])

    assert text.startswith(
        "FAIL  model m 1  UNAVAILABLE: not a model\n      -> this file cannot be"
    )


@pytest.fixture
def models(tmp_path):
    """A folder of models with everything wrong that can be wrong before one is loaded."""
    folder = tmp_path / "models"
    files = {
        "a.tflite": "TFL3",
        "twin/model.tflite": "TFL3",
        "twin/model.toml": "[model]\nname = 'a'",
        "toml/model.tflite": "TFL3",
        "toml/model.toml": "[limits]\nqueu = 1",
        "labels/model.tflite": "TFL3",
        "labels/model.toml": "[output]\nlabels = 'none.txt'",
        "compiled/model.tflite": "TFL3",
        "compiled/model.toml": "[placement]\ncpu_model = 'for-the-cpu.tflite'",
        "two/b.tflite": "TFL3",
        "two/c.tflite": "TFL3",
        "empty/model.toml": "",
        "tree/0/model.tflite": "TFL3",
        "double/1/model.tflite": "TFL3",
        "double/01/model.tflite": "TFL3",
    }
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (folder / "dangling.tflite").symlink_to(tmp_path / "gone.tflite")
    return folder


def test_the_next_step_fits_what_is_wrong_with_the_model(models):
    config = Config(models=ModelsTable(folders=(models, models / "absent")))
    reasons = {
        model.name: model.problem or "".join(version.problem for version in model.versions)
        for model in scan(config)
    }

    steps = {
        name: judge_version(make_model(), make_version(state="UNAVAILABLE", reason=reason))
        for name, reason in reasons.items()
        if reason
    }

    assert {name: finding.next_step for name, finding in steps.items()} == {
        "a (2)": "give one of them another name in its model.toml or [[models.serve]]",
        "toml": "correct its model.toml",
        "labels": "correct its label file, or output.labels in its model.toml",
        "compiled": "put that file beside the model, or correct its model.toml",
        "two": "name one of them model.tflite",
        "empty": "put the model's file there",
        "tree": "correct the names of its version folders",
        "double": "take one of the two folders away",
        "dangling": "put it there, or correct [models]",
        "absent": "put it there, or correct [models]",
    }


@pytest.mark.parametrize(
    ("reason", "step"),
    [
        ("no driver for 'gpu' is in this version", "wish for another kind"),
        ("the device is gone", "look after the device"),
    ],
)
def test_the_next_step_fits_why_a_model_is_degraded(reason, step):
    finding = judge_version(make_model(), make_version(degraded=True, degraded_reason=reason))

    assert finding.next_step.startswith(step)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"notes": ["labels.txt has 2 lines, the model 10 classes"]}, "has 2 lines"),
        ({"reason": "a changed file was refused: the file is empty"}, "the file is empty"),
    ],
)
def test_a_model_that_answers_with_something_amiss_is_a_warning(facts, words):
    finding = judge_version(make_model(), make_version(**facts))

    assert finding.level is Level.WARN
    assert words in finding.detail
    assert finding.next_step


def test_the_runtime_passes_its_self_test():
    finding = check_runtime()

    assert finding.level is Level.OK
    assert "works on cpu" in finding.detail


@pytest.mark.parametrize(
    ("facts", "level", "detail"),
    [
        ({}, Level.OK, "tflite 2.14.0 works on cpu"),
        (
            {"absent": ["ai-edge-litert"]},
            Level.OK,
            "tflite 2.14.0 works on cpu; ai-edge-litert is not installed",
        ),
        (
            {"faults": ["ai-edge-litert 2.3.0 does not work: ImportError: x"]},
            Level.WARN,
            "tflite 2.14.0 works on cpu; ai-edge-litert 2.3.0 does not work: ImportError: x",
        ),
    ],
)
def test_why_a_better_runtime_is_not_used_is_said(facts, level, detail):
    answer = {"runtime": "tflite 2.14.0", "device": "cpu", "faults": [], "absent": [], **facts}

    finding = judge_runtime(answer, "reinstall inferd")

    assert (finding.level, finding.detail) == (level, detail)
    assert finding.next_step == ("reinstall inferd" if level is Level.WARN else "")


def test_the_self_tests_model_is_what_its_script_makes():
    assert TARGET.read_bytes() == build()


def test_memory_is_read_in_bytes():
    assert available_memory_bytes("MemTotal: 9 kB\nMemAvailable:  2048 kB\n") == 2 * 2**20


def test_little_memory_is_a_warning(tmp_path):
    source = tmp_path / "meminfo"
    source.write_text("MemAvailable: 1024 kB\n")

    assert check_memory(source).level is Level.WARN


def test_shared_memory_that_is_not_there_is_a_failure(tmp_path):
    assert check_shared_memory(tmp_path / "shm").level is Level.FAIL


def test_every_problem_of_the_configuration_is_a_finding(tmp_path):
    file = tmp_path / "inferd.toml"
    file.write_text("[http]\nlisten = 1\n[defaults]\nqueu = 2\n")

    config, findings = check_config(file)

    assert config is None
    assert len(findings) == 2
    assert any("did you mean 'queue'" in finding.detail for finding in findings)


def test_a_good_configuration_is_handed_on(tmp_path):
    file = tmp_path / "inferd.toml"
    file.write_text('[device]\nid = "box"\n')

    config, findings = check_config(file)

    assert config is not None
    assert config.device.id == "box"
    assert [finding.level for finding in findings] == [Level.OK]


def test_without_a_broker_configured_there_is_nothing_to_say():
    assert check_broker(Config()) == []


def test_a_broker_that_takes_no_connections_is_a_failure():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        url = f"mqtt://127.0.0.1:{taken.getsockname()[1]}"

        findings = check_broker(Config(mqtt=MqttTable(url=url)))

    assert [finding.level for finding in findings] == [Level.FAIL]
    assert findings[0].detail.endswith(": Connection refused")


def test_a_daemon_that_does_not_answer_is_a_failure_with_a_next_step(tmp_path):
    findings = check_daemon(Client(parse_address(f"unix:{tmp_path}/none.sock")))

    assert [finding.level for finding in findings] == [Level.FAIL]
    assert "inferctl serve" in findings[0].next_step


def make_device(**facts):
    return {
        "id": "edgetpu",
        "kind": "edgetpu",
        "name": "",
        "driver": "",
        "up": False,
        "problem": "no Edge TPU is here",
        "next_step": "plug one in",
        "losses": 0,
        **facts,
    }


@pytest.mark.parametrize(
    ("facts", "wishes"),
    [
        ({}, {"edgetpu"}),
        ({"id": "edgetpu:usb-1-1"}, {"edgetpu:usb-1-1"}),
        ({"id": "edgetpu:usb-1-1"}, {"edgetpu"}),
        ({"losses": 3}, set()),
        ({"id": "external:dsp", "kind": "external"}, set()),
    ],
)
def test_a_device_that_somebody_wants_and_nobody_can_use_is_a_warning(facts, wishes):
    device = make_device(**facts)

    (finding,) = judge_devices([device], wishes)

    assert finding.level is Level.WARN
    assert finding.check == f"device {device['id']}"
    assert (finding.detail, finding.next_step) == ("no Edge TPU is here", "plug one in")


@pytest.mark.parametrize("device", [{}, {"id": "external", "kind": "external"}])
def test_what_is_not_here_and_not_wanted_is_not_spoken_of(device):
    assert judge_devices([make_device(**device)], {"gpu"}) == []


def test_a_device_that_can_be_used_is_named():
    device = make_device(up=True, problem="", next_step="", name="Coral", driver="libedgetpu 16")

    (finding,) = judge_devices([device], set())

    assert (finding.level, finding.detail) == (Level.OK, "Coral, libedgetpu 16")


def test_without_a_daemon_configured_and_wished_devices_are_looked_for_here(tmp_path):
    missing = ExternalDelegate(name="dsp", path=str(tmp_path / "missing.so"))
    config = Config(
        accelerators=AcceleratorsTable(external=(missing,)),
        defaults=DefaultsTable(accelerators=("cpu", "external:dsp")),
    )

    findings = check_devices(Client(parse_address(f"http://127.0.0.1:{free_port()}")), config)

    assert [(each.check, each.level) for each in findings if "external" in each.check] == [
        ("device external:dsp", Level.WARN)
    ]
    assert "missing.so" in findings[-1].detail
    assert all(each.next_step for each in findings if each.level is not Level.OK)
