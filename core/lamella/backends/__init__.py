"""Where arrays live and which functions work on them: NumPy, CuPy, and strict for tests."""

from __future__ import annotations

import functools
import importlib
from typing import Any, Protocol

from lamella.backends.namespace import DTYPE_NAMES, NAMESPACE, Namespace
from lamella.errors import ArgumentError, did_you_mean

__all__ = ["DTYPE_NAMES", "NAMESPACE", "Backend", "Namespace", "get_backend"]

_CLASSES = {"numpy": "NumPyBackend", "cupy": "CuPyBackend", "strict": "StrictBackend"}


class Backend(Protocol):
    """What the engine needs of a backend. Storage is a writable array; layers see arrays made from it."""

    name: str
    xp: Namespace
    views_are_live: bool  # whether a view follows later changes of its storage
    writes_in_place: bool  # whether functions can be given a piece of storage to write into
    uses_threads: bool  # whether slices of a batch run side by side; else the batch is one slice
    knows_shapes: bool  # whether shapes are plain ints, which can be held against what ``build`` said
    advice: str  # what to add to the error of a layer that fails

    def dtype(self, name: str) -> Any:
        """Return what the ``dtype`` of an array of this kind is."""

    def settled(self, array: Any) -> Any:
        """Return what a layer gave as the next one gets it."""

    def zeros(self, size: int, dtype: str) -> Any:
        """Return zeroed flat storage."""

    def view(self, storage: Any) -> Any:
        """Return what a layer sees of a piece of storage; it may not be written to."""

    def storable(self, array: Any) -> Any:
        """Return a layer's array as something that storage can be assigned or added."""

    def asarray(self, array: Any) -> Any:
        """Bring a NumPy array to where layers work."""

    def asnumpy(self, array: Any) -> Any:
        """Bring an array or storage back to NumPy."""


@functools.cache
def get_backend(name: str) -> Backend:
    """Return the backend of a name.

    >>> get_backend("numpy").xp.backend
    'numpy'
    """
    if name not in _CLASSES:
        known = ", ".join(map(repr, _CLASSES))
        raise ArgumentError(f"backend: expected one of {known}, got {name!r}.{did_you_mean(str(name), _CLASSES)}")
    backend: Backend = getattr(importlib.import_module(f"lamella.backends.{name}_backend"), _CLASSES[name])()
    return backend
