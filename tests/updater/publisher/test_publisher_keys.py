"""Private keys in files."""

from __future__ import annotations

import stat

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import SSlibKey
from support.fleet import PASSPHRASE, OnePassphrase

from updater.chain import KEY_NAME
from updater.publisher.errors import KeysMissing, PublisherError, WrongPassphrase
from updater.publisher.keys import OFFLINE, ONLINE, Keyring, RoleKeys


class Given(OnePassphrase):
    """Passphrases as a test says."""

    def __init__(self, *passphrases: bytes) -> None:
        self.passphrases = passphrases

    def for_new(self, path):  # noqa: ARG002 (a protocol)
        return self.passphrases[0]

    def for_known(self, path):  # noqa: ARG002 (a protocol)
        yield from self.passphrases


@pytest.fixture
def keyring(tmp_path):
    return Keyring([tmp_path / "keys"], OnePassphrase())


def role_of(*keys: SSlibKey, threshold: int = 1) -> RoleKeys:
    return RoleKeys("root", {key.keyid: key for key in keys}, threshold)


def pem(key, encryption) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def test_a_key_signs_what_its_public_half_verifies(keyring):
    public = keyring.create("root-1", OFFLINE)

    (signer,) = keyring.signers(role_of(public))
    public.verify_signature(signer.sign(b"data"), b"data")


def test_it_is_an_ed25519_key_with_its_name(keyring):
    public = keyring.create("root-1", OFFLINE)

    assert (public.keytype, public.scheme) == ("ed25519", "ed25519")
    assert public.unrecognized_fields == {KEY_NAME: "root-1"}


@pytest.mark.parametrize("kind", [OFFLINE, ONLINE])
def test_offline_and_online_keys_lie_apart_and_are_only_for_their_owner(tmp_path, keyring, kind):
    keyring.create("some-1", kind)

    path = tmp_path / "keys" / kind / "some-1.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_it_is_encrypted_with_the_passphrase(tmp_path, keyring):
    keyring.create("root-1", OFFLINE)
    raw = (tmp_path / "keys" / OFFLINE / "root-1.pem").read_bytes()

    assert raw.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert isinstance(load_pem_private_key(raw, PASSPHRASE), Ed25519PrivateKey)
    with pytest.raises(ValueError, match="password"):
        load_pem_private_key(raw, b"another passphrase")


@pytest.mark.parametrize("passphrase", [b"", b"short", b"elevenchars", "zwölf äöüß€".encode()])
def test_a_passphrase_that_is_guessed_in_no_time_is_refused(tmp_path, passphrase):
    keyring = Keyring([tmp_path], Given(passphrase))

    with pytest.raises(PublisherError, match="12 characters or more"):
        keyring.create("root-1", OFFLINE)

    assert not list(tmp_path.rglob("*.pem"))


def test_a_key_is_never_overwritten(tmp_path, keyring):
    keyring.create("root-1", OFFLINE)
    before = (tmp_path / "keys" / OFFLINE / "root-1.pem").read_bytes()

    with pytest.raises(PublisherError, match="not overwritten"):
        keyring.create("root-1", ONLINE)

    assert (tmp_path / "keys" / OFFLINE / "root-1.pem").read_bytes() == before


def test_keys_are_found_on_several_sticks(tmp_path):
    publics = [
        Keyring([tmp_path / name], OnePassphrase()).create(f"root-{name}", OFFLINE)
        for name in ("alice", "bob")
    ]
    both = Keyring([tmp_path / "alice", tmp_path / "bob" / OFFLINE], OnePassphrase())

    assert len(both.signers(role_of(*publics, threshold=2))) == 2


def test_too_few_keys_are_named(tmp_path, keyring):
    here = keyring.create("root-1", OFFLINE)
    there = Keyring([tmp_path / "safe"], OnePassphrase()).create("root-2", OFFLINE)

    with pytest.raises(KeysMissing, match="needs 2 of its keys, 1 of them here") as caught:
        keyring.signers(role_of(here, there, threshold=2))

    assert (caught.value.role, caught.value.names) == ("root", ("root-2",))
    assert not keyring.has(role_of(here, there, threshold=2))
    assert keyring.has(role_of(here, there, threshold=1))


def test_the_passphrase_that_fits_is_found(tmp_path, keyring):
    public = keyring.create("root-1", OFFLINE)
    several = Keyring([tmp_path / "keys"], Given(b"a wrong passphrase", PASSPHRASE))

    assert len(several.signers(role_of(public))) == 1


def test_a_wrong_passphrase_names_the_file_and_nothing_else(tmp_path, keyring):
    public = keyring.create("root-1", OFFLINE)
    wrong = Keyring([tmp_path / "keys"], Given(b"a wrong passphrase"))

    with pytest.raises(WrongPassphrase) as caught:
        wrong.signers(role_of(public))

    assert str(caught.value.path) in str(caught.value)
    assert "wrong passphrase" not in str(caught.value).replace("passphrases given", "")


def replaced(tmp_path, keyring, raw: bytes) -> RoleKeys:
    """A role whose key's file holds something else."""
    public = keyring.create("root-1", OFFLINE)
    (tmp_path / "keys" / OFFLINE / "root-1.pem").write_bytes(raw)
    return role_of(public)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (pem(Ed25519PrivateKey.generate(), NoEncryption()), "not encrypted"),
        (b"", "not encrypted"),
        (
            pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(PASSPHRASE)),
            "another key than the signed root-1",
        ),
        (
            pem(ec.generate_private_key(ec.SECP256R1()), BestAvailableEncryption(PASSPHRASE)),
            "no ed25519 key",
        ),
        (b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n", "none of the passphrases"),
    ],
    ids=["in the clear", "empty", "another key", "another kind", "garbage"],
)
def test_a_file_that_is_not_that_key_is_refused(tmp_path, keyring, raw, message):
    role = replaced(tmp_path, keyring, raw)

    with pytest.raises(PublisherError, match=message):
        keyring.signers(role)


def test_a_key_without_a_name_is_called_by_its_id(keyring):
    public = SSlibKey.from_crypto(Ed25519PrivateKey.generate().public_key())

    assert role_of(public).name(public.keyid) == public.keyid[:8]
