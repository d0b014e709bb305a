"""array-api-strict: raises on what is not in the array API standard, but that an index may be short. For tests."""

from __future__ import annotations

import functools
import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np

from lamella.backends.base import Backend
from lamella.backends.namespace import NAMESPACE, Namespace

__all__ = ["StrictBackend"]


class StrictBackend(Backend):
    """Arrays that have nothing but what the standard says."""

    name = "strict"
    views_are_live = writes_in_place = uses_threads = False
    knows_shapes = True
    advice = "; arrays here have only what every backend has: functions of ctx.xp, not NumPy's, and no methods"

    def __init__(self) -> None:
        try:
            import array_api_strict
        except ImportError as error:  # an optional dependency
            raise ImportError("the 'strict' backend needs array-api-strict: pip install array-api-strict") from error
        given = {name: getattr(array_api_strict, name) for name in NAMESPACE}
        array = _shortly_indexed(type(array_api_strict.zeros(0)))
        functions = {name: _giving(array, one) if inspect.isfunction(one) else one for name, one in given.items()}
        self.xp = Namespace("strict", SimpleNamespace(**functions))

    def dtype(self, name: str) -> Any:
        return getattr(self.xp, name)

    def settled(self, array: Any) -> Any:
        return array

    def zeros(self, size: int, dtype: str) -> Any:
        return np.zeros(size, dtype)

    def view(self, storage: Any) -> Any:
        return self.xp.asarray(storage, copy=True)

    def storable(self, array: Any) -> Any:
        return np.asarray(array)

    def asarray(self, array: Any) -> Any:
        return self.xp.asarray(np.asarray(array), copy=True)

    def asnumpy(self, array: Any) -> Any:
        return np.array(array)


def _shortly_indexed(base: Any) -> Any:
    """Strict arrays of which an index may leave out the last axes: there the standard says nothing, and all agree."""

    class Array(base):  # type: ignore[misc]
        __slots__ = ()  # so that an array of the base can become one

        def __getitem__(self, key: Any) -> Any:
            keys = key if isinstance(key, tuple) else (key,)
            whole = any(one is ... or isinstance(one, base) for one in keys)
            return super().__getitem__(key if whole else (*keys, ...))

        @staticmethod
        def _normalize_two_args(*arrays: Any) -> Any:  # its arrays of one number lead to results of the base
            return tuple(_become(Array, one) for one in base._normalize_two_args(*arrays))

    return Array


def _giving(array: Any, function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return _become(array, function(*args, **options))

    return call


def _become(array: Any, given: Any) -> Any:
    given.__class__ = array
    return given
