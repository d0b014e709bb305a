"""Memory for intermediate results that every thread keeps and uses again, tile after tile and step after step."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

__all__ = ["workspace"]

_kept = threading.local()


def workspace(name: str, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array in this thread's memory of that name; what was in it before is lost."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    held = getattr(_kept, name, None)
    if held is None or held.size < size:
        held = np.empty(size, "uint8")
        setattr(_kept, name, held)
    return held[:size].view(dtype).reshape(shape)
