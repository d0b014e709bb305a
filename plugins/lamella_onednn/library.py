"""The oneDNN library: where it is, and the types of its C functions.

Names and numbers are those of oneDNN's header ``dnnl.h``, of version 3, without the prefix ``dnnl_``.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from ctypes import POINTER, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any, ClassVar

__all__ = ["Argument", "Library", "Unimplemented", "keep_freed_memory", "library"]

VARIABLE = "LAMELLA_ONEDNN"  # the path of the library
_MAJOR = 3  # of versions whose functions are those below
WHEEL = "onednn-cpu-gomp"
_INSTALL = 'pip install "lamella[onednn]" on Linux x86-64'
_SPINNING = "GOMP_SPINCOUNT"
_SPINS = "10000"  # some ten microseconds
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt
_KEPT_BYTES, _OWN_BYTES = 1 << 30, 1 << 25  # the latter is the most that glibc takes
_UNIMPLEMENTED = 3
_STATUSES = ("success", "out of memory", "invalid arguments", "unimplemented", "last implementation", "runtime error")

_Handle, _Place, _Dims = c_void_p, POINTER(c_void_p), POINTER(c_int64)


class Argument(ctypes.Structure):
    """An array that a primitive is given: what it stands for, and its memory object."""

    _fields_: ClassVar[Any] = [("kind", c_int), ("memory", _Handle)]


class _Version(ctypes.Structure):
    _fields_: ClassVar[Any] = [(name, c_int) for name in ("major", "minor", "patch")]


_WINDOWS = (_Dims,) * 4
_CREATE = (_Place, _Handle)  # the new primitive descriptor, and the engine
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "engine_create": (_Place, c_int, c_size_t),
    "engine_destroy": (_Handle,),
    "stream_create": (_Place, _Handle, c_uint),
    "stream_destroy": (_Handle,),
    "memory_desc_create_with_strides": (_Place, c_int, _Dims, c_int, _Dims),
    "memory_desc_create_with_tag": (_Place, c_int, _Dims, c_int, c_int),
    "memory_desc_clone": (_Place, _Handle),
    "memory_desc_destroy": (_Handle,),
    "memory_create": (_Place, _Handle, _Handle, _Handle),
    "memory_set_data_handle": (_Handle, _Handle),
    "memory_destroy": (_Handle,),
    "primitive_desc_query": (_Handle, c_int, c_int, _Handle),
    "primitive_desc_destroy": (_Handle,),
    "primitive_create": (_Place, _Handle),
    "primitive_execute": (_Handle, _Handle, c_int, POINTER(Argument)),
    "primitive_destroy": (_Handle,),
    "primitive_attr_create": (_Place,),
    "primitive_attr_set_post_ops": (_Handle, _Handle),
    "primitive_attr_destroy": (_Handle,),
    "post_ops_create": (_Place,),
    "post_ops_append_binary": (_Handle, c_int, _Handle),
    "post_ops_append_eltwise": (_Handle, c_int, c_float, c_float),
    "post_ops_destroy": (_Handle,),
    "reorder_primitive_desc_create": (_Place, *(_Handle,) * 5),
    "convolution_forward_primitive_desc_create": (*_CREATE, c_int, c_int, *(_Handle,) * 4, *_WINDOWS, _Handle),
    "convolution_backward_data_primitive_desc_create": (
        *_CREATE, c_int, *(_Handle,) * 3, *_WINDOWS, _Handle, _Handle,
    ),
    "convolution_backward_weights_primitive_desc_create": (
        *_CREATE, c_int, *(_Handle,) * 4, *_WINDOWS, _Handle, _Handle,
    ),
    "pooling_forward_primitive_desc_create": (*_CREATE, c_int, c_int, _Handle, _Handle, _Dims, *_WINDOWS, _Handle),
    "pooling_backward_primitive_desc_create": (
        *_CREATE, c_int, _Handle, _Handle, _Dims, *_WINDOWS, _Handle, _Handle,
    ),
    "batch_normalization_forward_primitive_desc_create": (
        *_CREATE, c_int, _Handle, _Handle, c_float, c_uint, _Handle,
    ),
    "batch_normalization_backward_primitive_desc_create": (
        *_CREATE, c_int, *(_Handle,) * 3, c_float, c_uint, _Handle, _Handle,
    ),
    "vanilla_rnn_forward_primitive_desc_create": (
        *_CREATE, c_int, c_int, c_int, *(_Handle,) * 7, c_uint, c_float, c_float, _Handle,
    ),
    "vanilla_rnn_backward_primitive_desc_create": (
        *_CREATE, c_int, c_int, c_int, *(_Handle,) * 14, c_uint, c_float, c_float, _Handle, _Handle,
    ),
    "lstm_forward_primitive_desc_create": (*_CREATE, c_int, c_int, *(_Handle,) * 11, c_uint, _Handle),
    "lstm_backward_primitive_desc_create": (*_CREATE, c_int, c_int, *(_Handle,) * 22, c_uint, _Handle, _Handle),
    "lbr_gru_forward_primitive_desc_create": (*_CREATE, c_int, c_int, *(_Handle,) * 7, c_uint, _Handle),
    "lbr_gru_backward_primitive_desc_create": (*_CREATE, c_int, c_int, *(_Handle,) * 14, c_uint, _Handle, _Handle),
    "matmul_primitive_desc_create": (*_CREATE, *(_Handle,) * 5),
    "binary_primitive_desc_create": (*_CREATE, c_int, *(_Handle,) * 4),
    "eltwise_forward_primitive_desc_create": (
        *_CREATE, c_int, c_int, _Handle, _Handle, c_float, c_float, _Handle,
    ),
    "eltwise_backward_primitive_desc_create": (
        *_CREATE, c_int, *(_Handle,) * 3, c_float, c_float, _Handle, _Handle,
    ),
}  # fmt: skip


class Unimplemented(Exception):
    """oneDNN has no implementation for these arrays."""


class Library:
    """The C functions, by their names without prefix. A status that is not success becomes an error."""

    def __init__(self, path: str) -> None:
        """Load a library.

        Raises:
            ImportError: it cannot be loaded, or is another version or library.
        """
        try:
            loaded = _load(path)
            loaded.dnnl_version.restype = POINTER(_Version)
            version = loaded.dnnl_version().contents
        except (OSError, AttributeError) as error:
            raise ImportError(f"no oneDNN library can be loaded here: {error}") from error
        self.path, self.version = path, (version.major, version.minor, version.patch)
        if version.major != _MAJOR:
            raise ImportError(f"{path} is oneDNN {'.'.join(map(str, self.version))}, and not version {_MAJOR}")
        for name, types in _FUNCTIONS.items():
            function = getattr(loaded, f"dnnl_{name}")
            function.argtypes, function.restype = types, c_int
            setattr(self, name, function)
        self.size_of = loaded.dnnl_memory_desc_get_size
        self.size_of.argtypes, self.size_of.restype = (_Handle,), c_size_t
        self.layout_of = loaded.dnnl_primitive_desc_query_md
        self.layout_of.argtypes, self.layout_of.restype = (_Handle, c_int, c_int), _Handle
        self.are_equal = loaded.dnnl_memory_desc_equal
        self.are_equal.argtypes, self.are_equal.restype = (_Handle, _Handle), c_int
        self.set_openmp_threads = getattr(loaded, "omp_set_num_threads", _ignore)  # of OpenMP, which it depends on

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"dnnl_{name} is not among the functions of oneDNN that lamella uses")

    def check(self, status: int, what: str) -> None:
        """Raise what a status says.

        Raises:
            Unimplemented: there is no implementation.
            RuntimeError: anything else went wrong.
        """
        if status == _UNIMPLEMENTED:
            raise Unimplemented(what)
        if status:
            told = _STATUSES[status] if status < len(_STATUSES) else "an error"
            raise RuntimeError(f"oneDNN failed on {what}: {told} (status {status})")

    def made(self, function: Any, *arguments: Any, what: str) -> c_void_p:
        """Return the object that a function makes, which the caller has to destroy."""
        handle = c_void_p()
        self.check(function(ctypes.byref(handle), *arguments), what)
        return handle


def keep_freed_memory() -> None:
    """Let the memory of freed arrays stay with the process, as the engine does, and all of it, where that is glibc's.

    Every step takes the same again. Slices keep to little of it, but here the arrays are those of whole batches.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # the last of Windows, where None is no library
        option = ctypes.CDLL(None).mallopt
        option(_TRIM_THRESHOLD, _KEPT_BYTES)
        option(_MMAP_THRESHOLD, _OWN_BYTES)


