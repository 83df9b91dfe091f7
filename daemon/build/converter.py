"""Drives the program that TensorFlow runs in: one at a time, quiet, bounded in time and memory.

The child is killed when it takes too long, when this process ends, and when the block ends. What
TensorFlow prints goes into a file; its end is in the error when the child dies. A request to a dead
child starts another one first, once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon.build.errors import ConversionFailed, TensorFlowMissing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from daemon.build.choose import Variant
    from daemon.build.sources import SourceKind

_PROGRAM = Path(__file__).with_name("convert_main.py")
_ANSWER_BYTES_MAX = 1 << 20
_LOG_SHOWN_BYTES = 600
_MEMORY_SHARE = 0.75
"""Of the machine's memory: what is left keeps the machine alive while a model is converted."""
_LEAST_MEMORY_MIB = 2048  # TensorFlow alone takes some 500

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # no GPU makes the numbers differ
    "KERAS_BACKEND": "tensorflow",
    "PYTHONHASHSEED": "0",  # the order of sets, where TensorFlow goes by it
    "PYTHONDONTWRITEBYTECODE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # whose rounding differs from machine to machine
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a conversion may take.

    Attributes:
        seconds: for each thing that is asked of TensorFlow.
        memory_mib: private memory of its process.
    """

    seconds: float
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Opened:
    """A source that TensorFlow has read.

    Attributes:
        signatures: names, at least one.
        versions: of what reads and converts it, by library.
    """

    signatures: tuple[str, ...]
    versions: Mapping[str, str]


def check_tensorflow() -> None:
    """Let pass where TensorFlow is installed.

    Raises:
        TensorFlowMissing: it is not; with the command that installs it.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise TensorFlowMissing(
            "Keras files and SavedModels are converted by TensorFlow, which is not installed here; "
            f"install it with: {sys.executable} -m pip install 'inferd[build]'"
        )


def default_memory_mib() -> int:
    """Three quarters of the machine's memory, at least what TensorFlow needs to start."""
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(_LEAST_MEMORY_MIB, int(total_bytes * _MEMORY_SHARE) >> 20)


@contextmanager
def converting(scratch: Path, limits: Limits) -> Iterator[Converter]:
    """A child that answers until the block ends.

    Args:
        scratch: an empty folder for what it writes on the way; it stays.

    Raises:
        TensorFlowMissing: it is not installed.
        OSError: the child cannot be started.
    """
    check_tensorflow()
    converter = Converter(scratch, limits)
    try:
        yield converter
    finally:
        converter.close()


class Converter:
    """One child at a time with one source."""

    def __init__(self, scratch: Path, limits: Limits) -> None:
        """Start the child.

        Raises:
            OSError: it cannot be started.
        """
        self._scratch = scratch
        self._log = scratch / "tensorflow.log"
        self._limits = limits
        self._starts = 0
        self._source: tuple[SourceKind, Path] | None = None
        self._process = self._start()

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what it never read
                    pipe.close()
        self._process.wait()

    def open(self, kind: SourceKind, source: Path) -> Opened:
        """Read the source; takes some seconds, for TensorFlow is imported.

        Raises:
            ConversionFailed: it cannot be read, or it took too much.
        """
        self._source = None
        self._revive()
        answer = self._read(kind, source)
        self._source = kind, source
        return Opened(tuple(answer["signatures"]), answer["versions"])

    def convert(self, variant: Variant, out: Path, *, signature: str, rows: Path | None) -> str:
        """Write a variant as a TFLite file; returns what the publisher should know of it, or "".

        Args:
            signature: that `rows` are for.
            rows: for INT8, the representative rows; None else.

        Raises:
            ConversionFailed: it cannot be made; `operators` says where that is their fault.
        """
        self._revive()
        answer = self._ask(
            f"convert the model ({variant.value})",
            do="convert",
            variant=variant.value,
            out=str(out),
            signature=signature,
            rows=None if rows is None else str(rows),
        )
        return str(answer["note"])

    def predict(self, rows: Path, out: Path, *, signature: str) -> int:
        """Write what the original makes of each row; returns how many there were.

        Raises:
            ConversionFailed: the original does not answer.
        """
        self._revive()
        answer = self._ask(
            "run the original model",
            do="predict",
            signature=signature,
            rows=str(rows),
            out=str(out),
        )
        return int(answer["rows"])

    def _start(self) -> subprocess.Popen[bytes]:
        """A child in a folder of its own: one that died may have left anything in its folder."""
        self._starts += 1
        work = self._scratch / f"child-{self._starts}"
        work.mkdir()
        limits = (str(os.getpid()), str(self._limits.memory_mib), str(work))
        with self._log.open("wb") as errors:
            return subprocess.Popen(  # noqa: S603 (our own program)
                [sys.executable, "-P", str(_PROGRAM), *limits],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=work,
                env={**os.environ, **_ENVIRONMENT, "KERAS_HOME": str(work), "TMPDIR": str(work)},
                start_new_session=True,  # Ctrl-C is for us; we end it
            )

    def _revive(self) -> None:
        """Where the child is dead, start another one with the same source."""
        if self._process.poll() is None:
            return
        self.close()
        self._process = self._start()
        if self._source is None:
            return
        try:
            self._read(*self._source)
        except ConversionFailed:
            self._process.kill()  # it has no source to answer for
            self._process.wait()
            raise

    def _read(self, kind: SourceKind, source: Path) -> dict[str, Any]:
        return self._ask(
            f"read {source}", do="open", kind=kind.value, source=str(source.absolute())
        )

    def _ask(self, what: str, **request: object) -> dict[str, Any]:
        stdin = self._process.stdin
        if stdin is None:
            raise RuntimeError("the child has no stdin")
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise self._died(what) from None
        answer: dict[str, Any] = json.loads(self._answer(what))
        if problem := answer.get("problem"):
            operators = tuple(answer["operators"])
            raise ConversionFailed(f"cannot {what}: {problem}", operators)
        return answer

    def _answer(self, what: str) -> bytes:
        """The child's next line, by the deadline."""
        stdout = self._process.stdout
        if stdout is None:
            raise RuntimeError("the child has no stdout")
        deadline = time.monotonic() + self._limits.seconds
        line = b""
        while not line.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([stdout], [], [], left_s)[0]:
                self._process.kill()
                self._process.wait()
                raise ConversionFailed(
                    f"cannot {what}: it took more than {self._limits.seconds:g} s "
                    "(--convert-seconds)"
                )
            part = os.read(stdout.fileno(), 1 << 16)
            if not part or len(line) > _ANSWER_BYTES_MAX:
                raise self._died(what)
            line += part
        return line

    def _died(self, what: str) -> ConversionFailed:
        self._process.kill()
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        with self._log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_SHOWN_BYTES))
            said = file.read().decode(errors="replace").strip()
        memory = f"it may take {self._limits.memory_mib} MiB (--convert-memory-mib)"
        return ConversionFailed(
            f"cannot {what}: TensorFlow's process {how}", details=f"{memory}\n{said}"
        )
