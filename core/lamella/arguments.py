"""One normaliser per kind of constructor argument; after it the code trusts the value."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeGuard, TypeVar

import numpy as np

from lamella.elsewhere import MISSING, hint
from lamella.errors import ArgumentError, did_you_mean, shown

__all__ = [
    "answer",
    "choice",
    "dtype_name",
    "extent",
    "file_path",
    "flag",
    "fraction",
    "function",
    "initializer_argument",
    "is_axis",
    "knows",
    "measured",
    "number",
    "pair",
    "positive",
    "text",
    "too_many",
]

_LARGEST = 2**63 - 1  # what NumPy's and ONNX's ints hold
_AXES = 64  # the most that an array of NumPy has
_WIDEST = 2**31 - 1  # for sizes in space, of which some are multiplied
_MOST = float(np.finfo("float32").max)  # what is more becomes infinite in models of float32

_P = ParamSpec("_P")
_T = TypeVar("_T")


def positive(value: Any, name: str, *, minimum: int = 1, maximum: int = _LARGEST) -> int:
    """Return ``value`` as an int from ``minimum`` to ``maximum``.

    >>> positive(10, "units")
    10
    """
    try:
        whole = operator.index(value)
    except TypeError:
        whole = minimum - 1
    if isinstance(value, bool) or whole < minimum:
        kind = "a positive int" if minimum == 1 else f"an int of at least {minimum}"
        raise ArgumentError(f"{name}: expected {kind}, got {shown(value)}")
    if whole > maximum:
        raise ArgumentError(f"{name}: expected an int of at most {maximum}, got {shown(value)}")
    return whole


def pair(value: Any, name: str, *, minimum: int = 1) -> tuple[int, int]:
    """Return an int twice, or two ints as they are.

    >>> pair(3, "kernel_size"), pair((3, 5), "kernel_size")
    ((3, 3), (3, 5))
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ArgumentError(f"{name}: expected an int or two ints (height, width), got {shown(value)}")
    return extent(value[0], name, minimum=minimum), extent(value[1], name, minimum=minimum)


def extent(value: Any, name: str, *, minimum: int = 1) -> int:
    """Return ``value`` as an int that can be a size along one axis.

    >>> extent(3, "kernel_size")
    3
    """
    return positive(value, name, minimum=minimum, maximum=_WIDEST)


def number(
    value: Any, name: str, *, minimum: float | None = None, above: float | None = None, finite: bool = True
) -> float:
    """Return ``value`` as a float of at least ``minimum``, more than ``above``, and finite unless told otherwise.

    What is finite also stays so in float32.

    >>> import numpy as np
    >>> number(np.float32(0.5), "rate"), number(3, "limit", above=0.0)
    (0.5, 3.0)
    """
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or (finite and not isinstance(value, int) and not math.isfinite(value)):
        raise ArgumentError(f"{name}: expected a {'finite ' if finite else ''}number, got {shown(value)}")
    try:
        result = float(value)
    except OverflowError:  # an int of hundreds of digits
        result = math.inf
    if finite and not abs(result) <= _MOST:
        raise ArgumentError(f"{name}: expected a number that float32 holds, at most {_MOST:.2g}, got {shown(value)}")
    if minimum is not None and result < minimum:
        raise ArgumentError(f"{name}: expected a number of at least {minimum:g}, got {shown(value)}")
    if above is not None and result <= above:
        raise ArgumentError(f"{name}: expected a number above {above:g}, got {shown(value)}")
    return result


def measured(value: Any, name: str) -> Any:
    """Return what was measured: a float, or an array of floats such as those of classes.

    >>> import numpy as np
    >>> measured(1, "loss"), measured(np.array([1, 2]), "recall")
    (1.0, array([1., 2.]))
    """
    if not isinstance(value, np.ndarray) or not value.ndim:
        return number(value, name, finite=False)
    if value.dtype.kind not in "fiub":
        raise ArgumentError(f"{name}: expected numbers, got an array of {value.dtype}")
    return value.astype("float64")


def is_axis(value: Any) -> TypeGuard[int]:
    """Whether ``value`` is an int that can be the number of an axis, from either end.

    >>> is_axis(-1), is_axis(1.0), is_axis(10**6)
    (True, False, False)
    """
    return type(value) is int and -_AXES <= value < _AXES


def fraction(value: Any, name: str) -> float:
    """Return ``value`` as a float in [0, 1)."""
    result = number(value, name)
    if not 0.0 <= result < 1.0:
        raise ArgumentError(f"{name}: expected a fraction in [0, 1), got {shown(value)}")
    return result


def flag(value: Any, name: str) -> bool:
    """Return ``value`` if it is True or False; words and numbers would only look like one of them."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{name}: expected True or False, got {shown(value)}")
    return value


def choice(value: Any, name: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of the known strings."""
    options = list(known)
    if not isinstance(value, str) or value not in options:
        hint = did_you_mean(value, options) if isinstance(value, str) else ""
        raise ArgumentError(f"{name}: expected one of {', '.join(map(repr, options))}, got {shown(value)}.{hint}")
    return value


