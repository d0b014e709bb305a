"""Why a request is refused, and with which HTTP status."""

from __future__ import annotations

__all__ = ["ENDING", "FAILED", "Refusal"]

ENDING = "the server is shutting down"
FAILED = "this server failed; its log says how"


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: the HTTP status: 400 for what no server could answer, 404 for what is not here, 408 and 413 for requests
            that come too slowly or are too large, 429 and 503 for what may work later.
        words: the reason, for the client.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status, self.words = status, words
