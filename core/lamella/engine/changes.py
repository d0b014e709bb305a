"""Who changes a network: one thread at a time, whatever it does to it."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any

from lamella.errors import BusyError

__all__ = ["Change", "refuse_beside_another"]

_under_way: dict[int, Change] = {}  # id of a network -> what changes it


class Change:
    """A context in which this thread alone may change a network; within it, it may do so further.

    Raises:
        BusyError: another thread is changing it.
    """

    __slots__ = ("_key", "doing", "thread")

    def __init__(self, network: Any, doing: str) -> None:
        self._key, self.doing, self.thread = id(network), doing, threading.get_ident()

    def __enter__(self) -> None:
        first = _under_way.setdefault(self._key, self)  # in one go
        if first is not self and first.thread != self.thread:
            raise _busy(self.doing, first)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if _under_way.get(self._key) is self:
            del _under_way[self._key]


def refuse_beside_another(network: Any, doing: str) -> None:
    """Raise BusyError if another thread is changing a network."""
    first = _under_way.get(id(network))
    if first is not None and first.thread != threading.get_ident():
        raise _busy(doing, first)


def _busy(doing: str, first: Change) -> BusyError:
    name = next((f" {one.name!r}" for one in threading.enumerate() if one.ident == first.thread), "")
    return BusyError(
        f"{doing}: another thread{name} is in {first.doing} of this model, and only one at a time may change it. "
        "Likely fix: wait for it, or give each thread a model of its own, model.copy()"
    )


def _keep_own() -> None:
    """In a forked child: other threads stayed behind."""
    for key in [key for key, one in _under_way.items() if one.thread != threading.get_ident()]:
        del _under_way[key]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_own)
