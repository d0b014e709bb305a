"""Ctrl-C while a model trains: the first lets the step in progress end, the second interrupts at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interruption"]


class Interruption:
    """Holds Ctrl-C back until ``check`` is called; a second Ctrl-C raises KeyboardInterrupt where it comes.

    It does so in the main thread only, where Python delivers signals, and only where nobody else handles them.
    """

    def __init__(self) -> None:
        self.asked = False
        self.insisted = False
        self._before: Any = None

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self.asked:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.insisted = True
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> Self:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
