"""How answers are laid out for people."""

from __future__ import annotations

from daemon.cli.text import milliseconds, printable, table


def test_columns_line_up_without_trailing_blanks():
    assert table([("a", "long", ""), ("bbb", "x", "")]) == "a    long\nbbb  x"


def test_what_would_move_the_cursor_is_not_printed():
    assert printable("a\x1b[31mb\nc") == "a?[31mb?c"


def test_short_times_keep_two_decimals():
    assert [milliseconds(0.314), milliseconds(42.4)] == ["0.31 ms", "42 ms"]
