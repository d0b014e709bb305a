"""The part of the round trip that needs no run: arguments that nobody can change, and copies that are equal."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from lamella import registry
from lamella.protocol import Layer
from lamella.protocol.configured import Configured
from lamella.testing.checks import Checks
from lamella.testing.comparison import Broken
from lamella.testing.subjects import kind_of

__all__ = ["arguments_are_immutable", "comparable", "configuration", "from_config", "twin_of", "ways_to_copy"]

MUTABLE = {
    list: "a tuple",
    deque: "a tuple",
    dict: "types.MappingProxyType",
    set: "a frozenset",
    bytearray: "bytes",
    SimpleNamespace: "a frozen dataclass",
    np.random.Generator: "a seed",
}


IMMUTABLE = str | bytes | int | float | complex | None | np.generic | np.dtype | Configured
"""Types of values that stay what they are; other objects may change inside, which their pickled form tells."""


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, Configured | type)


def arguments_are_immutable(case: Checks) -> None:
    """The arguments can't be changed, neither in the configuration nor where the layer holds them."""
    subject = case.specimen.subject
    arguments = list(map(comparable, subject.config().values()))
    for path, value in _attributes(subject):
        kind = next((kind for kind in MUTABLE if isinstance(value, kind)), None)
        if kind is None and not (isinstance(value, np.ndarray) and value.flags.writeable):
            continue
        if not path.startswith("_config.") and comparable(value) not in arguments:
            continue  # made by the constructor, and no argument
        better = "a tuple, or say array.flags.writeable = False" if kind is None else MUTABLE[kind]
        raise Broken(
            f"{type(subject).__name__}.{path.removeprefix('_config.')} is a {type(value).__name__}, which anyone can "
            f"change: {value!r:.60}",
            cause=f"a layer is configuration, shared by nodes and threads; make it {better} in the constructor",
        )


def comparable(value: Any) -> Any:
    """What can be compared later, of values that may change."""
    if isinstance(value, Mapping):
        return tuple((key, comparable(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(comparable, value))
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(repr, value)))
    if isinstance(value, np.ndarray):
        return comparable(value.tolist())
    if isinstance(value, IMMUTABLE | type) or callable(value):
        return value
    try:
        return pickle.dumps(value)
    except Exception:  # a lock, say, or an object whose own code raises
        return value


def _attributes(subject: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(subject).items():
        yield from _inside(name, value)


def _inside(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield path, value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _inside(f"{path}.{key}", item)
    elif isinstance(value, tuple | frozenset):
        for k, item in enumerate(value):
            yield from _inside(f"{path}[{k}]", item)
    elif isinstance(value, SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        for name, item in vars(value).items() if hasattr(value, "__dict__") else ():
            yield from _inside(f"{path}.{name}", item)


def from_config(subject: Any) -> Any:
    """A new object from plain arguments, with the name and trainability of the old one."""
    twin = subject.replace()
    if isinstance(subject, Layer):
        twin = twin if subject.name is None else twin.named(subject.name)
        twin = twin if subject.trainable else twin.frozen()
    return twin


WAYS: dict[str, Callable[[Any], Any]] = {
    "config": from_config,
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda subject: pickle.loads(pickle.dumps(subject)),
}


def twin_of(subject: Any, way: str) -> Any:
    """An equal object, by one of the `WAYS`."""
    try:
        twin = WAYS[way](subject)
    except Exception as error:  # whatever constructor and arguments raise
        raise Broken(
            f"{way} fails: {type(error).__name__}: {error}",
            cause="an argument that its own config() does not hold, or that can't be copied; arguments are plain data, "
            "layers, or things that plugins register",
        ) from error
    if twin != subject and repr(twin) != repr(subject):  # NaN is not equal to itself
        raise Broken(
            f"what {way} gives is not equal: {twin!r} for {subject!r}; config() {twin.config()!r} and "
            f"{subject.config()!r}",
            cause="an argument without ==, or a config() that is not the arguments of the constructor",
        )
    return twin


def ways_to_copy(subject: Any) -> tuple[list[str], str]:
    """The `WAYS` that an object must take, and why files are left out, if they are."""
    functions = [name for name, value in subject.config().items() if _is_function(value)]
    ways = ["config", "copy.copy", "copy.deepcopy"]
    if registry.name_of(kind_of(subject), type(subject)) is None:
        return ways, "not registered, so not in files"
    if functions:
        return ways, f"{functions[0]} is a function, which no file holds"
    return [*ways, "pickle"], ""


def configuration(case: Checks) -> str:
    """The round trip of what runs without a model: config and copies give an equal object."""
    ways, why_not = ways_to_copy(case.specimen.subject)
    case.check(arguments_are_immutable)
    for way in ways:
        case.check(_is_equal, way)
    return ", ".join(ways) + (f"; {why_not}" if why_not else "")


def _is_equal(case: Checks, way: str) -> None:
    twin_of(case.specimen.subject, way)
