"""Why the broker cannot be reached, in words for the operator. Pure."""

from __future__ import annotations

import socket
import ssl

from daemon.errors import shorten

_MAX_CHARACTERS = 300  # a path and a sentence

_BY_KIND: tuple[tuple[type[Exception], str], ...] = (
    (ConnectionRefusedError, "{broker} refused the connection: is it running?"),
    (TimeoutError, "{broker} did not answer in time"),
    (ConnectionError, "{broker} broke the connection off: does only one side speak TLS?"),
    (socket.gaierror, "the name of {broker} cannot be resolved: {detail}"),
    (ssl.SSLCertVerificationError, "the certificate of {broker} was not accepted: {detail}"),
    (ssl.SSLError, "{broker} and this client do not agree on TLS: {detail}"),
    (UnicodeDecodeError, "the password file is not UTF-8"),
    (Exception, "{broker} cannot be reached: {detail}"),
)
"""The first that fits."""


def explain_failure(error: OSError | ValueError, host: str, port: int) -> str:
    """What went wrong while connecting to `host`:`port`, in one sentence.

    Args:
        error: of name look-up, TCP, TLS, or reading the files that TLS and the password need.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return shorten(f"{error.filename} cannot be read: {error.strerror}", _MAX_CHARACTERS)
    words = next(words for kind, words in _BY_KIND if isinstance(error, kind))
    text = words.format(broker=f"the broker at {host}:{port}", detail=_detail(error))
    return shorten(text, _MAX_CHARACTERS)


def _detail(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
