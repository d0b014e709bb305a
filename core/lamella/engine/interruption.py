"""Ctrl-C while a model works: it waits until no thread is left behind, and a second one interrupts at once."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interruption"]

# The functions of ``signal`` look for the names of numbers, which takes longer than a small step: these do not.
_SIGINT = int(signal.SIGINT)
_handler_of: Any = _signal.getsignal
_handle_by: Any = _signal.signal


class Interruption:
    """Holds Ctrl-C back until ``check`` is called; a second Ctrl-C raises KeyboardInterrupt where it comes.

    It does so in the main thread only, where Python delivers signals, and only where nobody else handles them. One that
    stands within another hears what that one hears, but for steps of a training ``between_steps``: they end first.
    """

    def __init__(self, *, between_steps: bool = False) -> None:
        self.insisted = False
        self._between_steps = between_steps
        self._asked = False
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
        if threading.current_thread() is not threading.main_thread():
            return self
        there = _handler_of(_SIGINT)
        if there is signal.default_int_handler:
            self._before = _handle_by(_SIGINT, self._handle)
        elif isinstance(outer := getattr(there, "__self__", None), Interruption):
            self._outer = None if outer._between_steps and not self._between_steps else outer
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            _handle_by(_SIGINT, self._before)
