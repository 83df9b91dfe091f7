"""Logging set-up: one handler, two formats, and nothing from outside that could forge a line.

A message is a constant phrase with facts after it: `log.info("model ready model=%s", name)`. The
text format prints it as it is; the JSON format makes a field of each `key=%…` fact. Every argument
that is not a number is escaped and cut, so that no payload, name or path from outside can begin a
line of its own or fill the disk.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import numbers
import os
import re
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

from daemon.errors import shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT_LOGGER = "inferd"

_MAX_ARGUMENT_CHARACTERS = 1000  # longer than any reason of ours, shorter than any payload
_MAX_TRACEBACK_CHARACTERS = 16_000  # some 200 lines; one journal record takes 48 KiB
_FACT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=%[-+ #0]*\d*(?:\.\d+)?[sdifgrx]")
_PLACEHOLDER = re.compile(r"%(?:[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])")
_SYSLOG_PRIORITIES = {"CRITICAL": 2, "ERROR": 3, "WARNING": 4, "INFO": 6, "DEBUG": 7}
# Fields of every JSON line; a fact of the same name is told apart by a trailing underscore.
_OWN_FIELDS = frozenset({"time", "level", "logger", "message", "traceback"})

# Facts that are fields of the journal: `journalctl -u inferd MODEL=digits`.
_JOURNAL_FACTS = frozenset({"model", "version", "device", "request_id"})

LogFormat = Literal["text", "json"]


def set_up_logging(
    level: str, log_format: LogFormat, stream: TextIO, *, journal: bool = False
) -> None:
    """Send every log line to `stream`, instead of where an earlier call sent them.

    Args:
        level: least level of our own lines: "debug", "info", "warning" or "error". Libraries are
            heard from "warning" on.
        log_format: "text" for people, "json" for one object per line.
        stream: usually stderr.
        journal: the stream is systemd's journal, which keeps the time. Where systemd-python is
            installed, text lines go there with fields (MODEL=, VERSION=, DEVICE=, REQUEST_ID=);
            else with the priority alone.
    """
    handler = _choose_handler(log_format, stream, journal=journal)
    root = logging.getLogger()
    for before in [old for old in root.handlers if isinstance(old, _OURS)]:
        root.removeHandler(before)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT_LOGGER).setLevel(level.upper())


def is_journal(environment: Mapping[str, str], stream: TextIO) -> bool:
    """Whether a stream goes to systemd's journal.

    Source: systemd.exec(5), $JOURNAL_STREAM: "device:inode" of what the journal reads.
    """
    try:
        facts = os.fstat(stream.fileno())
    except (OSError, ValueError):  # not a file, or closed
        return False
    return environment.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, so that setting up again replaces it and no one else's."""


class _JournalHandler(logging.Handler):
    """Sends each line to the journal with its fields.

    Args:
        send: of systemd-python: `systemd.journal.send`.
    """

    def __init__(self, send: Callable[..., object]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(self.format(record), **journal_fields(record))
        except Exception:  # noqa: BLE001 (logging's own way with what fails in a handler)
            self.handleError(record)


_OURS = (_Handler, _JournalHandler)


def _choose_handler(log_format: LogFormat, stream: TextIO, *, journal: bool) -> logging.Handler:
    if journal and log_format == "text" and (send := _journal_send()) is not None:
        handler: logging.Handler = _JournalHandler(send)
        handler.setFormatter(_PlainFormatter())
        return handler
    handler = _Handler(stream)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter(journal))
    return handler


def _journal_send() -> Callable[..., object] | None:
    """Debian's python3-systemd, where it is installed and this Python can load it."""
    try:
        return importlib.import_module("systemd.journal").send  # type: ignore[no-any-return]
    except (ImportError, AttributeError):
        return None


