"""Graphs in onnxruntime: one session for each number of threads."""

from __future__ import annotations

import os
import threading
import weakref

import onnxruntime

from lamella.engine.threads import thread_count
from lamella_onnx.runtime import session

__all__ = ["Sessions"]

_of_parents: list[dict[int, onnxruntime.InferenceSession]] = []  # to end one in a forked child would hang
_all: weakref.WeakSet[Sessions] = weakref.WeakSet()


class Sessions:
    """A graph, loaded for as many threads as are asked for, and again in a forked child."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._start()
        _all.add(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[int, onnxruntime.InferenceSession] = {}

    def get(self) -> onnxruntime.InferenceSession:
        """Return the session for today's number of threads."""
        count = thread_count()
        found = self._loaded.get(count)
        if found is None:
            with self._lock:
                found = self._loaded[count] = self._loaded.get(count) or session(self._content, count)
        return found

    def leave_to_parent(self) -> None:
        """Begin anew in a forked child, which has not the threads of the parent's sessions."""
        _of_parents.append(self._loaded)
        self._start()


def _leave_all() -> None:
    for one in list(_all):
        one.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
