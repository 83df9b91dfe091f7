"""Who may ask what: looked at before a request's body is read, in one place for all protocols.

Rules:
1. The unix socket's own permissions say who may come by it; who comes may everything.
2. Where there is a file of tokens, every other request brings one that is for what it asks, by
   loopback too: others have accounts on this machine.
3. Where clients bring certificates and there are no tokens, a certificate is for
   `http.tls_client_scopes`.
4. What tells nothing (`Access.OPEN`: is the process alive, is it ready) anybody may ask.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from daemon.errors import Forbidden
from daemon.rest.connection import connection_of
from daemon.rest.errors import Unauthenticated
from daemon.tokens import Scope, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from aiohttp import web


class Access(Enum):
    """What a route takes."""

    OPEN = "open"
    PREDICT = "predict"
    READ = "read"
    ADMIN = "admin"


_SCOPES = {
    Access.PREDICT: Scope.PREDICT,
    Access.READ: Scope.READ,
    Access.ADMIN: Scope.ADMIN,
}


@dataclass(slots=True)
class Guard:
    """What is asked of those who come by the network.

    Attributes:
        tokens: None where none are asked for.
        certificate_scopes: of everybody whose certificate was accepted; None where none is needed.
    """

    tokens: Tokens | None = None
    certificate_scopes: Collection[Scope] | None = None

    @property
    def is_open(self) -> bool:
        """Anybody may everything."""
        return self.tokens is None and self.certificate_scopes is None

    def admit(
        self, request: web.Request, access: Access, model_of: Callable[[web.Request], str | None]
    ) -> None:
        """Let a request in.

        Args:
            model_of: gives the model that it asks about; None for none in particular.

        Raises:
            Unauthenticated: it has no good token.
            Forbidden: its token or certificate is for something else.
        """
        if access is Access.OPEN or self.is_open or connection_of(request).is_local:
            return
        scope = _SCOPES[access]
        if self.tokens is None:
            if scope not in (self.certificate_scopes or ()):
                raise Forbidden(f"a client's certificate is not for '{scope.value}' here")
            return
        kind, _, presented = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not presented.strip():
            raise Unauthenticated("expected a token: Authorization: Bearer inferd_...")
        token = self.tokens.find(presented.strip())
        if token is None:
            raise Unauthenticated("this token is not known here")
        if not token.may(scope, model_of(request)):
            raise Forbidden(
                f"the token '{token.name}' is not for this: it takes the scope '{scope.value}', "
                "and a token that names its models is for nothing else"
            )
