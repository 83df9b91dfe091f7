"""What stands between the network and the routes: the guard with its tokens, and TLS.

Both come from files that change while we run: `look` takes up what has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.rest.guard import Guard
from daemon.rest.tls import open_certificate
from daemon.tokenfile import TokenFile
from daemon.tokens import Scope

if TYPE_CHECKING:
    from daemon.config import HttpTable
    from daemon.rest.tls import Certificate


@dataclass(frozen=True, slots=True)
class Doors:
    """Guard and certificate of one front end."""

    guard: Guard
    certificate: Certificate | None
    token_file: TokenFile | None

    @property
    def have_files(self) -> bool:
        """Whether there is anything to look at."""
        return self.certificate is not None or self.token_file is not None

    def look(self) -> bool:
        """Take up files that have changed; whether somebody may ask more or less now."""
        if self.certificate is not None:
            self.certificate.look()
        if self.token_file is None or not self.token_file.look():
            return False
        self.guard.tokens = self.token_file.tokens
        return True


def open_doors(config: HttpTable) -> Doors:
    """Read the files that `[http]` names.

    Raises:
        ConfigError: one cannot be read or is not good.
    """
    token_file = None if config.tokens_file is None else TokenFile(config.tokens_file)
    by_certificate = config.tls_client_ca is not None
    guard = Guard(
        tokens=token_file.tokens if token_file else None,
        certificate_scopes=frozenset(map(Scope, config.tls_client_scopes))
        if by_certificate
        else None,
    )
    return Doors(guard, open_certificate(config), token_file)
