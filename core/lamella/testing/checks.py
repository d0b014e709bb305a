"""Running checks, of which each may fail, so that everything that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from lamella.protocol.specimen import Specimen
from lamella.testing.comparison import Skipped

__all__ = ["Checks", "FailedCheck"]

T = TypeVar("T")


class FailedCheck(NamedTuple):
    """A check that failed: what it raised, and how to run it again."""

    error: Exception
    check: Callable[..., Any]
    arguments: tuple[Any, ...]


class Checks:
    """What laws examine: a specimen, and the checks that failed on it.

    Attributes:
        specimen: what is examined.
        seed: what all draws follow from.
        failed: the checks of a law that have failed so far.
    """

    def __init__(self, specimen: Specimen, seed: int = 0) -> None:
        self.specimen = specimen
        self.seed = seed
        self.failed: list[FailedCheck] = []

    def check(self, check: Callable[..., T], *arguments: Any) -> T | None:
        """Run ``check(self, *arguments)``; where it fails, remember that and go on."""
        try:
            return check(self, *arguments)
        except Skipped:
            raise
        except Exception as error:  # Broken, and whatever the code of others raises
            self.failed.append(FailedCheck(error, check, arguments))
            return None
