"""Private keys in files: ed25519, encrypted with a passphrase, offline apart from online.

    KEYS/offline/root-1.pem     for root, targets, models-*: on a stick, in a safe
    KEYS/online/timestamp-1.pem for timestamp, snapshot, fleet: on the fleet's host

The rules:

1. ed25519 and nothing else: a device verifies it without a compiled library, and there is no
   parameter to get wrong.
2. A key is never on disk in the clear: PKCS #8, encrypted. A file that is not is refused.
3. A key's name is its file's name, and is signed with its public half, so that `status` can say
   which key is where without opening any.
4. A file of keys is never overwritten.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.exceptions import KeyMismatchError
from securesystemslib.signer import CryptoSigner, SSlibKey

from updater import atomic
from updater.chain import KEY_NAME
from updater.publisher.errors import KeysMissing, PublisherError, WrongPassphrase

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from securesystemslib.signer import Key

OFFLINE, ONLINE = "offline", "online"
MIN_PASSPHRASE = 12
"""Characters. PKCS #8 as written here costs a guesser 2048 rounds of PBKDF2, so length must do."""
_MAX_KEY_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """Who may sign for a role.

    Attributes:
        keys: public, by key id.
        threshold: how many of them must.
    """

    role: str
    keys: Mapping[str, Key]
    threshold: int

    def name(self, key_id: str) -> str:
        """The name of a key, or the start of its id."""
        return str(self.keys[key_id].unrecognized_fields.get(KEY_NAME) or key_id[:8])


class Passphrases(Protocol):
    """Where passphrases come from."""

    def for_new(self, path: Path) -> bytes:
        """The one that a new key's file is to have.

        Raises:
            PublisherError: there is none.
        """

    def for_known(self, path: Path) -> Iterator[bytes]:
        """Those that may open a key's file, to be tried one after the other.

        Raises:
            PublisherError: there is none.
        """


class Keyring:
    """The private keys that are here."""

    def __init__(self, folders: Sequence[Path], passphrases: Passphrases) -> None:
        """Nothing is read yet.

        Args:
            folders: each is looked through, with its `offline` and `online` folders. New keys go
                into the first.
        """
        self._folders = tuple(folders)
        self._passphrases = passphrases

    def find(self, name: str) -> Path | None:
        """The file of a key; None when it is not here."""
        places = (
            place
            for folder in self._folders
            for place in (folder / OFFLINE, folder / ONLINE, folder)
        )
        return next((file for place in places if (file := place / f"{name}.pem").is_file()), None)

    def create(self, name: str, kind: str) -> SSlibKey:
        """Make a key.

        Args:
            kind: OFFLINE or ONLINE.

        Returns:
            Its public half, with its name.

        Raises:
            PublisherError: there is a file of that name, or the passphrase is too short.
            OSError: the disk refused.
        """
        if (there := self.find(name)) is not None:
            raise PublisherError(f"{there}: there is a key of that name; keys are not overwritten")
        folder = self._folders[0] / kind
        path = folder / f"{name}.pem"
        passphrase = self._passphrases.for_new(path)
        if len(passphrase.decode(errors="replace")) < MIN_PASSPHRASE:
            raise PublisherError(f"expected a passphrase of {MIN_PASSPHRASE} characters or more")
        private = Ed25519PrivateKey.generate()
        pem = private.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase)
        )
        atomic.make_folder(folder, mode=0o700)
        atomic.write_file(path, pem, mode=0o600)
        public = SSlibKey.from_crypto(private.public_key())
        public.unrecognized_fields[KEY_NAME] = name
        return public

    def signers(self, role: RoleKeys) -> list[CryptoSigner]:
        """As many keys of a role as are here, ready to sign.

        Raises:
            KeysMissing: they are fewer than its threshold.
            WrongPassphrase: one does not open.
            PublisherError: a file is not the key that its name says.
        """
        found = {
            key_id: path
            for key_id in role.keys
            if (path := self.find(role.name(key_id))) is not None
        }
        if len(found) < role.threshold:
            absent = tuple(role.name(key_id) for key_id in role.keys if key_id not in found)
            message = (
                f"{role.role} needs {role.threshold} of its keys, {len(found)} of them here; "
                f"not here: {', '.join(absent)}"
            )
            raise KeysMissing(message, role=role.role, names=absent)
        return [self._open(path, role.keys[key_id]) for key_id, path in found.items()]

    def has(self, role: RoleKeys) -> bool:
        """Whether enough keys of a role are here; none is opened."""
        here = [key_id for key_id in role.keys if self.find(role.name(key_id)) is not None]
        return len(here) >= role.threshold

    def _open(self, path: Path, public: Key) -> CryptoSigner:
        with path.open("rb") as file:
            pem = file.read(_MAX_KEY_BYTES)
        if b"ENCRYPTED" not in pem:
            raise PublisherError(f"{path}: it is not encrypted, so it is not used")
        private = self._decrypt(path, pem)
        if not isinstance(private, Ed25519PrivateKey):
            raise PublisherError(f"{path}: it is no ed25519 key, so it is not used")
        if not isinstance(public, SSlibKey):
            raise PublisherError(f"{path}: its public half is of a kind that is not used here")
        try:
            return CryptoSigner(private, public)
        except (KeyMismatchError, ValueError) as exc:
            raise PublisherError(f"{path}: it is another key than the signed {path.stem}") from exc

    def _decrypt(self, path: Path, pem: bytes) -> object:
        for passphrase in self._passphrases.for_known(path):
            with contextlib.suppress(ValueError):  # another passphrase; or no PEM at all
                return load_pem_private_key(pem, passphrase)
        raise WrongPassphrase(path)
