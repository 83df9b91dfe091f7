"""`doctor`: looks at everything a daemon needs, and says for each thing what to do about it.

Each check is a function that returns findings and never raises for what it looks for. They run in
the order in which a fault would explain the later ones.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerators.registry import KINDS
from daemon.cli.client import Client, parse_address
from daemon.cli.outcome import CommandError, ExitCode
from daemon.cli.text import mebibytes, print_json, printable, table
from daemon.config import Config, parse_mqtt_url
from daemon.configfiles import DEFAULT_CONFIG, read_config
from daemon.errors import ConfigError
from daemon.hardware import hardware_settings
from daemon.version import VERSION

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Mapping, Sequence

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where the tensors cross, not a temporary file)
MEMORY_INFO = Path("/proc/meminfo")
_SELF_TEST_TIMEOUT_S = 60.0
_SELF_TEST = """
import sys
sys.path.append(sys.argv.pop(1))
from daemon.cli.selftest import main
sys.exit(main())
"""
"""-I drops the working directory and the environment's paths, so the folder of this very code is
named: it need not be installed."""
_CONNECT_TIMEOUT_S = 5.0
_LEAST_SHARED_BYTES = 64 * 2**20
"""A worker's channel takes as much as its tensors: a few pictures' worth. Containers often get 64
MiB, which serves a handful of models."""
_LEAST_FREE_BYTES = 128 * 2**20
"""The daemon and one worker with a small picture model (docs/performance.md)."""
_STEPS = (
    ("is being loaded", "wait until it is READY"),
    ("rename one of them", "give one of them another name in its model.toml or [[models.serve]]"),
    ("models.max_models", "raise models.max_models, or take models away"),
    ("placement.cpu_model: ", "put that file beside the model, or correct its model.toml"),
    ("model.toml", "correct its model.toml"),
    ("label file", "correct its label file, or output.labels in its model.toml"),
    ("Permission denied", "let the daemon's user read it"),
    ("no memory left", "serve fewer or smaller models"),
    ("it may take", "raise limits.memory_mib in its model.toml, or serve a smaller model"),
    ("did not come back", "raise defaults.load_timeout_ms, or serve a smaller model"),
    ("no driver", "wish for another kind in placement.accelerators"),
    ("does not exist", "put it there, or correct [models]"),
    ("No such file", "put it there, or correct [models]"),
    ("version folder", "correct the names of its version folders"),
    ("are both version", "take one of the two folders away"),
    ("none is named", "name one of them model.tflite"),
    ("no .tflite file", "put the model's file there"),
    ("no model at", "put the model there, or correct [models]"),
)
"""What to do about a model's reason, by words of it; the first that fits."""
_OTHER_STEP = "this file cannot be served: put another version of the model in its place"
_DEVICE_STEP = "look after the device; it is taken up again"


