"""One normaliser per kind of constructor argument; after it the code trusts the value."""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from lamella.errors import ArgumentError, did_you_mean

__all__ = ["choice", "flag", "fraction", "knows", "number", "pair", "positive"]

_MOST = float(np.finfo("float32").max)  # what is more becomes infinite in models of float32

_P = ParamSpec("_P")
_T = TypeVar("_T")


def positive(value: Any, name: str, *, minimum: int = 1) -> int:
    """Return ``value`` as an int that is at least ``minimum``.

    >>> positive(10, "units")
    10
    """
    try:
        whole = operator.index(value)
    except TypeError:
        whole = minimum - 1
    if isinstance(value, bool) or whole < minimum:
        kind = "a positive int" if minimum == 1 else f"an int of at least {minimum}"
        raise ArgumentError(f"{name}: expected {kind}, got {value!r}")
    return whole


def pair(value: Any, name: str, *, minimum: int = 1) -> tuple[int, int]:
    """Return an int twice, or two ints as they are.

    >>> pair(3, "kernel_size"), pair((3, 5), "kernel_size")
    ((3, 3), (3, 5))
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ArgumentError(f"{name}: expected an int or two ints (height, width), got {value!r}")
    return positive(value[0], name, minimum=minimum), positive(value[1], name, minimum=minimum)


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
        raise ArgumentError(f"{name}: expected a {'finite ' if finite else ''}number, got {value!r}")
    if finite and not abs(value) <= _MOST:
        raise ArgumentError(f"{name}: expected a number that float32 holds, at most {_MOST:.2g}, got {value!r}")
    if minimum is not None and value < minimum:
        raise ArgumentError(f"{name}: expected a number of at least {minimum:g}, got {value!r}")
    if above is not None and value <= above:
        raise ArgumentError(f"{name}: expected a number above {above:g}, got {value!r}")
    return float(value)


def fraction(value: Any, name: str) -> float:
    """Return ``value`` as a float in [0, 1)."""
    result = number(value, name)
    if not 0.0 <= result < 1.0:
        raise ArgumentError(f"{name}: expected a fraction in [0, 1), got {value!r}")
    return result


def flag(value: Any, name: str) -> bool:
    """Return ``value`` if it is True or False; words and numbers would only look like one of them."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{name}: expected True or False, got {value!r}")
    return value


def choice(value: Any, name: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of the known strings."""
    options = list(known)
    if value not in options:
        raise ArgumentError(
            f"{name}: expected one of {', '.join(map(repr, options))}, got {value!r}."
            f"{did_you_mean(str(value), options)}"
        )
    return str(value)


def knows(**elsewhere: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Make a method answer arguments of other libraries, which it does not take, with what stands for them here."""

    def answering(method: Callable[_P, _T]) -> Callable[_P, _T]:
        own = inspect.signature(method).parameters

        @functools.wraps(method)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for name in kwargs:
                if name not in own:
                    where = f"{type(args[0]).__name__}.{method.__name__}"
                    hint = f" {elsewhere[name]}." if name in elsewhere else did_you_mean(name, own)
                    raise TypeError(f"{where}: there is no argument {name!r}.{hint}")
            return method(*args, **kwargs)

        return checked

    return answering
