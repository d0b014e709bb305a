"""Ctrl-C while a model works: it waits for a point where nothing is half done, and a second one interrupts at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interruption", "held"]


class Interruption:
    """Holds Ctrl-C back until ``check`` is called; a second Ctrl-C raises KeyboardInterrupt where it comes.

    It does so in the main thread only, where Python delivers signals, and only where nobody else handles them. With
    ``join``, one that stands within another hears what that one hears.
    """

    def __init__(self, *, join: bool = False) -> None:
        self.insisted = False
        self._asked = False
        self._join = join
        self._outer: Interruption | None = None
        self._before: Any = None

    @property
    def asked(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._asked or (self._outer is not None and self._outer.asked)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.asked:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self.insisted = True
            raise KeyboardInterrupt
        self._asked = True

    def __enter__(self) -> Self:
        there = _handler()
        if there is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._handle)
        elif self._join and isinstance(outer := getattr(there, "__self__", None), Interruption):
            self._outer = outer
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back altogether for a moment, so that what stands inside happens whole; after that it comes."""
    before = _handler()
    if not callable(before):
        yield
        return
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asked:
            signal.raise_signal(signal.SIGINT)


def _handler() -> Any:
    """What handles Ctrl-C; None where it does not come, beside the main thread."""
    return signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
