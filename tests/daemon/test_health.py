"""Facts about models to one word."""

from __future__ import annotations

from daemon.health import judge_readiness
from daemon.models.status import ModelStatus, VersionState, VersionStatus


def version(number, state, reason=""):
    return VersionStatus(version=number, state=state, reason=reason)


def model(*versions, wanted=True, required=()):
    return ModelStatus(name="m", versions=versions, wanted=wanted, required=required)


READY_1 = version(1, VersionState.READY)
REFUSED_2 = version(2, VersionState.UNAVAILABLE, "no flatbuffer")


def test_no_models_at_all_is_ready():
    assert judge_readiness([]).ready


def test_nothing_is_ready_before_the_disk_was_looked_at():
    assert not judge_readiness([], has_looked=False).ready


def test_a_model_with_one_version_that_answers_is_ready():
    assert judge_readiness([model(READY_1)]) == judge_readiness([])


def test_a_model_that_is_being_loaded_is_not_ready_and_says_so():
    readiness = judge_readiness([model(version(1, VersionState.LOADING))])

    assert not readiness.ready
    assert readiness.reasons == {"m": "version 1 is being loaded"}


def test_a_refused_newer_version_is_told_while_the_older_one_keeps_it_ready():
    readiness = judge_readiness([model(REFUSED_2, READY_1)])

    assert readiness.ready
    assert readiness.reasons == {"m": "version 2: no flatbuffer"}


def test_a_version_that_the_configuration_names_must_answer():
    assert not judge_readiness([model(REFUSED_2, READY_1, required=(1, 2))]).ready


def test_a_version_that_is_named_and_was_never_found_is_told():
    readiness = judge_readiness([model(READY_1, required=(1, 3))])

    assert not readiness.ready
    assert readiness.reasons == {"m": "not found: version 3"}


def test_a_model_the_operator_unloaded_is_not_waited_for():
    unloaded = version(1, VersionState.UNAVAILABLE, "it was unloaded by the operator")

    assert judge_readiness([model(unloaded, wanted=False)]).ready


def test_one_model_that_does_not_answer_makes_the_box_not_ready():
    other = ModelStatus(name="n", versions=(REFUSED_2,))

    readiness = judge_readiness([model(READY_1), other])

    assert (readiness.ready, set(readiness.reasons)) == (False, {"n"})
