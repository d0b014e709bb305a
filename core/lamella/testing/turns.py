"""Threads that take turns, so that whatever they share shows at once, and always."""

from __future__ import annotations

import dis
import functools
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any

__all__ = ["Turns"]

CORE = ("lamella", "numpy", "threadpoolctl")  # whose code runs without turns, as that of the standard library
CHANGES = ("CALL", "BINARY", "STORE_SUBSCR", "STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF")  # names of instructions
PATIENCE = 0.2  # seconds that a thread waits for the other one, which may itself wait for a lock


@functools.cache
def _after_changes(code: CodeType) -> frozenset[int]:
    """Where the instructions of code stand that follow one which may change something that others see, or read it."""
    pairs = itertools.pairwise(dis.get_instructions(code))
    return frozenset(second.offset for first, second in pairs if first.opname.startswith(CHANGES))


class Turns:
    """Two functions in two threads, of which only one runs at a time: up to a call or a store, then the other.

    What counts are calls and stores in layers' code: not of lamella's core and what it calls, which may hold a lock.
    Where a thread waits for a lock of a layer that the other one holds, they go on without turns.
    """

    def __init__(self) -> None:
        self._next = threading.Condition()
        self._turn, self._free = 0, False

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return what each function returns, or the exception that it raises."""
        results: list[Any] = [None, None]

        def work(me: int) -> None:
            sys.settrace(self._tracer(me))
            try:
                results[me] = functions[me]()
            except Exception as error:  # handed to the thread that waits
                results[me] = error
            finally:
                sys.settrace(None)
                self._go_on()

        workers = [threading.Thread(target=work, args=(me,)) for me in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return results

    def _tracer(self, me: int) -> Any:
        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "call":
                root = frame.f_globals.get("__name__", "").partition(".")[0]
                if root in CORE or root in sys.stdlib_module_names:
                    return None
                frame.f_trace_opcodes = True
            elif event == "opcode" and frame.f_lasti in _after_changes(frame.f_code):
                self._hand_over(me)
            return trace

        return trace

    def _hand_over(self, me: int) -> None:
        with self._next:
            self._turn = 1 - me
            self._next.notify()
            if not self._next.wait_for(lambda: self._free or self._turn == me, PATIENCE):
                self._free = True

    def _go_on(self) -> None:
        with self._next:
            self._free = True
            self._next.notify()
