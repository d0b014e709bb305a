"""Where arrays live and which functions work on them: NumPy, CuPy, and strict for tests. Plugins bring others."""

from __future__ import annotations

import functools
import os
from typing import Any

from lamella.backends.base import Backend
from lamella.backends.cupy_backend import CuPyBackend
from lamella.backends.namespace import DTYPE_NAMES, NAMESPACE, Namespace
from lamella.backends.numpy_backend import NumPyBackend
from lamella.backends.strict_backend import StrictBackend
from lamella.errors import BackendError, RegistryError
from lamella.hookspecs import hookimpl
from lamella.registry import Kind

__all__ = ["BACKENDS", "DTYPE_NAMES", "NAMESPACE", "Backend", "Namespace", "get_backend"]

BACKENDS = Kind("backends", "lamella.backends.Backend", base=Backend)


def get_backend(name: str | None = None) -> Backend:
    """Return the backend of a name; without one that of the variable ``LAMELLA_BACKEND``, else NumPy.

    Raises:
        RegistryError: no plugin gives a backend of this name.
        BackendError: what the backend needs is not installed; the message says how to install it.

    >>> get_backend("numpy").xp.backend
    'numpy'
    """
    if name is not None:
        return _only(BACKENDS.find(name))
    try:
        return _only(BACKENDS.find(os.environ.get("LAMELLA_BACKEND") or "numpy"))
    except RegistryError as error:
        raise RegistryError(f"the variable LAMELLA_BACKEND: {error}") from None


@functools.cache
def _only(kind: type[Backend]) -> Backend:
    """The one instance of a class."""
    try:
        backend = kind()
    except ImportError as error:
        raise BackendError(str(error)) from error
    if backend.xp.backend != backend.name:
        raise RegistryError(
            f"backend {backend.name!r}: its xp is that of {backend.xp.backend!r}, so its kernels would never run. "
            f"Likely fix: self.xp = Namespace({backend.name!r}, ...) in {kind.__qualname__}.__init__"
        )
    return backend


@hookimpl
def lamella_backends() -> dict[str, Any]:
    return {"numpy": NumPyBackend, "cupy": CuPyBackend, "strict": StrictBackend}


def __dir__() -> list[str]:
    return __all__
