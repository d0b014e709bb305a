"""The law that a layer is its configuration: copies, and what comes back from files, are equal and do the same."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from lamella import archive, registry
from lamella.configuration import Configured
from lamella.losses import Loss
from lamella.protocol import Layer
from lamella.testing.case import Case
from lamella.testing.comparison import Broken, compare, named, own_name

__all__ = ["round_trip"]

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


def round_trip(case: Case) -> str:
    """Config and copies give an equal object that does the same; for registered classes, pickle and files too."""
    subject = case.specimen.subject
    registered = registry.name_of("layers" if isinstance(subject, Layer) else "losses", type(subject)) is not None
    functions = [name for name, value in subject.config().items() if _is_function(value)]
    case.examine(_immutable)
    ways = ["config", "copy.copy", "copy.deepcopy"]
    if registered and not functions:
        ways.append("pickle")
    for way in ways:
        case.examine(_twin, way)
    if not case.findings:
        case.examine(_unchanged)
    if registered and not functions and isinstance(subject, Layer):
        ways.append("save and load")
        case.examine(_file)
    why = "" if registered else "; not registered, so not in files"
    return ", ".join(ways) + (f"; {functions[0]} is a function, which no file holds" if functions else why)


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, Configured | type)


def _immutable(case: Case) -> None:
    """The arguments can't be changed, neither in the configuration nor where the layer holds them."""
    subject = case.specimen.subject
    arguments = list(map(_frozen, subject.config().values()))
    for path, value in _attributes(subject):
        kind = next((kind for kind in MUTABLE if isinstance(value, kind)), None)
        if kind is None and not (isinstance(value, np.ndarray) and value.flags.writeable):
            continue
        if not path.startswith("_config.") and _frozen(value) not in arguments:
            continue  # made by the constructor, and no argument
        better = "a tuple, or say array.flags.writeable = False" if kind is None else MUTABLE[kind]
        raise Broken(
            f"{type(subject).__name__}.{path.removeprefix('_config.')} is a {type(value).__name__}, which anyone can "
            f"change: {value!r:.60}",
            cause=f"a layer is configuration, shared by nodes and threads; make it {better} in the constructor",
        )


def _unchanged(case: Case) -> None:
    """Passes change nothing that a layer or its class holds: shown by a twin that has not run yet."""
    twin = _from_config(case.specimen.subject)
    holders = [twin, *itertools.takewhile(lambda kind: kind not in (Layer, Loss), type(twin).__mro__)]
    before = [{name: _frozen(value) for name, value in _own(holder).items()} for holder in holders]
    specimen = dataclasses.replace(case.specimen, subject=twin)
    stranger = Case(specimen, case.seed + 1, sizes=case.sizes)
    for training in (True, False):
        inputs = stranger.draw(2)
        stranger.step("float64", inputs, stranger.cotangents(inputs), training=training)
    for holder, old in zip(holders, before, strict=True):
        for name, value in _own(holder).items():
            lazy = holder is twin and name not in old  # as a cached_property of the configuration is
            if not lazy and (name not in old or _frozen(value) != old[name]):
                raise Broken(
                    f"{type(twin).__name__}.{name} was changed by a pass; it is now {value!r:.60}",
                    cause=f"state kept in something that the {'layer' if holder is twin else 'class'} holds; use "
                    "ctx.save, or declare.state and ctx.update",
                )

    inputs = case.draw(3)
    cause = "what the first call found is kept for all later ones; work it out anew, or declare.state and ctx.update"
    other = case.like(specimen=specimen)
    for training in (True, False):
        old, new = (
            named(one.step("float64", inputs, case.cotangents(inputs), training=training)) for one in (case, other)
        )
        what = "results of the layer and of an equal one that has seen other data and parameters before"
        compare(old, new, what, 0.0, inputs=inputs, cause=cause)


def _own(holder: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(holder).items() if not name.startswith("__")}


def _frozen(value: Any) -> Any:
    """What can be compared later, of values that may change."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if isinstance(value, set | frozenset):
        return tuple(sorted(map(repr, value)))
    if isinstance(value, np.ndarray):
        return _frozen(value.tolist())
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


def _from_config(subject: Any) -> Any:
    """A new object from plain arguments, with the name and trainability of the old one."""
    twin = subject.replace()
    if isinstance(subject, Layer):
        twin = twin if subject.name is None else twin.named(subject.name)
        twin = twin if subject.trainable else twin.frozen()
    return twin


WAYS: dict[str, Callable[[Any], Any]] = {
    "config": _from_config,
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda subject: pickle.loads(pickle.dumps(subject)),
}


def _twin(case: Case, way: str) -> None:
    """One way to duplicate the layer gives an equal one, which does the same."""
    subject = case.specimen.subject
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
    other = case.like(specimen=dataclasses.replace(case.specimen, subject=twin))
    _same(case, other, way)


def _same(case: Case, other: Case, way: str) -> None:
    cause = (
        "the constructor, build or an initializer depends on more than the arguments: random numbers, a counter, the "
        "time, or an attribute set elsewhere. Initializers use the rng that they are given"
    )
    pair = [{f"parameter {own_name(n)!r}": v for n, v in one.values.items()} for one in (case, other)]
    compare(pair[0], pair[1], f"initial values of the layer and of what {way} gives", 0.0, cause=cause)
    inputs = case.draw(3)
    cotangents = case.cotangents(inputs)
    for training in (True, False):
        if ("round trip", training) not in case.kept:
            case.kept["round trip", training] = named(case.step("float64", inputs, cotangents, training=training))
        old = case.kept["round trip", training]
        new = named(other.step("float64", inputs, cotangents, training=training))
        compare(old, new, f"results of the layer and of what {way} gives", 0.0, inputs=inputs, cause=cause)


def _file(case: Case) -> None:
    """A model of the layer comes back from a file as it was."""
    model = case.model("float32")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.lamella")
        try:
            archive.save(model, path)
            twin = archive.load(path)
        except Exception as error:  # whatever arguments make of themselves in a file
            raise Broken(
                f"save and load fails: {error}",
                cause="an argument that is no plain data: numbers, words, tuples, dicts, layers, and what plugins "
                "register fit into files",
            ) from error
    if twin.config() != model.config() and repr(twin.config()) != repr(model.config()):
        raise Broken(f"the configuration came back from a file as {twin.config()!r}; expected {model.config()!r}")
    inputs = case.cast("float32", case.draw(3))
    names = [f"output {k} in inference" for k in range(len(model.output_specs))]
    results = [dict(zip(names, _several(one.predict(_one(inputs))), strict=True)) for one in (model, twin)]
    compare(results[0], results[1], "results before and after save and load", 0.0, inputs=inputs)


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _one(inputs: tuple[Any, ...]) -> Any:
    return inputs[0] if len(inputs) == 1 else inputs
