"""What is signed of a bundle."""

from __future__ import annotations

import msgspec
import pytest
from support.fleet import facts

from updater.errors import TrustReason, Untrusted
from updater.manifest import Manifest
from updater.target import SignedFile, bundle_path, disagreement, facts_of, read_target, sha256_of

SHA256 = "ab" * 32


def signed(path: str = "digits/digits-1.bundle", **changes: object) -> SignedFile:
    values = {
        "path": path,
        "location": f"targets/digits/{SHA256}.digits-1.bundle",
        "length": 800,
        "hashes": {"sha256": SHA256},
        "custom": msgspec.to_builtins(facts()),
        "role": "models-main",
    }
    return SignedFile(**{**values, **changes})


def refused(file: SignedFile) -> Untrusted:
    with pytest.raises(Untrusted) as caught:
        read_target(file)
    assert (caught.value.reason, caught.value.role) == (TrustReason.MALFORMED, "models-main")
    return caught.value


def test_a_bundles_path_says_model_and_version():
    assert bundle_path("digits", 2) == "digits/digits-2.bundle"


def test_what_follows_the_rules_is_a_target():
    target = read_target(signed())

    assert (target.sha256, target.facts) == (SHA256, facts())


@pytest.mark.parametrize(
    "hashes", [{}, {"md5": "0" * 32}, {"sha512": "0" * 128}, {"sha256": "AB" * 32}, {"sha256": ""}]
)
def test_without_a_sha256_nothing_is_believed(hashes):
    assert "without a sha256" in str(refused(signed(hashes=hashes)))


def test_other_hashes_beside_the_sha256_do_no_harm():
    assert sha256_of(signed(hashes={"md5": "0" * 32, "sha256": SHA256})) == SHA256


@pytest.mark.parametrize(
    "path", ["digits/digits-2.bundle", "other/digits-1.bundle", "digits-1.bundle", "digits/x"]
)
def test_a_bundle_under_another_name_is_refused(path):
    assert "is signed as digits version 1" in str(refused(signed(path)))


@pytest.mark.parametrize(
    "custom",
    [None, [], {}, {**msgspec.to_builtins(facts()), "version": "1"}, {"name": "../digits"}],
)
def test_facts_that_are_none_are_refused(custom):
    assert "facts this device cannot follow" in str(refused(signed(custom=custom)))


def test_a_fact_that_this_device_does_not_know_may_be_a_condition():
    custom = {**msgspec.to_builtins(facts()), "needs_licence": True}

    assert "needs_licence" in str(refused(signed(custom=custom)))


def test_the_facts_are_the_manifests():
    manifest = Manifest(
        name="digits",
        version=3,
        release_counter=2,
        architectures=("arm64",),
        accelerators=("npu",),
        memory_mib=64,
    )

    assert facts_of(manifest) == facts(
        version=3,
        release_counter=2,
        runtime="litert>=2.3,<3",
        architectures=("arm64",),
        accelerators=("npu",),
        memory_mib=64,
    )


def test_a_manifest_that_says_something_else_is_found_out():
    assert disagreement(facts(), facts()) == ""
    assert disagreement(facts(), facts(release_counter=9)) == "release_counter is 9, signed as 1"