def _ignore(count: int) -> None:
    """In place of OpenMP, where the library was built without."""


def _load(path: str) -> ctypes.CDLL:
    """Load a library; its threads, if they are the first of OpenMP here, soon sleep where there is nothing to do.

    They would spin for milliseconds otherwise, on a core that the threads of lamella want.
    """
    if _SPINNING in os.environ or "OMP_WAIT_POLICY" in os.environ:
        return ctypes.CDLL(path)
    os.environ[_SPINNING] = _SPINS
    try:
        return ctypes.CDLL(path)
    finally:
        del os.environ[_SPINNING]


@functools.cache
def library() -> Library:
    """Return oneDNN, found once: where the variable says, beside this Python, in the wheel, or in the system.

    Raises:
        ImportError: there is none that works; the message says how to install one.
    """
    named = os.environ.get(VARIABLE)
    if named:
        try:
            return Library(named)
        except ImportError as error:
            raise ImportError(
                f"the variable {VARIABLE} does not lead to oneDNN {_MAJOR}: {error}. Likely fix: unset it, and "
                f"{_INSTALL}"
            ) from error
    reasons = []
    for path in dict.fromkeys(_places()):
        try:
            return Library(path)
        except ImportError as error:
            reasons.append(f"; {error}")
    raise ImportError(
        f"the 'onednn' backend needs oneDNN {_MAJOR}: {_INSTALL}, or let the variable {VARIABLE} name its "
        f"libdnnl.so{''.join(reasons)}"
    )


def _places() -> Iterator[str]:
    """Where the library may be."""
    names = ("libdnnl.so.3", "libdnnl.so")
    for path in (Path(sys.prefix, "lib", name) for name in names):
        if path.exists():
            yield str(path)
    try:
        files = importlib.metadata.files(WHEEL) or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name in names and Path(str(file.locate())).exists():
            yield str(Path(str(file.locate())).resolve())
    yield from filter(None, [ctypes.util.find_library("dnnl")])
