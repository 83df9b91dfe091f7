"""The file of tokens on disk: read at the start, and again whenever it has changed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from daemon.errors import ConfigError
from daemon.tokens import MAX_FILE_BYTES, Tokens, parse_tokens

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(f"inferd.{__name__}")


class TokenFile:
    """One file. What it says now is `tokens`; `look` keeps that true."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            ConfigError: it cannot be read or is not good.
        """
        self._path = path
        self._seen = self._stamp()
        self._tokens = self._read()
        self._warn_of_open_file()

    @property
    def tokens(self) -> Tokens:
        """Of the last good reading."""
        return self._tokens

    def look(self) -> bool:
        """Read the file anew if it has changed; whether the tokens are others now.

        A file that is not good changes nothing, and is told once: whoever wrote it looks at the
        log, and the clients go on. One that is gone is such a file.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self._tokens = self._read()
        except ConfigError as error:
            for problem in error.problems:
                _log.error("tokens not reloaded, the ones before stay problem=%s", problem)
            return False
        _log.info("tokens reloaded count=%d", len(self._tokens))
        return True

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            facts = self._path.stat()
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_ino, facts.st_size

    def _read(self) -> Tokens:
        try:
            with self._path.open("rb") as file:
                raw = file.read(MAX_FILE_BYTES + 1)
            text = raw.decode()
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
            raise ConfigError((f"{self._path}: cannot be read: {reason}",)) from exc
        if len(raw) > MAX_FILE_BYTES:
            raise ConfigError((f"{self._path}: larger than {MAX_FILE_BYTES} bytes",))
        return Tokens(parse_tokens(text, str(self._path)))

    def _warn_of_open_file(self) -> None:
        mode = self._path.stat().st_mode
        if mode & 0o022:
            _log.warning("others may write the tokens path=%s mode=%o", self._path, mode & 0o777)
