"""Why the broker cannot be reached, as an operator reads it."""

from __future__ import annotations

import errno
import os
import ssl

import pytest

from daemon.mqtt.failures import explain_failure


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError("timed out"), "the broker at b:1 did not answer in time"),
        (ConnectionResetError(errno.ECONNRESET, ""), "the broker at b:1 broke the connection off"),
        (
            OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)),
            "the broker at b:1 cannot be reached: No route to host",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/etc/ca.pem"),
            "/etc/ca.pem cannot be read: No such file or directory",
        ),
        (ssl.SSLError(1, "text"), "the broker at b:1 and this client do not agree on TLS: text"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "the password file is not UTF-8",
        ),
        (UnicodeError("label too long"), "the broker at b:1 cannot be reached: label too long"),
    ],
)
def test_a_failure_is_told_without_the_names_of_errors(error, words):
    told = explain_failure(error, "b", 1)

    assert told.startswith(words)
    assert "Error" not in told
    assert "Errno" not in told
