"""TLS at the front door: our certificate, and whose certificates clients must bring."""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING

from daemon.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from daemon.config import HttpTable

_log = logging.getLogger(f"inferd.{__name__}")


class Certificate:
    """Our certificate and its key. What is in the files now is shown from the next handshake on.

    Attributes:
        context: for the listening sockets.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Read the files.

        Raises:
            ConfigError: one of them cannot be read or is not good.
        """
        self._certificate, self._key = certificate, key
        self._seen = self._stamp()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._load(self.context)
        if client_ca is not None:
            self.context.verify_mode = ssl.CERT_REQUIRED
            _load_authorities(self.context, client_ca)

    def look(self) -> None:
        """Read the files anew if they have changed. Files that are not good change nothing."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            # In a context of its own first: half a pair must not get into the one in use.
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._load(self.context)
        except ConfigError as error:
            _log.error("certificate not reloaded, the one before stays error=%s", error)
            return
        _log.info("certificate reloaded path=%s", self._certificate)

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            # A key with a passphrase would ask for it on the terminal.
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")
        except (OSError, ValueError) as exc:
            problem = (
                f"http.tls_certificate = {self._certificate}, http.tls_key = {self._key}: "
                f"expected a certificate and its key, PEM, without a passphrase: {_reason(exc)}"
            )
            raise ConfigError((problem,)) from exc

    def _stamp(self) -> tuple[object, ...]:
        return tuple(_stamp_of(path) for path in (self._certificate, self._key))


def open_certificate(config: HttpTable) -> Certificate | None:
    """What `[http]` says of TLS; None where it says nothing.

    Raises:
        ConfigError: a file cannot be read or is not good.
    """
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return Certificate(config.tls_certificate, config.tls_key, config.tls_client_ca)


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as exc:
        problem = f"http.tls_client_ca = {path}: expected certificates, PEM: {_reason(exc)}"
        raise ConfigError((problem,)) from exc


def _reason(exc: OSError | ValueError) -> str:
    if isinstance(exc, ssl.SSLError):
        return exc.reason or "not PEM"
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc)


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_ino, facts.st_size
