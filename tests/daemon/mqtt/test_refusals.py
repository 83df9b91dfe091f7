"""Every error has a code."""

import json

import pytest

from daemon import errors
from daemon.mqtt.messages import Publication
from daemon.mqtt.refusals import CODES, code_of, refusal, too_large_refusal


def _subclasses(cls):
    found = {cls}
    for sub in cls.__subclasses__():
        found |= _subclasses(sub)
    return found


OURS = sorted(
    (cls for cls in _subclasses(errors.DaemonError) if cls.__module__ == "daemon.errors"),
    key=lambda cls: cls.__name__,
)


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_every_error_of_the_daemon_has_its_own_line(cls):
    assert cls in CODES


def test_the_table_names_nothing_else():
    assert set(CODES) == set(OURS)


def test_a_class_without_a_line_gets_that_of_its_base():
    class Peculiar(errors.BadTensor):
        pass

    assert code_of(Peculiar("x")) == "bad_tensor"


def test_a_refusal_has_the_form_of_the_contract():
    assert json.loads(refusal("malformed", "no", "7")) == {
        "error": {"code": "malformed", "message": "no"},
        "id": "7",
    }


def test_the_refusal_in_place_of_a_result_goes_to_the_same_receiver():
    result = Publication("t", b"x" * 5000, qos=1, correlation=b"c", request_id="7")

    small = too_large_refusal(result, 1000)

    assert (small.topic, small.qos, small.correlation) == ("t", 1, b"c")
    body = json.loads(small.payload)
    assert body["error"]["code"] == "too_large"
    assert "5000 bytes" in body["error"]["message"]
    assert body["id"] == "7"
