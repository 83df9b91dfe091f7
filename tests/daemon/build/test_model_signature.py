"""The OpenSSF model signature covers every file, and nothing but the right key makes it."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
from support.inferctl import TIMEOUT_S, run_python
from support.modelkeys import make_key, public_of

from daemon.build.errors import CannotSign, SignatureRejected
from daemon.build.signature import SIGNATURE_FILE, sign, verify

MISSING = "needs the extra 'build' (model-signing)"
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("model_signing") is None, reason=MISSING
)


@pytest.fixture
def key(tmp_path):
    return make_key(tmp_path, "ours")


@pytest.fixture
def folder(tmp_path):
    """Files as a bundle may have them."""
    folder = tmp_path / "net-2"
    (folder / "samples").mkdir(parents=True)
    (folder / "model.tflite").write_bytes(b"a model")
    (folder / "model.toml").write_bytes(b"[model]\n")
    (folder / "samples" / "one.npy").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def signed(folder, key):
    sign(folder, key=key)
    return folder


@needs_library
class TestSignature:
    def test_what_was_signed_is_accepted(self, signed, key):
        verify(signed, key=public_of(key))

    @pytest.mark.parametrize("kind", ["p256", "p384", "p521"])
    def test_every_curve_of_the_standard(self, kind, folder, tmp_path):
        key = make_key(tmp_path, "other", kind=kind)

        sign(folder, key=key)

        verify(folder, key=public_of(key))

    def test_it_is_what_the_standard_says(self, signed):
        document = json.loads((signed / SIGNATURE_FILE).read_bytes())

        statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
        assert statement["predicateType"] == "https://model_signing/signature/v1.0"
        assert statement["subject"][0]["name"] == "net-2"
        names = [each["name"] for each in statement["predicate"]["resources"]]
        assert names == ["model.tflite", "model.toml", "samples/one.npy"]

    def test_the_standards_own_program_accepts_it(self, signed, key):
        command = [sys.executable, "-m", "model_signing", "verify", "key", "."]
        options = ["--signature", SIGNATURE_FILE, "--ignore-paths", SIGNATURE_FILE]

        done = subprocess.run(
            [*command, *options, "--public_key", str(public_of(key))],
            cwd=signed,
            timeout=TIMEOUT_S,
            check=False,
            capture_output=True,
            text=True,
        )

        assert done.returncode == 0, done.stderr

    def test_what_the_standards_own_program_signed_is_accepted(self, folder, key):
        command = [sys.executable, "-m", "model_signing", "sign", "key", "."]
        options = ["--signature", SIGNATURE_FILE, "--private_key", str(key)]
        subprocess.run(
            [*command, *options], cwd=folder, timeout=TIMEOUT_S, check=True, capture_output=True
        )

        verify(folder, key=public_of(key))

    def test_signing_again_replaces_it(self, signed, key):
        before = (signed / SIGNATURE_FILE).read_bytes()

        sign(signed, key=key)

        assert (signed / SIGNATURE_FILE).read_bytes() != before  # it holds a random number
        verify(signed, key=public_of(key))

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda f: (f / "model.toml").write_bytes(b"[Model]\n"), "model.toml differs"),
            (lambda f: (f / "model.toml").unlink(), "model.toml is missing"),
            (lambda f: (f / "samples" / "two").write_bytes(b""), "samples/two is not signed"),
            (lambda f: (f / ".gitignore").write_bytes(b""), ".gitignore is not signed"),
            (lambda f: (f / "model.toml").rename(f / "b"), "model.toml is missing, b is not sig"),
        ],
        ids=["changed", "missing", "added", "hidden", "renamed"],
    )
    def test_files_that_are_not_as_they_were_are_named(self, change, told, signed, key):
        change(signed)

        with pytest.raises(SignatureRejected, match=told):
            verify(signed, key=public_of(key))

    def test_another_key_is_told(self, signed, tmp_path):
        other = make_key(tmp_path, "theirs")

        with pytest.raises(SignatureRejected, match="not made with the key"):
            verify(signed, key=public_of(other))

    def test_digests_that_were_made_to_fit_are_told(self, signed, key):
        """Whoever changes a file changes its digest too; the signature does not follow."""
        document = json.loads((signed / SIGNATURE_FILE).read_bytes())
        envelope = document["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        statement["predicate"]["resources"].pop(1)
        (signed / "model.toml").unlink()
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        (signed / SIGNATURE_FILE).write_text(json.dumps(document))

        with pytest.raises(SignatureRejected, match="not made with the key"):
            verify(signed, key=public_of(key))

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"{}",
            b"[]",
            b"\xff" * 20,
            b"[" * 100_000,
            b'{"dsseEnvelope": {"payload": "e30="}}',
            b'{"dsseEnvelope": {"payload": 7}}',
        ],
        ids=range(7),
    )
    def test_what_is_no_signature_is_told(self, raw, signed, key):
        (signed / SIGNATURE_FILE).write_bytes(raw)

        with pytest.raises(SignatureRejected, match="no model signature"):
            verify(signed, key=public_of(key))

    def test_a_signature_of_any_size_is_not_read(self, signed, key):
        (signed / SIGNATURE_FILE).write_bytes(bytes((1 << 20) + 1))

        with pytest.raises(SignatureRejected, match="larger than"):
            verify(signed, key=public_of(key))

    def test_a_folder_without_a_signature_is_told(self, folder, key):
        with pytest.raises(CannotSign, match=r"has no model\.sig"):
            verify(folder, key=public_of(key))

    def test_an_encrypted_key_opens_with_one_of_the_passphrases(self, folder, tmp_path):
        key = make_key(tmp_path, "safe", passphrase=b"six words")

        sign(folder, key=key, passphrases=[b"wrong", b"six words"])

        verify(folder, key=public_of(key))

    @pytest.mark.parametrize("passphrases", [[], [b"wrong"]])
    def test_an_encrypted_key_does_not_open_without_it(self, passphrases, folder, tmp_path):
        key = make_key(tmp_path, "safe", passphrase=b"six words")

        with pytest.raises(CannotSign, match="does not open"):
            sign(folder, key=key, passphrases=passphrases)

        assert not (folder / SIGNATURE_FILE).exists()

    @pytest.mark.parametrize("kind", ["ed25519", "k1"])
    def test_a_key_of_another_kind_is_refused(self, kind, folder, tmp_path):
        key = make_key(tmp_path, "other", kind=kind)

        with pytest.raises(CannotSign, match="expected an ECDSA key"):
            sign(folder, key=key)

    @pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\n"])
    def test_what_is_no_key_is_refused(self, content, signed, tmp_path):
        file = tmp_path / "file.pem"
        file.write_bytes(content)

        with pytest.raises(CannotSign, match="expected an ECDSA key"):
            sign(signed, key=file)
        with pytest.raises(CannotSign, match="expected an ECDSA key"):
            verify(signed, key=file)

    def test_a_private_key_is_not_taken_for_a_public_one(self, signed, key):
        with pytest.raises(CannotSign, match="public to verify"):
            verify(signed, key=key)


ABSENT = """
import sys
from pathlib import Path

sys.modules["model_signing"] = None  # as where it is not installed

from daemon.build.errors import CannotSign
from daemon.build.signature import sign, verify

folder, key = Path(sys.argv[1]), Path(sys.argv[2])
for attempt in (sign, verify):
    try:
        attempt(folder, key=key)
    except CannotSign as exc:
        print(exc)
"""


def test_without_the_library_the_command_that_installs_it_is_told(folder, key):
    done = run_python(ABSENT, folder, key)

    told = "model signatures need a library that is not here: pip install 'inferd[build]'\n"
    assert done.stdout == 2 * told, done.stderr


def test_nothing_is_left_of_a_signature_that_was_not_made(folder, tmp_path):
    """The folder can be bundled as it was."""
    before = sorted(folder.rglob("*"))
    shutil.copy(folder / "model.toml", tmp_path / "no.pem")

    with pytest.raises(CannotSign):
        sign(folder, key=tmp_path / "no.pem")

    assert sorted(folder.rglob("*")) == before
