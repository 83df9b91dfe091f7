"""Which versions are served, and what labels point to."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config import ServedModel
from daemon.models.versions import default_version, labels_of, version_problems, wanted_versions

FOUND = (1, 9, 10, 4)


def entry(**keys: object) -> ServedModel:
    return ServedModel(path=Path("m"), **keys)


@pytest.mark.parametrize(
    ("configured", "wanted"),
    [
        (None, {10}),
        (entry(), {10}),
        (entry(latest=2), {9, 10}),
        (entry(latest=100), {1, 4, 9, 10}),
        (entry(version_policy="all"), {1, 4, 9, 10}),
        (entry(version_policy="specific", versions=(4, 1)), {1, 4}),
        (entry(version_policy="specific", versions=(4, 77)), {4}),
        (entry(version_policy="specific", versions=(77,)), set()),
    ],
)
def test_the_policy_chooses_among_the_versions_found(configured, wanted):
    assert wanted_versions(FOUND, configured) == wanted


@pytest.mark.parametrize("policy", ["latest", "all", "specific"])
def test_nothing_found_means_nothing_wanted(policy):
    assert wanted_versions((), entry(version_policy=policy, versions=(1,))) == frozenset()


def test_the_newest_by_number_is_the_default():
    assert default_version(FOUND) == 10


def test_nothing_served_has_no_default():
    assert default_version(()) is None


def test_a_label_points_only_to_a_version_that_is_served():
    configured = entry(version_policy="all", labels={"stable": 4, "canary": 11})

    assert labels_of(FOUND, configured) == {"stable": 4}


def test_a_model_without_an_entry_has_no_labels_and_no_problems():
    assert (labels_of(FOUND, None), version_problems(FOUND, None)) == ({}, ())


def test_versions_and_labels_that_point_nowhere_are_told():
    configured = entry(version_policy="specific", versions=(4, 77), labels={"stable": 4, "old": 1})

    assert version_problems(FOUND, configured) == (
        "version 77 is configured and was not found",
        "label 'old' names version 1, which is not served",
    )


def test_labels_of_served_versions_are_no_problem():
    assert version_problems(FOUND, entry(latest=1, labels={"stable": 10})) == ()
