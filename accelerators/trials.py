"""TrialBook: what trials have shown, kept so that a restart need not measure again.

A measurement counts for one file on one device with one driver and one runtime. Only what another
trial would show again is kept: times and agreement; not that a device was away or has failed.

The file is a cache: one that cannot be read or written is no reason to fail.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from accelerators.placement import Trial, Verdict
from accelerators.report import BadReport, build_record, plain_record

if TYPE_CHECKING:
    from pathlib import Path

    from accelerators.base import Device

_log = logging.getLogger(f"inferd.{__name__}")

_SCHEMA = 1
_TRIALS_MAX = 500  # the oldest go first
_BYTES_MAX = 1 << 20
_KEPT = frozenset({Verdict.AGREES, Verdict.DIFFERS})


def trial_key(digest: str, cpu_digest: str, runtime: str, device: Device) -> str:
    """What a measurement counts for.

    Args:
        digest: of the file that the device runs.
        cpu_digest: of the file whose answers it was compared with; "" for none.
    """
    files = f"{digest}|{cpu_digest}|{runtime}"
    return f"{files}|{device.id}|{device.name}|{device.driver}|{device.library}|{device.options}"


class TrialBook:
    """The trials of one daemon. Not thread-safe."""

    def __init__(self, path: Path | None) -> None:
        """Read the file; without a path, remember until the end of the process."""
        self._path = path
        self._trials: dict[str, Trial] = {}
        if path is not None:
            self._read(path)

    def get(self, key: str) -> Trial | None:
        """What is known."""
        return self._trials.get(key)

    def put(self, key: str, trial: Trial) -> None:
        """Keep what a trial has shown. Writes a small file."""
        if trial.verdict not in _KEPT:
            return
        self._trials.pop(key, None)
        self._trials[key] = trial
        while len(self._trials) > _TRIALS_MAX:
            del self._trials[next(iter(self._trials))]
        if self._path is not None:
            self._write(self._path)

    def forget(self, key: str) -> None:
        """It has turned out otherwise."""
        if self._trials.pop(key, None) is not None and self._path is not None:
            self._write(self._path)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                data = file.read(_BYTES_MAX + 1)
            if len(data) > _BYTES_MAX:
                raise ValueError("it is too large")  # noqa: TRY301
            self._trials = _parse(json.loads(data))
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as exc:
            _log.warning("trials cannot be read, devices are measured anew reason=%s", exc)

    def _write(self, path: Path) -> None:
        document = {
            "schema": _SCHEMA,
            "trials": {key: plain_record(trial) for key, trial in self._trials.items()},
        }
        new = path.with_name(path.name + ".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(document, indent=1), "utf-8")
            new.replace(path)
        except OSError as exc:
            _log.warning("trials cannot be kept reason=%s", exc)


def _parse(document: Any) -> dict[str, Trial]:  # noqa: ANN401 (JSON)
    if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
        raise ValueError("it is of another version")
    try:
        trials = {str(key): build_record(Trial, raw) for key, raw in document["trials"].items()}
    except (BadReport, AttributeError, KeyError, TypeError) as exc:
        raise ValueError(f"it is damaged: {exc}") from exc
    if len(trials) > _TRIALS_MAX:
        raise ValueError("it holds too many trials")
    return trials
