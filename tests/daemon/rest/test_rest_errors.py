"""Every error has a status in every protocol."""

from __future__ import annotations

import json

import pytest

from daemon import errors
from daemon.rest import errors as rest_errors
from daemon.rest.errors import KSERVE, NATIVE, TFSERVING, error_response, status_of


def subclasses(cls):
    return {cls} | {deeper for sub in cls.__subclasses__() for deeper in subclasses(sub)}


ALL = sorted(subclasses(errors.DaemonError), key=lambda cls: cls.__name__)
OURS = {cls for cls in ALL if cls.__module__ in {errors.__name__, rest_errors.__name__}}


def test_every_error_has_a_line_of_its_own():
    assert set(NATIVE) == OURS


@pytest.mark.parametrize("table", [NATIVE, KSERVE, TFSERVING], ids=["native", "kserve", "tfs"])
@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_has_a_status(cls, table):
    assert 400 <= status_of(cls.__new__(cls), table) <= 504


@pytest.mark.parametrize(
    ("error", "native", "kserve", "tfserving"),
    [
        (errors.Malformed("m"), 400, 400, 400),
        (errors.BadTensor("m"), 422, 400, 400),
        (errors.UnsupportedMedia("m"), 415, 400, 400),
        (errors.TooLarge("m", limit=1, unit="bytes"), 413, 413, 413),
        (errors.Unsupported("m"), 501, 501, 501),
        (errors.Forbidden("m"), 403, 403, 403),
        (errors.ModelNotFound("m"), 404, 404, 404),
        (errors.VersionNotFound("m", 2), 404, 404, 404),
        (errors.LabelNotFound("m", "l"), 404, 404, 400),
        (errors.SignatureNotFound("m", "s", ("t",)), 404, 400, 400),
        (errors.ModelUnavailable("m", "r"), 503, 503, 503),
        (errors.Overloaded("m", reason=errors.RefusalReason.QUEUE_FULL), 503, 503, 503),
        (errors.DeadlineExceeded("m"), 504, 504, 504),
        (errors.PredictionFailed("m"), 500, 500, 500),
        (errors.WorkerCrashed("m"), 500, 500, 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_statuses_are_those_of_the_contract(error, native, kserve, tfserving):
    tables = (NATIVE, KSERVE, TFSERVING)

    assert [status_of(error, table) for table in tables] == [native, kserve, tfserving]


def test_an_error_is_told_with_its_facts():
    response = error_response(errors.TooLarge("too much", limit=5, unit="pixels"))

    assert json.loads(response.body) == {"error": "too much", "limit": 5, "unit": "pixels"}


def test_busy_says_when_to_come_back():
    error = errors.Overloaded("full", reason=errors.RefusalReason.QUEUE_FULL, retry_after_s=7)

    response = error_response(error)

    assert response.headers["Retry-After"] == "7"
    assert json.loads(response.body) == {"error": "full", "reason": "queue_full"}


def test_an_unavailable_model_says_why():
    response = error_response(errors.ModelUnavailable("cats", "worker restarting", passes=True))

    assert json.loads(response.body)["reason"] == "worker restarting"
    assert json.loads(response.body)["model"] == "cats"
    assert response.headers["Retry-After"] == "1"


def test_a_client_is_not_told_to_come_back_to_what_only_an_operator_can_mend():
    response = error_response(errors.ModelUnavailable("cats", "not a flatbuffer"))

    assert "Retry-After" not in response.headers