class Level(Enum):
    """How bad a finding is."""

    OK = "OK"  # as it should be
    WARN = "WARN"  # it works, and may not for long or not as wanted
    FAIL = "FAIL"  # something does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        next_step: what to do; "" where all is well.
    """

    check: str
    level: Level
    detail: str
    next_step: str = ""


def doctor(arguments: argparse.Namespace) -> ExitCode:
    """Check everything, print a line for each thing, and fail when one of them failed."""
    findings = [check_python(), check_runtime(), check_shared_memory(), check_memory()]
    config, config_findings = check_config(arguments.config)
    findings += config_findings
    if config is not None:
        findings += check_broker(config)
    client = Client(parse_address(arguments.url))
    findings += check_daemon(client)
    findings += check_devices(client, config or Config())
    if arguments.json:
        print_json({"findings": [{**asdict(each), "level": each.level.value} for each in findings]})
    else:
        print(describe_findings(findings))
    failed = any(each.level is Level.FAIL for each in findings)
    return ExitCode.FAILED if failed else ExitCode.DONE


def describe_findings(findings: list[Finding]) -> str:
    """A line for each finding, and below it what to do."""
    rows = [(each.level.value, each.check, each.detail) for each in findings]
    lines = table(rows).splitlines()
    steps = [f"\n      -> {each.next_step}" if each.next_step else "" for each in findings]
    return "\n".join(line + step for line, step in zip(lines, steps, strict=True))


def check_python() -> Finding:
    """Which program, on what."""
    detail = f"inferd {VERSION} on Python {platform.python_version()}, {platform.machine()}"
    return Finding("program", Level.OK, detail)


def check_runtime() -> Finding:
    """Whether a model can be loaded and called in a worker, tried in a child process."""
    command = [sys.executable, "-I", "-c", _SELF_TEST, str(Path(__file__).resolve().parents[2])]
    step = "reinstall inferd; if it stays, this machine's processor or kernel is not supported"
    try:
        child = subprocess.run(  # noqa: S603 (our own module)
            command, capture_output=True, text=True, timeout=_SELF_TEST_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("runtime", Level.FAIL, "the self-test hangs", step)
    try:
        answer = json.loads(child.stdout)
    except ValueError:
        last_line = child.stderr.strip().rpartition("\n")[2]
        detail = f"the self-test ended with {child.returncode}: {printable(last_line)}"
        return Finding("runtime", Level.FAIL, detail, step)
    return judge_runtime(answer, step)


def judge_runtime(answer: Mapping[str, Any], step: str) -> Finding:
    """What the self-test's answer means; see `daemon.cli.selftest`.

    Args:
        step: what to do where something does not work.
    """
    if "problem" in answer:
        return Finding("runtime", Level.FAIL, answer["problem"], step)
    detail = f"{answer['runtime']} works on {answer['device']}"
    absent = [f"{name} is not installed" for name in answer["absent"]]
    if faults := answer["faults"]:
        return Finding("runtime", Level.WARN, "; ".join((detail, *faults, *absent)), step)
    return Finding("runtime", Level.OK, "; ".join((detail, *absent)))


def check_shared_memory(folder: Path = SHARED_MEMORY) -> Finding:
    """Whether tensors can cross to the workers."""
    name = "shared memory"
    if not os.access(folder, os.W_OK):
        step = f"mount a tmpfs at {folder} that this user may write"
        return Finding(name, Level.FAIL, f"{folder} cannot be written", step)
    free_bytes = shutil.disk_usage(folder).free
    detail = f"{mebibytes(free_bytes)} free in {folder}"
    if free_bytes < _LEAST_SHARED_BYTES:
        step = "give it more (containers: --shm-size), or serve fewer or smaller models"
        return Finding(name, Level.WARN, detail, step)
    return Finding(name, Level.OK, detail)


def check_memory(source: Path = MEMORY_INFO) -> Finding:
    """Whether there is memory left for workers."""
    available_bytes = available_memory_bytes(source.read_text())
    detail = f"{mebibytes(available_bytes)} available"
    if available_bytes < _LEAST_FREE_BYTES:
        return Finding("memory", Level.WARN, detail, "serve fewer or smaller models")
    return Finding("memory", Level.OK, detail)


def available_memory_bytes(memory_info: str) -> int:
    """MemAvailable of /proc/meminfo's text, which counts in KiB; 0 when it is not there."""
    for line in memory_info.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def check_config(path: Path | None) -> tuple[Config | None, list[Finding]]:
    """Whether the configuration can be used; None and every problem when it cannot."""
    file = path or DEFAULT_CONFIG
    try:
        config = read_config(path, os.environ)
    except ConfigError as error:
        step = f"correct it; `inferd --config {file} --check-config` checks it again"
        problems = [Finding("config", Level.FAIL, problem, step) for problem in error.problems]
        return None, problems
    detail = f"{file} is good" if file.exists() else f"{file} is not there: the defaults hold"
    return config, [Finding("config", Level.OK, detail)]


