"""A fleet that knows its devices by MQTT alone: hints go down, events and states come up.

Everything is real: publisher, web server, broker, daemon, updater, model.
"""

import queue

import pytest
import requests
from support import tflite_builder
from support.box import MODEL
from support.mosquitto import running_broker
from support.mqtt_client import TestClient
from support.servicebox import QUICK, running_services, wait_until

pytestmark = pytest.mark.broker

HINT = "inferd/any/updates/refresh"
WAIT_S = 60
INFERENCE = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 4}]}


class Fleet:
    """The operator of a fleet, at the broker."""

    def __init__(self, box, broker):
        self._box = box
        self.client = TestClient(broker.port, client_id="fleet")
        self.client.subscribe("inferd/box-1/updates")
        self.events = []

    def ship(self, version, model=None):
        """Sign a release, assign it, and give the hint."""
        packed = tflite_builder.scale(float(version), batch=1) if model is None else model
        self._box.publisher.ship(version, packed, probation=QUICK)
        self.client.publish(HINT, b"look", retain=True)

    def wait_for(self, **facts):
        """The first event that comes with these facts; those before it stay in `events`."""
        while True:
            try:
                heard = self.client.next(WAIT_S).json
            except queue.Empty:
                pytest.fail(f"no {facts} after {self.events[-5:]}\n{self._box.log[-3000:]}")
            self.events.append(heard)
            if heard | facts == heard:
                return heard

    @property
    def numbers(self):
        """Of the events, each at least once, in order; repetitions left out."""
        return list(dict.fromkeys(event["sequence"] for event in self.events))


@pytest.fixture
def broker(tmp_path):
    with running_broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def box(tmp_path, broker):
    with running_services(tmp_path, mqtt={"url": broker.url}) as box:
        yield box


@pytest.fixture
def fleet(box, broker):
    fleet = Fleet(box, broker)
    yield fleet
    fleet.client.close()


def answer_of(box):
    """What the model makes of ones."""
    url = f"{box.daemon.url}/v2/models/{MODEL}/infer"
    return requests.post(url, json=INFERENCE, timeout=WAIT_S).json()["outputs"][0]["data"][0]


def roll_back(box):
    answer = requests.post(f"{box.daemon.url}/api/models/{MODEL}/rollback", timeout=WAIT_S)
    return answer.status_code, answer.json()


def test_a_hint_brings_a_model_that_the_box_never_knew_and_events_tell_of_it(box, fleet):
    fleet.ship(1)

    committed = fleet.wait_for(state="committed")

    assert answer_of(box) == 1.0
    assert (committed["device"], committed["model"], committed["version"]) == ("box-1", MODEL, 1)
    assert fleet.numbers == list(range(1, len(fleet.numbers) + 1))


def test_a_bad_release_is_told_of_and_the_one_before_answers_on(box, fleet):
    fleet.ship(1)
    fleet.wait_for(state="committed", version=1)

    fleet.ship(2, b"TFL3 this is no model")

    told = fleet.wait_for(state="rolling_back", version=2)
    assert "Flatbuffer" in told["reason"]
    assert answer_of(box) == 1.0


def test_an_operator_goes_back_over_http_and_is_told_when_there_is_no_way_back(box, fleet):
    for version in (1, 2):
        fleet.ship(version)
        fleet.wait_for(state="idle", version=version)

    went = roll_back(box)
    fleet.wait_for(state="idle", version=2)
    again = roll_back(box)

    assert went == (202, {"model": MODEL, "version": 1})
    assert answer_of(box) == 1.0
    assert again[0] == 409
    assert MODEL in again[1]["error"]


def test_an_update_while_the_broker_is_away_is_told_of_when_it_is_back(box, fleet, broker):
    fleet.ship(1)
    fleet.wait_for(state="idle", version=1)
    broker.stop()
    box.publisher.ship(2, tflite_builder.scale(2.0, batch=1), probation=QUICK)
    looked = requests.post(f"{box.daemon.url}/api/updates/refresh", timeout=WAIT_S)
    wait_until(lambda: answer_of(box) == 2.0)
    box.daemon.kill()

    broker.start()
    box.daemon.start()

    fleet.wait_for(state="idle", version=2)
    assert looked.status_code == 202
    assert fleet.numbers == list(range(1, len(fleet.numbers) + 1))


def test_the_state_says_what_serves_and_what_goes_on(box, fleet, broker):
    client = TestClient(broker.port)
    fleet.ship(1)
    fleet.wait_for(state="idle", version=1)
    client.subscribe("inferd/box-1/state")

    while not (state := client.next(WAIT_S).json)["models"] or state["updates"] is None:
        pass
    client.close()

    assert state["updates"]["models"][0] | {"model": MODEL} == state["updates"]["models"][0]
    assert state["models"][0]["versions"][0]["version"] == "1"
