"""`inferctl bundle sign` and `bundle verify --key`, as a publisher uses them."""

from __future__ import annotations

import base64
import importlib.util
import json
import os

import pytest
from support import tflite_builder
from support.inferctl import inferctl
from support.modelkeys import make_key, public_of

from updater.bundle import open_bundle, read_manifest, verify_bundle

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None,
    reason="needs the extra 'build' (model-signing)",
)


@pytest.fixture
def bundle(tmp_path):
    model = tmp_path / "twice.tflite"
    model.write_bytes(tflite_builder.scale(2.0, batch=1))
    out = tmp_path / "twice-3.bundle"
    done = inferctl("bundle", "build", model, "-o", out, "--model-version", "3")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def key(tmp_path):
    return make_key(tmp_path, "ours")


def signed(bundle, key, *options, **environment):
    done = inferctl("bundle", "sign", bundle, "--key", key, *options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_library
class TestSigned:
    def test_a_signed_bundle_is_one_with_a_file_more(self, bundle, key):
        before = read_manifest(bundle)

        said = signed(bundle, key)

        after = verify_bundle(bundle)
        paths = [entry.path for entry in after.files]
        assert paths == ["model.sig", *(entry.path for entry in before.files)]
        assert (after.name, after.version, after.runtime) == ("twice", 3, before.runtime)
        assert "twice version 3, 3 files" in said

    def test_verify_says_whose_it_is(self, bundle, key):
        signed(bundle, key)

        done = inferctl("bundle", "verify", bundle, "--key", public_of(key))

        assert done.returncode == 0, done.stderr
        assert f"its model signature is made with the key of {public_of(key)}" in done.stdout

    def test_the_bundle_that_was_given_stays_when_another_is_named(self, bundle, key):
        before = bundle.read_bytes()
        out = bundle.with_name("signed.bundle")

        signed(bundle, key, "-o", out)

        assert bundle.read_bytes() == before
        assert "model.sig" in [entry.path for entry in read_manifest(out).files]

    def test_only_the_signature_differs_between_two_signings(self, bundle, key, tmp_path):
        one, two = tmp_path / "one.bundle", tmp_path / "two.bundle"
        signed(bundle, key, "-o", one)
        signed(bundle, key, "-o", two)

        files = [
            {entry.path: entry.sha256 for entry in read_manifest(each).files} for each in (one, two)
        ]

        assert {path for path in files[0] if files[0][path] != files[1][path]} == {"model.sig"}

    def test_signing_again_replaces_the_signature(self, bundle, key, tmp_path):
        signed(bundle, key)
        other = make_key(tmp_path, "theirs")

        signed(bundle, other)

        assert inferctl("bundle", "verify", bundle, "--key", public_of(other)).returncode == 0
        assert inferctl("bundle", "verify", bundle, "--key", public_of(key)).returncode == 1

    def test_a_device_takes_a_signed_bundle(self, bundle, key):
        signed(bundle, key)

        assert inferctl("bundle", "test", bundle).returncode == 0

    def test_the_signature_names_the_model_and_its_version(self, bundle, key, tmp_path):
        signed(bundle, key)
        into = tmp_path / "into"
        into.mkdir()
        open_bundle(bundle, into, limit_bytes=1 << 20)

        document = json.loads((into / "model.sig").read_bytes())
        statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
        assert statement["subject"][0]["name"] == "twice-3"

    @pytest.mark.parametrize("by", ["file", "environment"])
    def test_the_passphrase_comes_from_a_file_or_the_environment(self, by, bundle, tmp_path):
        key = make_key(tmp_path, "safe", passphrase=b"six random words")
        words = tmp_path / "words"
        words.write_text("six random words\n")

        options = ["--passphrase-file", words] if by == "file" else []
        given = {"INFERD_KEY_PASSPHRASE": "six random words"} if by == "environment" else {}
        signed(bundle, key, *options, **given)

        assert inferctl("bundle", "verify", bundle, "--key", public_of(key)).returncode == 0

    def test_a_wrong_passphrase_changes_nothing(self, bundle, tmp_path):
        key = make_key(tmp_path, "safe", passphrase=b"six random words")
        before = bundle.read_bytes()

        given = {"INFERD_KEY_PASSPHRASE": "wrong"}
        done = inferctl("bundle", "sign", bundle, "--key", key, **given)

        assert done.returncode == 1
        assert "no passphrase that fits" in done.stderr
        assert bundle.read_bytes() == before

    def test_a_bundle_without_a_signature_is_told(self, bundle, key):
        done = inferctl("bundle", "verify", bundle, "--key", public_of(key))

        assert done.returncode == 1
        assert "it is not signed: it has no model.sig" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sign", "no.bundle", "--key", "ours.pem"], "argument FILE: no such file"),
        (["sign", "twice-3.bundle", "--key", "no.pem"], "argument --key: no such file"),
        (["sign", "twice-3.bundle"], "required: --key"),
        (["sign", "twice-3.bundle", "--key", "ours.pem", "-o", "no/x"], "argument -o: expected"),
        (["sign", "twice-3.bundle", "--key", "ours.pem", "-o", "pipe"], "no link: pipe"),
        (["verify", "twice-3.bundle", "--key", "no.pem"], "argument --key: no such file"),
    ],
    ids=["no bundle", "no key", "key not named", "no folder for it", "no file", "no public key"],
)
@pytest.mark.usefixtures("key")
def test_what_cannot_be_done_is_told_before_anything_is_written(
    words, told, bundle, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    before = bundle.read_bytes()

    done = inferctl("bundle", *words)

    assert done.returncode == 2
    assert told in done.stderr
    assert bundle.read_bytes() == before


def test_a_file_that_is_no_bundle_is_not_signed(tmp_path, key):
    file = tmp_path / "x.bundle"
    file.write_bytes(b"no bundle" * 200)

    done = inferctl("bundle", "sign", file, "--key", key)

    assert done.returncode == 1
    assert "it does not begin with manifest.json" in done.stderr
    assert file.read_bytes() == b"no bundle" * 200
