"""The OpenSSF model signature of a bundle's files: made and checked on the publisher's side.

A device does not look at it: what it believes is signed for the whole bundle (updater/trust.py).
It is for whoever has the model's files, in or out of a bundle, and the publisher's public key:
`model.sig` says by a standard that other tools check that these files are that publisher's.

1. It covers every file but itself.
2. The key is ECDSA on P-256, P-384 or P-521, in PEM. Its signatures hold a random number, so two
   of the same files differ in their bytes.
3. What is checked is the signature, and that the files it covers are all that are there. Who has
   the key is not said in it.

Source: OpenSSF Model Signing v1.0, by the package `model-signing`, which is imported when it is
first used: it is part of an extra, and takes half a second.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from daemon.build.errors import CannotSign, SignatureRejected

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

SIGNATURE_FILE = "model.sig"
EXTRA = "pip install 'inferd[build]'"

_MAX_SIGNATURE_BYTES = 1 << 20  # a thousand files take a quarter of it
_MAX_KEY_BYTES = 1 << 16
# What the library raises for bytes that are no signature. None of it is documented.
_DAMAGED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, InvalidSignature)
_BAD_KEY = (ValueError, TypeError, AttributeError, UnsupportedAlgorithm)


def sign(folder: Path, *, key: Path, passphrases: Iterable[bytes] = ()) -> None:
    """Write `model.sig` for all files of a folder, whose name becomes the model's in it.

    Args:
        folder: holds what is to be signed and nothing else, but perhaps an old `model.sig`.
        key: a private key.
        passphrases: those that may open it, tried one after the other where it is encrypted.

    Raises:
        CannotSign: the library is not installed, or the key cannot be used.
        OSError: a file cannot be read or written.
    """
    library = _library("signing")
    config = library.Config().set_hashing_config(_hashing())
    signer = _with_key(config, key, passphrases)
    (folder / SIGNATURE_FILE).unlink(missing_ok=True)
    signer.sign(folder, folder / SIGNATURE_FILE)


def verify(folder: Path, *, key: Path) -> None:
    """Check a folder's `model.sig` against every other file in it.

    Args:
        key: the public key.

    Raises:
        SignatureRejected: it is not this key's, or a file differs, is missing or is not signed.
        CannotSign: the library is not installed, there is no signature, or the key cannot be used.
        OSError: a file cannot be read.
    """
    library = _library("verifying")
    with _usable(key):
        verifier = library.Config().use_elliptic_key_verifier(public_key=key)
    signature = folder / SIGNATURE_FILE
    if not signature.is_file():
        raise CannotSign(f"it is not signed: it has no {SIGNATURE_FILE}")
    if signature.stat().st_size > _MAX_SIGNATURE_BYTES:
        raise SignatureRejected(f"{SIGNATURE_FILE} is larger than {_MAX_SIGNATURE_BYTES} bytes")
    signed = _signed_files(signature.read_bytes())
    if difference := _difference(folder, signed):
        raise SignatureRejected(f"it is not as it was signed: {difference}")
    try:
        verifier.set_hashing_config(_hashing()).verify(folder, signature)
    except _DAMAGED as exc:
        raise SignatureRejected(f"{SIGNATURE_FILE} is not made with the key of {key}") from exc


def is_encrypted(key: Path) -> bool:
    """Whether a private key's file wants a passphrase.

    Raises:
        OSError: it cannot be read.
    """
    with key.open("rb") as file:
        return b"ENCRYPTED" in file.read(_MAX_KEY_BYTES)


def _library(module: str) -> Any:  # noqa: ANN401 (it need not be installed)
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as exc:
        raise CannotSign(f"model signatures need a library that is not here: {EXTRA}") from exc


def _hashing() -> Any:  # noqa: ANN401
    """Every file but the signature, also those that the library would leave out by itself."""
    config = _library("hashing").Config()
    return config.set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _with_key(config: Any, key: Path, passphrases: Iterable[bytes]) -> Any:  # noqa: ANN401
    """The library's signer with the key.

    Raises:
        CannotSign: the file is no such key, or no passphrase opens it.
        OSError: it cannot be read.
    """
    if not is_encrypted(key):
        with _usable(key):
            return config.use_elliptic_key_signer(private_key=key)
    for passphrase in passphrases:
        try:
            return config.use_elliptic_key_signer(private_key=key, password=passphrase)
        except _BAD_KEY:
            continue
    raise CannotSign(f"{key}: the passphrase does not open it")


@contextmanager
def _usable(key: Path) -> Iterator[None]:
    try:
        yield
    except _BAD_KEY as exc:
        expected = "expected an ECDSA key on P-256, P-384 or P-521, as PEM"
        raise CannotSign(f"{key}: {expected}; private to sign, public to verify") from exc


def _signed_files(raw_signature: bytes) -> Mapping[str, str]:
    """The sha256 of each file that a signature speaks of, not yet verified.

    Raises:
        SignatureRejected: it is no signature of files.
    """
    try:
        payload = json.loads(raw_signature)["dsseEnvelope"]["payload"]
        resources = json.loads(base64.b64decode(payload))["predicate"]["resources"]
        return {str(each["name"]): str(each["digest"]) for each in resources}
    except (*_DAMAGED, binascii.Error) as exc:
        raise SignatureRejected(f"{SIGNATURE_FILE} is no model signature") from exc


def _difference(folder: Path, signed: Mapping[str, str]) -> str:
    """How the files differ from what was signed; "" when they do not."""
    there = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / SIGNATURE_FILE
    }
    problems = [f"{name} is missing" for name in signed if name not in there]
    problems += [f"{name} is not signed" for name in there if name not in signed]
    for name in sorted(set(signed) & set(there)):
        with there[name].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != signed[name]:
                problems.append(f"{name} differs")
    return ", ".join(problems[:5])
