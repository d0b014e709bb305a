"""Routines: primitives of oneDNN, each made for arrays of certain shapes and strides, and kept to be run again.

Each thread has its own, since a primitive has memory to work in. Those that were not used for the longest time go.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lamella.engine.threads import thread_count
from lamella_onednn.descriptors import Descriptor
from lamella_onednn.library import Argument, Unimplemented, library

__all__ = [
    "Chain",
    "Choice",
    "Reorder",
    "Routine",
    "Step",
    "attributes",
    "choose",
    "kept",
    "new_memory",
    "scratch",
    "state",
    "step_argument",
]

_MOST = 512  # routines that a thread keeps
_CPU = 1
_IN_ORDER = 1
_ALIGNMENT = 64
SOURCE, DESTINATION = 1, 17
_POST_OPERATION, _SECOND_SOURCE = 1 << 15, 2


class _Owned:
    """A handle, and the function that destroys what it stands for."""

    __slots__ = ("destroy", "handle")

    def __init__(self, handle: ctypes.c_void_p, destroy: Callable[[ctypes.c_void_p], Any]) -> None:
        self.handle, self.destroy = handle, destroy

    def __del__(self) -> None:
        self.destroy(self.handle)


class _State(threading.local):
    """What a thread has."""

    def __init__(self) -> None:
        lib = library()
        engine = _Owned(lib.made(lib.engine_create, _CPU, 0, what="an engine"), lib.engine_destroy)
        stream = lib.made(lib.stream_create, engine.handle, _IN_ORDER, what="a stream")
        self.engine, self.stream = engine, _Owned(stream, lib.stream_destroy)
        self.kept: OrderedDict[Any, Any] = OrderedDict()
        self.threads = 0  # that OpenMP has for this one
        self.memory: dict[str, Any] = {}


_state: _State | None = None
_is_forked = False


def state() -> _State:
    """What this thread has."""
    global _state
    if _state is None:
        _state = _State()
    return _state


def _start_again() -> None:
    """In a forked child: OpenMP waits for threads that stayed behind, unless it is asked for one only."""
    global _state, _is_forked
    _state, _is_forked = None, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_again)


def kept(make: Callable[..., Any], *key: Any) -> Any:
    """Return ``make(*key)``, made once by each thread for each number of threads; None where oneDNN has no such thing.

    OpenMP keeps to that number of threads from then on.
    """
    own = state()
    count = 1 if _is_forked else thread_count()
    if own.threads != count:
        library().set_openmp_threads(count)
        own.threads = count
    full = (make, count, *key)
    try:
        own.kept.move_to_end(full)
    except KeyError:
        try:
            own.kept[full] = make(*key)
        except Unimplemented:
            own.kept[full] = None
        while len(own.kept) > _MOST:
            own.kept.popitem(last=False)
    return own.kept[full]


def scratch(name: str, size: int) -> Any:
    """Return so many bytes in this thread's memory of that name; what was in them before is lost."""
    memory = state().memory
    held = memory.get(name)
    if held is None or len(held) < size:
        held = memory[name] = new_memory(size)
    return held


def new_memory(size: int) -> Any:
    """Return so many bytes that begin where a line of the cache does."""
    raw = np.empty(size + _ALIGNMENT, "uint8")
    begin = -raw.__array_interface__["data"][0] % _ALIGNMENT
    return raw[begin : begin + size]


class Choice:
    """A primitive descriptor: which implementation oneDNN has chosen, and how the arrays lie that it wants."""

    __slots__ = ("handle", "what")

    def __init__(self, handle: ctypes.c_void_p, what: str) -> None:
        self.handle, self.what = handle, what

    def __del__(self) -> None:
        library().primitive_desc_destroy(self.handle)

    def layout(self, query: int, place: int = 0) -> Descriptor:
        """Return how the array lies that a query, and its place among others of the kind, stand for."""
        return Descriptor.clone(library().layout_of(self.handle, query, place))

    @property
    def implementation(self) -> str:
        """The name of the implementation."""
        name = ctypes.c_char_p()
        library().primitive_desc_query(self.handle, 8, 0, ctypes.cast(ctypes.byref(name), ctypes.c_void_p))
        return (name.value or b"").decode()


