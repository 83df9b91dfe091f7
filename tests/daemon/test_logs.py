"""Log lines: two formats, and nothing from outside that could forge one."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from daemon.logs import is_journal, journal_fields, set_up_logging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger("inferd.daemon.test")


@pytest.fixture
def lines_of() -> Iterator[Callable[..., list[str]]]:
    """Set logging up, run something that logs, and give back the lines; then undo the set-up."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogger("inferd").level)

    def run(act: Callable[[], None], level="debug", log_format="text", **keys) -> list[str]:
        stream = io.StringIO()
        set_up_logging(level, log_format, stream, **keys)
        act()
        return stream.getvalue().splitlines()

    yield run
    root.handlers[:], level, own_level = before
    root.setLevel(level)
    logging.getLogger("inferd").setLevel(own_level)


def fail():
    """Log an exception whose message comes from outside."""
    error = ValueError("bad\x1b[31m\x00 value")
    try:
        raise error
    except ValueError:
        log.exception("request failed path=%s", "/x")


# Text


def test_a_text_line_has_time_level_logger_and_message(lines_of):
    (line,) = lines_of(lambda: log.info("model ready model=%s version=%d", "parts", 3))

    time, _, rest = line.partition(" ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == "info inferd.daemon.test model ready model=parts version=3"


def test_the_journal_gets_a_priority_and_no_time(lines_of):
    (line,) = lines_of(lambda: log.warning("worker replaced pid=%d", 7), journal=True)

    assert line == "<4>warning inferd.daemon.test worker replaced pid=7"


def test_every_line_of_a_traceback_keeps_its_priority_in_the_journal(lines_of):
    lines = lines_of(fail, journal=True)

    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_a_traceback_is_indented_below_its_line_and_escaped(lines_of):
    first, *others = lines_of(fail)

    assert first.endswith("request failed path=/x")
    assert all(line.startswith("  ") for line in others)
    assert others[-1] == r"  ValueError: bad\x1b[31m\x00 value"


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    "value",
    ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\u2028b", "a\x85b", "a\udcffb", "\x00"],
)
def test_a_value_from_outside_cannot_begin_a_line_of_its_own(lines_of, log_format, value):
    lines = lines_of(lambda: log.info("got name=%s", value), log_format=log_format)

    assert len(lines) == 1
    assert lines[0].isprintable()


@pytest.mark.parametrize("template", ["got %s", "got %r", "got %.5000s"])
def test_a_long_value_is_cut(lines_of, template):
    (line,) = lines_of(lambda: log.info(template, "x" * 100_000))

    assert len(line) < 1200


def test_an_exceptions_text_is_escaped_and_cut_too(lines_of):
    (line,) = lines_of(lambda: log.info("failed error=%s", ValueError("a\n" * 10_000)))

    assert len(line) < 1200


def test_readable_text_of_any_language_stays_readable(lines_of):
    (line,) = lines_of(lambda: log.info("got name=%s", "Größe 螺栓"))

    assert line.endswith("name=Größe 螺栓")


def test_named_arguments_are_escaped_too(lines_of):
    (line,) = lines_of(lambda: log.info("got name=%(name)s", {"name": "a\nb"}))

    assert line.endswith(r"name=a\nb")


def test_numbers_of_numpy_are_numbers(lines_of):
    (line,) = lines_of(lambda: log.info("got n=%d s=%.2f", np.int64(3), np.float32(0.5)))

    assert line.endswith("n=3 s=0.50")


# JSON


def test_a_json_line_has_a_field_for_every_fact(lines_of):
    (line,) = lines_of(
        lambda: log.info("answered request=%s model=%s seconds=%.3f n=%d", "r-1", "m", 0.25, 3),
        log_format="json",
    )

    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "level": "info",
        "logger": "inferd.daemon.test",
        "message": "answered request=r-1 model=m seconds=0.250 n=3",
        "request": "r-1",
        "model": "m",
        "seconds": 0.25,
        "n": 3,
    }


def test_a_placeholder_without_a_key_is_no_fact(lines_of):
    (line,) = lines_of(lambda: log.info("%s of 100%% n=%d", "most", 3), log_format="json")

    fields = json.loads(line)
    assert fields["message"] == "most of 100% n=3"
    assert fields["n"] == 3
    assert len(fields) == 5


def test_a_fact_cannot_replace_a_field_of_the_line(lines_of):
    (line,) = lines_of(lambda: log.info("odd level=%s", "fake"), log_format="json")

    assert (json.loads(line)["level"], json.loads(line)["level_"]) == ("info", "fake")


def test_numbers_json_does_not_have_become_text(lines_of):
    (line,) = lines_of(
        lambda: log.info("odd a=%f b=%f c=%s", float("nan"), float("inf"), None),
        log_format="json",
    )

    fields = json.loads(line)
    assert (fields["a"], fields["b"], fields["c"]) == ("nan", "inf", None)


def test_a_traceback_is_one_field(lines_of):
    (line,) = lines_of(fail, log_format="json")

    assert json.loads(line)["traceback"].endswith(r"ValueError: bad\x1b[31m\x00 value")


# Levels and streams


def test_lines_below_the_level_are_left_out(lines_of):
    def act():
        log.debug("a")
        log.info("b")
        log.warning("c")

    assert [line[-1] for line in lines_of(act, level="info")] == ["b", "c"]


def test_libraries_are_heard_from_warning_on(lines_of):
    def act():
        logging.getLogger("aiohttp.server").info("noise")
        logging.getLogger("aiohttp.server").warning("trouble")

    (line,) = lines_of(act, level="debug")

    assert line.endswith("warning aiohttp.server trouble")


def test_setting_up_again_replaces_the_stream(lines_of):
    assert lines_of(lambda: log.info("first"))

    assert len(lines_of(lambda: log.info("second"))) == 1


def test_the_journal_is_known_by_its_device_and_inode(tmp_path):
    with (tmp_path / "log").open("w") as stream:
        facts = os.fstat(stream.fileno())
        named = {"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"}

        assert is_journal(named, stream)
        assert not is_journal({"JOURNAL_STREAM": "1:2"}, stream)
        assert not is_journal({}, stream)


def test_a_stream_that_is_no_file_is_not_the_journal():
    assert not is_journal({"JOURNAL_STREAM": "1:2"}, io.StringIO())


def test_the_journal_gets_what_a_line_is_about_as_fields(caplog):
    caplog.set_level(logging.DEBUG)
    log.warning("worker replaced model=%s version=%d pid=%d device=%s", "a\nb", 3, 17, "cpu")
    (record,) = caplog.records

    fields = journal_fields(record)

    assert fields["PRIORITY"] == "4"
    assert fields["LOGGER"] == "inferd.daemon.test"
    assert {key: fields[key] for key in ("MODEL", "VERSION", "DEVICE")} == {
        "MODEL": "a\\nb",
        "VERSION": "3",
        "DEVICE": "cpu",
    }
    assert "PID" not in fields  # the journal's own


def test_a_line_without_facts_has_the_fields_of_every_line(caplog):
    log.error("nothing to say")
    (record,) = caplog.records

    assert set(journal_fields(record)) == {"PRIORITY", "SYSLOG_IDENTIFIER", "LOGGER"}
