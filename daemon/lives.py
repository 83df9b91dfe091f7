"""The daemon's mark: which life this is, and how many lives before it ended badly.

`daemon.json` lies beside the unix socket, for the updater: it learns there that the daemon has died
(killed, aborted, out of memory), also when the daemon never lived long enough to answer, and that a
stop in good order was none of a candidate's doing.

What must hold:
1. A life is begun before any model of it is loaded: what a model does to the daemon is counted.
2. `clean` is said last, when nothing is left that could go wrong.
3. The file is replaced as a whole. It is not synced: it is about processes of this boot, and lies
   in memory.
4. Whatever becomes of the file, the daemon starts: it is a witness, not a condition.
"""

from __future__ import annotations

import logging
import os
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(f"inferd.{__name__}")

_MODE = 0o644
"""The updater runs as another user."""
_MAX_BYTES = 4096
"""Far more than a mark has."""


class Mark(msgspec.Struct, frozen=True):
    """What the file says.

    Attributes:
        instance: names this life, 32 hexadecimal digits.
        deaths: lives before this one that did not end cleanly, since the file was first written.
        clean: this life has ended in good order.
    """

    instance: str
    pid: int
    deaths: Annotated[int, msgspec.Meta(ge=0)]
    clean: bool


@dataclass(frozen=True, slots=True)
class Life:
    """A life that was begun; `end` says that it ended well."""

    path: Path
    mark: Mark

    def end(self) -> None:
        """Say so, unless another daemon has begun a life here since."""
        now = _read(self.path)
        if now is not None and now.instance != self.mark.instance:
            return
        _replace(self.path, msgspec.structs.replace(self.mark, clean=True))


def begin_life(path: Path) -> Life:
    """Count the life before, if it ended badly, and write this one down. Never fails."""
    before = _read(path)
    deaths = 0 if before is None else before.deaths + (not before.clean)
    life = Life(path, Mark(uuid.uuid4().hex, os.getpid(), deaths, clean=False))
    _replace(path, life.mark)
    if before is not None and not before.clean:
        _log.warning("the daemon before did not end cleanly pid=%d deaths=%d", before.pid, deaths)
    return life


def _read(path: Path) -> Mark | None:
    """The mark; None when there is none that can be read."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=Mark)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _replace(path: Path, mark: Mark) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(msgspec.json.encode(mark))
        beside.chmod(_MODE)
        beside.replace(path)
    except OSError as exc:
        _log.warning(
            "the daemon's mark cannot be written: the updater will not know of its deaths cause=%s",
            exc,
        )
