"""Threads that take turns, so that what they share is found at once, and in every run."""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import CodeType, FrameType
from typing import Any

import numpy as np

__all__ = ["Turns"]

CHANGES = ("CALL", "BINARY", "STORE_SUBSCR", "STORE_ATTR", "STORE_GLOBAL", "STORE_DEREF")  # names of instructions
PATIENCE = 0.2  # seconds that a thread waits for the other one, which may itself wait for a lock


@functools.cache
def _is_of_layers(path: str) -> bool:
    """Whether a file is neither lamella's core nor what that calls, NumPy and the standard library."""
    core, library = os.path.dirname(os.path.dirname(__file__)), os.path.dirname(os.__file__)
    if path.startswith(("<frozen", core + os.sep, os.path.dirname(np.__file__) + os.sep)):
        return False
    if os.path.basename(path) == "threadpoolctl.py":
        return False
    return not path.startswith(library + os.sep) or "site-packages" in path


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
        self._threads: dict[int, int] = {}  # which of the two a thread is

    def run(self, functions: Sequence[Callable[[], Any]]) -> list[Any]:
        """Return what each function returns, or the exception that it raises."""
        results: list[Any] = [None, None]

        def work(me: int) -> None:
            self._threads[threading.get_ident()] = me
            try:
                with _telling(self._instruction):
                    results[me] = functions[me]()
            except Exception as error:  # handed to the thread that waits
                results[me] = error
            finally:
                self._go_on()

        with _watching(self._instruction):
            workers = [threading.Thread(target=work, args=(me,)) for me in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        return results

    def _instruction(self, code: CodeType, offset: int) -> None:
        """Before an instruction of layers' code: hand over to the other thread, if something may have changed."""
        me = self._threads.get(threading.get_ident())
        if me is None or offset not in _after_changes(code):
            return
        with self._next:
            self._turn = 1 - me
            self._next.notify()
            if not self._next.wait_for(lambda: self._free or self._turn == me, PATIENCE):
                self._free = True

    def _go_on(self) -> None:
        with self._next:
            self._free = True
            self._next.notify()


Told = Callable[[CodeType, int], None]

if sys.version_info >= (3, 12):  # where sys.settrace in one thread ends what another one traces

    @contextlib.contextmanager
    def _watching(tell: Told) -> Iterator[None]:
        """Tell of every instruction of layers' code in all threads."""
        watch = sys.monitoring
        tool = next(k for k in range(6) if watch.get_tool(k) is None)

        def instruction(code: CodeType, offset: int) -> Any:
            return tell(code, offset) if _is_of_layers(code.co_filename) else watch.DISABLE

        watch.use_tool_id(tool, "lamella")
        watch.register_callback(tool, watch.events.INSTRUCTION, instruction)
        watch.set_events(tool, watch.events.INSTRUCTION)
        try:
            yield
        finally:
            watch.set_events(tool, 0)
            watch.free_tool_id(tool)

    def _telling(tell: Told) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

else:

    def _watching(tell: Told) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def _telling(tell: Told) -> Iterator[None]:
        """Tell of every instruction of layers' code in this thread."""

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "call":
                if not _is_of_layers(frame.f_code.co_filename):
                    return None
                frame.f_trace_opcodes = True
            elif event == "opcode":
                tell(frame.f_code, frame.f_lasti)
            return trace

        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(None)
