"""Where the arrays of a network live: flat buffers, and named views into them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, NoReturn

import numpy as np

from lamella.backends import Backend
from lamella.elsewhere import OPTIMIZER, hint
from lamella.errors import ArgumentError, DataError, GraphError, did_you_mean, shown
from lamella.initializers import initializer_of
from lamella.protocol.declare import ArrayDeclaration
from lamella.protocol.inputs import as_array

__all__ = ["ArrayMapping", "Layout", "Storage", "draw", "fitting"]


class _Segment(NamedTuple):
    start: int
    stop: int
    stored: tuple[int, ...]  # the shape in memory order
    logical: tuple[int, ...]  # the permutation from memory order to the axes that layers see


class Layout:
    """Where named arrays lie in one flat buffer, each in the memory order that its layer asked for."""

    def __init__(self, declarations: Mapping[str, ArrayDeclaration]) -> None:
        self.declarations = declarations
        self._segments: dict[str, _Segment] = {}
        self.size = 0
        for name, declared in declarations.items():
            stored = tuple(declared.shape[axis] for axis in declared.memory)
            logical = tuple(declared.memory.index(axis) for axis in range(len(stored)))
            start, self.size = self.size, self.size + math.prod(stored)
            self._segments[name] = _Segment(start, self.size, stored, logical)

    def part(self, flat: Any, name: str) -> Any:
        """Return the piece of a buffer that holds an array, with the axes that layers see."""
        segment = self._segments[name]
        return flat[segment.start : segment.stop].reshape(segment.stored).transpose(segment.logical)

    def stored(self, flat: Any) -> dict[str, Any]:
        """Return the pieces of a buffer by name, with their axes in the order that they have in memory."""
        return {
            name: flat[segment.start : segment.stop].reshape(segment.stored) for name, segment in self._segments.items()
        }

    def runs(self, names: Collection[str]) -> list[slice]:
        """Return the pieces of a buffer that hold the named arrays, neighbours joined."""
        found: list[slice] = []
        for name, segment in self._segments.items():
            if name not in names or segment.start == segment.stop:
                continue
            if found and found[-1].stop == segment.start:
                found[-1] = slice(found[-1].start, segment.stop)
            else:
                found.append(slice(segment.start, segment.stop))
        return found


class Storage:
    """Named arrays of one dtype in one flat buffer on a backend.

    Attributes:
        flat: the buffer.
        version: how often arrays were assigned; training notices that its other buffer is out of date.
    """

    def __init__(self, layout: Layout, dtype: str, backend: Backend) -> None:
        self.layout, self.dtype, self.backend = layout, dtype, backend
        self.flat = backend.zeros(layout.size, dtype)
        self.version = 0
        self._parts: dict[str, Any] = {}
        self._views: dict[str, Any] | None = None

    def empty_like(self) -> Storage:
        """Return zeroed storage of the same layout."""
        return Storage(self.layout, self.dtype, self.backend)

    def copy(self) -> Storage:
        """Return storage of the same layout with the same values."""
        twin = self.empty_like()
        twin.flat[...] = self.flat
        return twin

    def part(self, name: str) -> Any:
        """Return the writable piece of the buffer that holds an array, with the axes that layers see."""
        part = self._parts.get(name)
        if part is None:
            part = self._parts[name] = self.layout.part(self.flat, name)
        return part

    def stored(self) -> dict[str, Any]:
        """Return every array, to read and write, with its axes in the order that they have in memory."""
        return self.layout.stored(self.flat)

    def views(self) -> dict[str, Any]:
        """Return every array as layers see it."""
        if self._views is None or not self.backend.views_are_live:
            self._views = {name: self.backend.view(self.part(name)) for name in self.layout.declarations}
        return self._views

    def numpy(self, name: str) -> np.ndarray[Any, Any]:
        """Return a copy of an array, in C order."""
        return np.array(self.backend.asnumpy(self.part(name)), order="C")

    def assign(self, name: str, value: Any) -> None:
        """Replace an array's values."""
        self.part(name)[...] = self.backend.storable(self.backend.asarray(np.asarray(value, dtype=self.dtype)))
        self.version += 1

    def __len__(self) -> int:
        return self.layout.size


class ArrayMapping(Mapping[str, Any]):
    """The arrays of a model by name, as NumPy. Reading gives copies; assign with ``mapping[name] = array``."""

    __slots__ = ("_assign", "_declarations", "_dtype", "_kind", "_read")

    def __init__(
        self,
        storage: Storage,
        read: Callable[[], AbstractContextManager[Any]],
        assign: Callable[[Mapping[str, Any]], None],
        kind: str,
    ) -> None:
        self._declarations, self._dtype = storage.layout.declarations, storage.dtype
        self._read, self._assign, self._kind = read, assign, kind  # training changes from one buffer to another

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        self._check(name)
        with self._read() as values:
            array: np.ndarray[Any, Any] = getattr(values, self._kind).numpy(name)
        array.flags.writeable = False  # writing into a copy would be lost
        return array

    def __setitem__(self, name: str, value: Any) -> None:
        self._check(name)
        self._assign({name: fitting(f"model.{self._kind}[{name!r}]", self._declarations[name], value)})

    def _check(self, name: str) -> None:
        if not isinstance(name, str) or name not in self._declarations:
            hint = did_you_mean(name, self) if isinstance(name, str) else ""
            raise KeyError(f"no {self._kind} called {shown(name)}; there are {', '.join(self) or 'none'}.{hint}")

    def __call__(self) -> NoReturn:
        raise TypeError(
            f"model.{self._kind} is a mapping of arrays by name, and is not called.{hint(OPTIMIZER, 'params')}"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._declarations)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __len__(self) -> int:
        return len(self._declarations)

    def __repr__(self) -> str:
        rows = "".join(f"\n  {name}: {self._declarations[name].shape}" for name in self)
        return f"<{len(self)} {self._kind} arrays, {self._dtype}>{rows}"


def fitting(where: str, declared: ArrayDeclaration, value: Any) -> np.ndarray[Any, Any]:
    """Return what shall become an array of a network, as NumPy.

    Raises:
        DataError: another shape, or no numbers.
    """
    array = as_array(value, f"{where}: expected numbers")
    if array.shape != declared.shape:
        raise DataError(f"{where}: expected shape {declared.shape}, got {array.shape}")
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: expected numbers, got dtype {array.dtype}")
    return array


def draw(storage: Storage, seed: int) -> None:
    """Give every array its initial values; each has a generator of its own, seeded by ``(seed, crc32(name))``."""
    for name, declared in storage.layout.declarations.items():
        initializer = initializer_of(declared.initializer)
        rng = np.random.default_rng([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, zlib.crc32(name.encode())])
        try:
            values = np.asarray(initializer(rng, declared.shape, declared.fan_in, declared.fan_out))
        except ArgumentError as error:  # an initializer's own words
            raise GraphError(f"{name}: {error}") from None
        except Exception as error:
            raise GraphError(
                f"{name}: initializer {declared.initializer!r} failed with {type(error).__name__}: {error}. Expected a "
                "function (rng, shape, fan_in, fan_out) -> array"
            ) from error
        if values.shape != declared.shape or values.dtype.kind not in "fiub":
            raise GraphError(
                f"{name}: initializer {declared.initializer!r} gave shape {values.shape}, {values.dtype}; expected "
                f"numeric values of shape {declared.shape}"
            )
        storage.assign(name, values)