def choose(function: str, *arguments: Any, what: str) -> Choice:
    """Let oneDNN choose an implementation; ``what`` tells operation and shapes in the message of an error.

    Raises:
        Unimplemented: it has none.
    """
    create = getattr(library(), f"{function}_primitive_desc_create")
    plain = [one.handle if isinstance(one, Descriptor | Choice) else one for one in arguments]
    return Choice(library().made(create, state().engine.handle, *plain, what=what), what)


def step_argument(k: int) -> int:
    """The number that the array of step k has among the arguments of a routine."""
    return _POST_OPERATION * (k + 1) | _SECOND_SOURCE


Step = tuple[int, Descriptor | float]


@contextlib.contextmanager
def attributes(steps: Sequence[Step]) -> Iterator[ctypes.c_void_p]:
    """What a primitive is to do with each value besides: functions, by their numbers in oneDNN, of it and an array.

    With a number in place of an array it is a function of the value alone, and of that number: its second parameter.
    """
    lib, what = library(), "attributes"
    operations, attribute = lib.made(lib.post_ops_create, what=what), lib.made(lib.primitive_attr_create, what=what)
    try:
        for function, other in steps:
            if isinstance(other, Descriptor):
                lib.check(lib.post_ops_append_binary(operations, function, other.handle), what)
            else:
                lib.check(lib.post_ops_append_eltwise(operations, function, 1.0, other), what)
        lib.check(lib.primitive_attr_set_post_ops(attribute, operations), what)
        yield attribute
    finally:
        lib.post_ops_destroy(operations)
        lib.primitive_attr_destroy(attribute)


class Routine:
    """A primitive with a place for each of its arrays. Calling it with arrays, or addresses, runs it.

    Arguments:
        choice: the implementation.
        arguments: for each array what it stands for, by its number in oneDNN, and how it lies.
    """

    def __init__(self, choice: Choice, *arguments: tuple[int, Descriptor]) -> None:
        self.what = choice.what
        self._free = library().primitive_destroy, library().memory_destroy
        self._places: list[ctypes.c_void_p] = []
        self._primitive = library().made(library().primitive_create, choice.handle, what=choice.what)
        self._arguments = (Argument * len(arguments))()
        for k, (kind, layout) in enumerate(arguments):
            create, engine = library().memory_create, state().engine.handle
            place = library().made(create, layout.handle, engine, None, what=choice.what)
            self._places.append(place)
            self._arguments[k].kind, self._arguments[k].memory = kind, place
        self._put, self._execute, self._stream = (
            library().memory_set_data_handle,
            library().primitive_execute,
            state().stream,
        )

    def __call__(self, *arrays: Any) -> None:
        put = self._put
        for place, array in zip(self._places, arrays, strict=True):
            put(place, array if type(array) is int else array.__array_interface__["data"][0])
        if status := self._execute(self._primitive, self._stream.handle, len(arrays), self._arguments):
            library().check(status, self.what)

    def __del__(self) -> None:
        if hasattr(self, "_primitive"):
            destroy, free = self._free
            destroy(self._primitive)
            for place in self._places:
                free(place)


class Reorder(Routine):
    """Copies an array from one layout to another."""

    def __init__(self, source: Descriptor, target: Descriptor, what: str) -> None:
        engine, create = state().engine.handle, library().reorder_primitive_desc_create
        made = library().made(create, source.handle, engine, target.handle, engine, None, what=what)
        super().__init__(Choice(made, what), (SOURCE, source), (DESTINATION, target))


class Chain(Routine):
    """Element by element in one go: the first array, then for each step a function of the result and another array.

    Arguments:
        first: how the first array, and the result, lie.
        steps: functions by their numbers in oneDNN, each with how its array lies, which may be of size 1; from the
            second on a number may stand in place of an array, as in `attributes`.
        what: the operation and shapes, for errors.

    It is called with the first array, those of the steps, and the result.
    """

    def __init__(self, first: Descriptor, steps: Sequence[Step], what: str) -> None:
        (function, second), *others = steps
        assert isinstance(second, Descriptor)
        with attributes(others) as attribute:
            choice = choose("binary", function, first, second, first, attribute, what=what)
        places = [(step_argument(k), one) for k, (_, one) in enumerate(others) if isinstance(one, Descriptor)]
        super().__init__(choice, (SOURCE, first), (_SECOND_SOURCE, second), *places, (DESTINATION, first))