def journal_fields(record: logging.LogRecord) -> dict[str, str]:
    """What the journal keeps beside a line's text. Source: systemd.journal-fields(7)."""
    fields = {
        "PRIORITY": str(_SYSLOG_PRIORITIES.get(record.levelname, 6)),
        "SYSLOG_IDENTIFIER": Path(sys.argv[0]).name,
        "LOGGER": record.name,
    }
    for name, value in _facts_of(record):
        if name in _JOURNAL_FACTS:
            fields[name.upper()] = str(_make_safe(value))
    return fields


class _Shown:
    """An argument that is not a number, printed escaped and cut however it is formatted."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return _escape(str(self._value), _MAX_ARGUMENT_CHARACTERS)

    def __repr__(self) -> str:
        return _escape(repr(self._value), _MAX_ARGUMENT_CHARACTERS)


class _Formatter(logging.Formatter):
    """What both formats share: safe arguments, safe tracebacks, UTC."""

    @staticmethod
    def message_of(record: logging.LogRecord) -> str:
        template = str(record.msg)
        if not record.args:
            return _escape(template, _MAX_ARGUMENT_CHARACTERS)
        arguments = record.args
        if isinstance(arguments, tuple):
            return template % tuple(_make_safe(argument) for argument in arguments)
        return template % {name: _make_safe(value) for name, value in arguments.items()}

    def traceback_of(self, record: logging.LogRecord) -> list[str]:
        """Lines of the traceback, each without what would end it early."""
        if not record.exc_info:
            return []
        text = self.formatException(record.exc_info)[-_MAX_TRACEBACK_CHARACTERS:]
        return [_escape(line, _MAX_ARGUMENT_CHARACTERS) for line in text.split("\n")]

    @staticmethod
    def time_of(record: logging.LogRecord) -> str:
        """Wall clock, UTC, with milliseconds."""
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{whole}.{int(record.msecs):03d}Z"


class _TextFormatter(_Formatter):
    """`time level logger message key=value`; the traceback indented below."""

    def __init__(self, journal: bool) -> None:  # noqa: FBT001 (one of two shapes, private)
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        lines = [f"{level} {record.name} {self.message_of(record)}"]
        lines += [f"  {line}" for line in self.traceback_of(record)]
        if self._journal:
            priority = _SYSLOG_PRIORITIES.get(record.levelname, 6)
            return "\n".join(f"<{priority}>{line}" for line in lines)
        return f"{self.time_of(record)} " + "\n".join(lines)


class _JsonFormatter(_Formatter):
    """One object per line: time, level, logger, message, each fact, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": self.time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message_of(record),
        }
        for name, value in _facts_of(record):
            fields[f"{name}_" if name in _OWN_FIELDS else name] = _as_json(value)
        if traceback := self.traceback_of(record):
            fields["traceback"] = "\n".join(traceback)
        return json.dumps(fields, ensure_ascii=False)


class _PlainFormatter(_Formatter):
    """The message and the traceback: the journal has the rest as fields."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join([self.message_of(record), *self.traceback_of(record)])


def _facts_of(record: logging.LogRecord) -> list[tuple[str, object]]:
    """The `key=value` facts of a message."""
    names = _fact_names(str(record.msg))
    if not isinstance(record.args, tuple) or len(names) != len(record.args):
        return []
    return [(name, value) for name, value in zip(names, record.args, strict=True) if name]


@lru_cache(maxsize=512)  # templates are constants of the code
def _fact_names(template: str) -> tuple[str, ...]:
    """For each placeholder of a template the key before it, "" where there is none."""
    facts = {match.end(): match[1] for match in _FACT.finditer(template)}
    plain = template.replace("%%", "__")
    return tuple(facts.get(match.end(), "") for match in _PLACEHOLDER.finditer(plain))


def _make_safe(value: object) -> object:
    return value if isinstance(value, numbers.Number) else _Shown(value)


def _as_json(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    # NaN and infinities have no JSON; "inf" and "nan" do.
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    return str(_Shown(value))


def _escape(text: str, limit: int) -> str:
    """Printable text stays as it is; anything else is escaped, and the whole is cut."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return text if text.isprintable() else shorten(text, limit)
