"""What clients may do, whichever way they come."""

from __future__ import annotations

import dataclasses
import hmac

from lamella.errors import ArgumentError
from lamella_serve.refusals import Refusal

__all__ = ["Access", "checked_token"]


def checked_token(token: object, where: str) -> str:
    """Return a token, if clients can send it.

    Raises:
        ArgumentError: they can't.
    """
    if not isinstance(token, str) or not token or not all("!" <= sign <= "~" for sign in token):
        raise ArgumentError(f"{where}: expected one word of printable ASCII")  # and not what it is: it is a secret
    return token


@dataclasses.dataclass(frozen=True)
class Access:
    """What clients may do.

    Attributes:
        token: what they have to know; None: nothing.
        max_body: bytes that a body may have, also when it is unpacked.
        timeout: seconds in which a body has to come.
        local: whether only programs on this machine reach the server, so that its name is that of a loopback address.
    """

    token: str | None = None
    max_body: int = 64 * 2**20
    timeout: float = 60.0
    local: bool = False

    def check_token(self, authorization: bytes) -> None:
        """Compare what a client sends as ``authorization``, in constant time.

        Raises:
            Refusal: it is not the token.
        """
        if self.token is not None:
            scheme, _, given = authorization.partition(b" ")
            if scheme.lower() != b"bearer":
                raise Refusal(401, "this server needs a bearer token")
            if not hmac.compare_digest(given.strip(), self.token.encode()):
                raise Refusal(401, "the bearer token is wrong")

    def check_control(self) -> None:
        """See whether clients may load and unload models.

        Raises:
            Refusal: they may not.
        """
        if not self.local and self.token is None:
            raise Refusal(403, "models are loaded and unloaded only with a bearer token, or on a loopback address")
