"""array-api-strict: raises on anything that is not in the array API standard. For tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.backends.namespace import Namespace

__all__ = ["StrictBackend"]


class StrictBackend:
    name = "strict"
    views_are_live = False

    def __init__(self) -> None:
        try:
            import array_api_strict
        except ImportError as error:  # an optional dependency
            raise ImportError("the 'strict' backend needs array-api-strict: pip install 'lamella[test]'") from error
        self.strict = array_api_strict
        self.xp = Namespace("strict", array_api_strict)

    def zeros(self, size: int, dtype: str) -> Any:
        return np.zeros(size, dtype)

    def view(self, storage: Any) -> Any:
        return self.strict.asarray(storage, copy=True)

    def storable(self, array: Any) -> Any:
        return np.asarray(array)

    def asarray(self, array: Any) -> Any:
        return self.strict.asarray(np.asarray(array), copy=True)

    def asnumpy(self, array: Any) -> Any:
        return np.array(array)