def check_broker(config: Config) -> list[Finding]:
    """Whether the configured broker takes connections; nothing when none is configured."""
    if not config.mqtt.url:
        return []
    broker, _ = parse_mqtt_url(config.mqtt.url)
    place = f"{broker.host}:{broker.port}"
    try:
        socket.create_connection((broker.host, broker.port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        step = "start the broker, or correct mqtt.url"
        detail = f"{place}: {error.strerror or error}"
        return [Finding("mqtt broker", Level.FAIL, detail, step)]
    return [Finding("mqtt broker", Level.OK, f"{place} takes connections")]


def check_daemon(client: Client) -> list[Finding]:
    """Whether a daemon answers, and how each of its models is."""
    try:
        document = client.get("/api/models")
    except CommandError as error:
        step = "start it (`systemctl start inferd`, or `inferctl serve`), or give --url"
        return [Finding("daemon", Level.FAIL, str(error), step)]
    findings = [Finding("daemon", Level.OK, f"answers at {client.url}")]
    for model in document["models"]:
        findings += [judge_version(model, version) for version in model["versions"]]
    return findings


def check_devices(client: Client, config: Config) -> list[Finding]:
    """Whether devices that are here, configured or wished for can be used.

    The daemon knows best; where it does not answer, they are looked for here, as this user.
    """
    wishes = set(config.defaults.accelerators)
    try:
        devices = client.get("/api/devices")["devices"]
        models = client.get("/api/models")["models"]
    except CommandError:
        return judge_devices(_find_devices(config), wishes)
    for model in models:
        for version in model["versions"]:
            wishes.add(version["requested_device"] or "cpu")
            wishes |= {trial["device"] for trial in version.get("placement", ())}
    return judge_devices(devices, wishes)


def _find_devices(config: Config) -> list[Mapping[str, Any]]:
    settings = hardware_settings(config)
    found = [device for kind in KINDS.values() for device in kind.find(settings)]
    return [{**asdict(device), "up": device.up} for device in found]


def judge_devices(devices: Sequence[Mapping[str, Any]], wishes: Collection[str]) -> list[Finding]:
    """What the devices of `/api/devices` mean for the operator.

    Args:
        wishes: kinds and ids of devices that models shall run on.
    """
    findings = []
    for device in devices:
        id_, kind = device["id"], device["kind"]
        check = f"device {id_}"
        named = ", ".join(filter(None, (device.get("name"), device.get("driver"))))
        if device["up"]:
            findings.append(Finding(check, Level.OK, named or "can be used"))
        elif (
            id_ in wishes
            or kind in wishes
            or device.get("losses")
            or (kind == "external" and id_ != kind)  # somebody has configured it
        ):
            step = device.get("next_step") or _DEVICE_STEP
            problem = device.get("problem") or "it cannot be used"
            findings.append(Finding(check, Level.WARN, problem, step))
    return findings


def judge_version(model: Mapping[str, Any], version: Mapping[str, Any]) -> Finding:
    """What a version's state, as `/api/models` tells it, means for the operator."""
    check = f"model {model['name']} {version['version']}"
    state, reason = version["state"], version["reason"]
    detail = f"{state}: {reason}" if reason else state
    if not model["wanted"]:
        return Finding(check, Level.OK, detail)
    if state == "READY":
        return _judge_answering(check, detail, version)
    if state == "UNAVAILABLE":
        return Finding(check, Level.FAIL, detail, _next_step(reason))
    return Finding(check, Level.WARN, detail, "wait until it is READY")


def _judge_answering(check: str, state: str, version: Mapping[str, Any]) -> Finding:
    if version["degraded"]:
        places = f"runs on {version['device']}, not on {version['requested_device']}"
        detail = f"{places}: {version['degraded_reason']}"
        step = _next_step(version["degraded_reason"], _DEVICE_STEP)
        return Finding(check, Level.WARN, detail, step)
    detail = f"{state} on {version['device']}"
    if version["reason"]:  # a changed file that cannot take its place
        return Finding(check, Level.WARN, detail, _next_step(version["reason"]))
    if notes := version.get("notes"):
        detail = "; ".join((detail, *notes))
        return Finding(check, Level.WARN, detail, "it answers; correct its files if that is wrong")
    return Finding(check, Level.OK, detail)


def _next_step(reason: str, otherwise: str = _OTHER_STEP) -> str:
    return next((step for words, step in _STEPS if words in reason), otherwise)
