"""Every command of the README does what the README says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass

import pytest
from support.documents import commands, forget_what_differs, json_answers
from support.inferctl import REPOSITORY, serving

from daemon.cli.broker import HOST, run_broker
from daemon.cli.mqttclient import MqttRequester

README = (REPOSITORY / "README.md").read_text()
COMMANDS = commands(README)
HTTP_ANSWER, MQTT_ANSWER = json_answers(README)
INFERCTL = ".venv/bin/inferctl"


@dataclass(frozen=True)
class Reader:
    """Somebody who follows the README, on other ports."""

    url: str
    port: int

    def adapt(self, line: str) -> str:
        line = line.replace("http://127.0.0.1:8080", self.url).replace("1883", str(self.port))
        return line.replace(INFERCTL, f"INFERD_URL={self.url} {sys.executable} -m daemon.cli.main")


@pytest.fixture(scope="module")
def reader(mosquitto, tmp_path_factory):
    serve = next(line for line in COMMANDS if line.startswith(f"{INFERCTL} serve "))
    with run_broker(tmp_path_factory.mktemp("broker")) as broker:
        words = serve.split()[2:]
        model, option, _ = words
        with (
            serving(REPOSITORY / model, option, broker.url) as running,
            MqttRequester(HOST, broker.port, socket.gethostname()) as requester,
        ):
            requester.wait_until_online()
            yield Reader(running.url, broker.port)


def find(word: str) -> str:
    """The one command with this word."""
    (line,) = [line for line in COMMANDS if word in line.split()]
    return line


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make_knows_the_target(line, shell):
    shell(line.replace("make ", "make --dry-run "), cwd=REPOSITORY)


@pytest.mark.broker
def test_the_http_request_gets_the_answer_shown(reader, shell):
    answer = json.loads(shell(reader.adapt(find("curl")), cwd=REPOSITORY))

    assert forget_what_differs(answer) == forget_what_differs(HTTP_ANSWER)


@pytest.mark.broker
def test_the_mqtt_request_gets_the_answer_shown(reader, shell):
    listen = reader.adapt(find("mosquitto_sub")).removesuffix("&").split()
    # With -d it says when it has subscribed; stdbuf lets that through at once.
    command = ["stdbuf", "-oL", *listen, "-d"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as subscriber:
        try:
            next(line for line in subscriber.stdout if line.startswith("Subscribed"))
            shell(reader.adapt(find("mosquitto_pub")), cwd=REPOSITORY)
            answer = next(line for line in subscriber.stdout if line.startswith("{"))
        finally:
            subscriber.kill()

    assert forget_what_differs(json.loads(answer)) == forget_what_differs(MQTT_ANSWER)


@pytest.mark.broker
@pytest.mark.parametrize("verb", ["models", "devices", "doctor"])
def test_the_commands_that_show_what_runs_where_work(reader, shell, verb):
    assert "fashion" in shell(reader.adapt(find(verb)), cwd=REPOSITORY)


def test_no_command_of_the_readme_is_left_untried():
    tried = ("make ", "curl ", "mosquitto_sub ", "mosquitto_pub ")
    verbs = ("serve ", "models", "devices", "doctor")
    known = (*tried, *(f"{INFERCTL} {verb}" for verb in verbs))

    assert [line for line in COMMANDS if not line.startswith(known)] == []