def text(value: Any, name: str, example: str) -> str:
    """Return ``value`` if it is a string with something in it; errors tell the example.

    >>> text("val_loss", "monitor", "'val_loss'")
    'val_loss'
    """
    if not isinstance(value, str) or not value:
        raise ArgumentError(f"{name}: expected a name such as {example}, got {shown(value)}")
    return value


def file_path(value: Any, name: str) -> str:
    """Return the path of a file as a string.

    >>> import pathlib
    >>> file_path(pathlib.Path("digits.lamella"), "path")
    'digits.lamella'
    """
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path or not _can_be_encoded(path):
        raise ArgumentError(f"{name}: expected the path of a file, a string or a pathlib.Path, got {shown(value)}")
    return path


def _can_be_encoded(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def function(value: Any, name: str, signature: str) -> Any:
    """Return ``value`` if it can be called; errors tell how it will be."""
    if not callable(value):
        raise ArgumentError(f"{name}: expected a function {signature}, got {shown(value)}")
    return value


def initializer_argument(value: Any, name: str) -> Any:
    """Return ``value`` if it can be an initializer: a registered name, a function, or an object that is called."""
    if isinstance(value, type):
        raise ArgumentError(
            f"{name}: expected an initializer, got the class {value.__name__}; did you mean {value.__name__}()?"
        )
    if not callable(value) and not (isinstance(value, str) and value):
        raise ArgumentError(
            f"{name}: expected a registered name or a function (rng, shape, fan_in, fan_out) -> array, got "
            f"{shown(value)}"
        )
    return value


def dtype_name(value: Any, name: str, known: Sequence[str]) -> str:
    """Return the name of a dtype, from a name or a type that NumPy knows, such as ``np.float32``.

    >>> dtype_name(np.float32, "dtype", ("float32", "float64"))
    'float32'
    """
    if isinstance(value, type | np.dtype):
        with contextlib.suppress(TypeError):  # for some other class
            value = np.dtype(value).name
    return choice(value, name, known)


def knows(elsewhere: Mapping[str, str]) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Make a method answer arguments of other libraries, which it does not take, with what stands for them here."""

    def answering(method: Callable[_P, _T]) -> Callable[_P, _T]:
        own = inspect.signature(method).parameters
        kinds = [one.kind for one in own.values()]
        most = math.inf if inspect.Parameter.VAR_POSITIONAL in kinds else _by_position(own)
        names = list(own)
        needed = [
            name
            for name, one in own.items()
            if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        ]

        @functools.wraps(method)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            unknown = next((name for name in kwargs if name not in own), None)
            if unknown is not None or len(args) > most:
                where = _called(args[0], method)
                if unknown is not None:
                    raise TypeError(f"{where}: there is no argument {unknown!r}.{answer(unknown, own, elsewhere)}")
                raise TypeError(f"{where}: {too_many(own, args, elsewhere)}")
            given = names[: len(args)]
            if args and (missing := [name for name in needed if name not in kwargs and name not in given]):
                raise TypeError(f"{_called(args[0], method)}: {_missing(missing)}")
            return method(*args, **kwargs)

        return checked

    return answering


def _called(owner: object, method: Callable[..., Any]) -> str:
    """What is called, for messages: a class, or a method of one."""
    name = type(owner).__name__
    return name if method.__name__ == "__init__" else f"{name}.{method.__name__}"


def _missing(names: list[str]) -> str:
    """What is wrong where arguments are missing, and what to say for them."""
    told = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing."
    return told + "".join(hint(MISSING, name) for name in names)


def answer(name: str, own: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    """Return what stands for an argument that there is not, or resembles it, to end an error with."""
    return hint(elsewhere, name) or did_you_mean(name, own)


def too_many(own: Mapping[str, inspect.Parameter], given: Sequence[Any], elsewhere: Mapping[str, str]) -> str:
    """Return what is wrong if more is given by position than may be, else an empty string."""
    most = _by_position(own)
    if len(given) <= most:
        return ""
    ahead = [name for name in list(own)[:most] if name not in ("self", "model")]
    rest = [f"{name}=" for name in list(own)[most:]]
    names = ", ".join(rest[:6]) + (", ..." if len(rest) > 6 else "")
    return (
        f"expected {' and '.join(ahead) or 'nothing'} by position{' and all others by name' if rest else ''}, got "
        f"{', '.join(map(shown, given[most:]))} besides."
        + (hint(elsewhere, "*") or (f" Likely fix: name it, as one of {names}" if rest else ""))
    )


def _by_position(own: Mapping[str, inspect.Parameter]) -> int:
    """How many arguments may be given by position."""
    return sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in own.values())
