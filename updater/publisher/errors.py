"""What can go wrong for a publisher; the messages are for the person at the keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from updater.errors import UpdateError

if TYPE_CHECKING:
    from pathlib import Path


class PublisherError(UpdateError):
    """It is refused. What is published is as it was, unless the message says otherwise."""


class KeysMissing(PublisherError):
    """There are fewer keys here than the role's threshold.

    Attributes:
        role: that cannot be signed for.
        names: of its keys that are not here.
    """

    def __init__(self, message: str, *, role: str, names: tuple[str, ...]) -> None:
        super().__init__(message)
        self.role = role
        self.names = names


class WrongPassphrase(PublisherError):
    """A key opens with none of the passphrases that were given.

    Attributes:
        path: of the key's file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: it opens with none of the passphrases given")
        self.path = path
