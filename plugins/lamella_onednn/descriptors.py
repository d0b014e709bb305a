"""How arrays lie in memory, as oneDNN is told."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella_onednn.library import library

__all__ = ["Descriptor", "any_layout", "channels_last", "described", "dims", "is_channels_last", "new_channels_last"]

_FLOAT32 = 3
_ANY = 1  # the tag of a layout that oneDNN chooses
_MOST_AXES = 12
_ITEMSIZE = 4


class Descriptor:
    """A memory descriptor of oneDNN, for float32."""

    __slots__ = ("handle",)

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self.handle = handle

    def __del__(self) -> None:
        library().memory_desc_destroy(self.handle)

    @property
    def size(self) -> int:
        """How many bytes an array takes."""
        return int(library().size_of(self.handle))

    def equals(self, other: Descriptor) -> bool:
        """Whether both have one shape and lie in the same way."""
        return bool(library().are_equal(self.handle, other.handle))

    @classmethod
    def clone(cls, handle: Any) -> Descriptor:
        """Copy what belongs to another object of oneDNN."""
        return cls(library().made(library().memory_desc_clone, handle, what="a copy of a memory descriptor"))


def dims(values: Sequence[int]) -> Any:
    """Return an array of C of the length that oneDNN has for all of them."""
    return (ctypes.c_int64 * _MOST_AXES)(*values)


def described(shape: Sequence[int], strides: Sequence[int] | None = None) -> Descriptor:
    """Describe an array by its shape and, as NumPy counts them, its strides; without them the last axis is fastest."""
    steps = _steps(shape, range(len(shape))) if strides is None else [stride // _ITEMSIZE for stride in strides]
    create, what = library().memory_desc_create_with_strides, f"an array {tuple(shape)} with strides {steps}"
    return Descriptor(library().made(create, len(shape), dims(shape), _FLOAT32, dims(steps), what=what))


def channels_last(shape: Sequence[int]) -> Descriptor:
    """Describe images or series whose channels are fastest: (N, C, H, W) with the memory of (N, H, W, C)."""
    steps = _steps(shape, (0, *range(2, len(shape)), 1))
    return described(shape, [step * _ITEMSIZE for step in steps])


def any_layout(shape: Sequence[int]) -> Descriptor:
    """Describe an array that lies as suits oneDNN best."""
    create, what = library().memory_desc_create_with_tag, f"an array {tuple(shape)}"
    return Descriptor(library().made(create, len(shape), dims(shape), _FLOAT32, _ANY, what=what))


def _steps(shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """How many values lie between neighbours along each axis; axes from the slowest to the fastest."""
    return [math.prod(shape[other] for other in order[list(order).index(axis) + 1 :]) for axis in range(len(shape))]


def is_channels_last(x: Any) -> bool:
    """Whether an array lies as `channels_last` says."""
    return bool(x.transpose(0, *range(2, x.ndim), 1).flags.c_contiguous)


def new_channels_last(shape: Sequence[int]) -> Any:
    """Make an array that lies as `channels_last` says; its values are whatever was there."""
    axes = len(shape)
    return np.empty((shape[0], *shape[2:], shape[1]), "float32").transpose(0, axes - 1, *range(1, axes - 1))
