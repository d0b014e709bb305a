"""The law that a layer is its configuration: copies, and what comes back from files, are equal and do the same."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
from typing import Any

from lamella.losses import Loss
from lamella.model import load
from lamella.protocol import Layer
from lamella.testing.case import Case
from lamella.testing.comparison import Broken, as_tuple, compare, named, own_name
from lamella.testing.laws.configuration import (
    arguments_are_immutable,
    comparable,
    from_config,
    twin_of,
    ways_to_copy,
)

__all__ = ["round_trip"]


def round_trip(case: Case) -> str:
    """Config and copies give an equal object that does the same; for registered classes, pickle and files too."""
    subject = case.specimen.subject
    ways, why_not = ways_to_copy(subject)
    case.check(arguments_are_immutable)
    for way in ways:
        case.check(_twin, way)
    if not case.failed:
        case.check(_unchanged)
    if isinstance(subject, Layer) and not why_not:
        ways.append("save and load")
        case.check(_file)
    return ", ".join(ways) + (f"; {why_not}" if why_not else "")


def _unchanged(case: Case) -> None:
    """Passes change nothing that a layer or its class holds: shown by a twin that has not run yet."""
    twin = from_config(case.specimen.subject)
    holders = [twin, *itertools.takewhile(lambda kind: kind not in (Layer, Loss), type(twin).__mro__)]
    before = [{name: comparable(value) for name, value in _own(holder).items()} for holder in holders]
    specimen = dataclasses.replace(case.specimen, subject=twin)
    stranger = Case(specimen, case.seed + 1, sizes=case.sizes)
    for training in (True, False):
        inputs = stranger.draw(2)
        stranger.step("float64", inputs, stranger.cotangents(inputs), training=training)
    for holder, old in zip(holders, before, strict=True):
        for name, value in _own(holder).items():
            lazy = holder is twin and name not in old  # as a cached_property of the configuration is
            if not lazy and (name not in old or comparable(value) != old[name]):
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


def _twin(case: Case, way: str) -> None:
    """One way to copy the layer gives an equal one, which does the same."""
    twin = twin_of(case.specimen.subject, way)
    _same(case, case.like(specimen=dataclasses.replace(case.specimen, subject=twin)), way)


def _same(case: Case, other: Case, way: str) -> None:
    cause = (
        "the constructor, build or an initializer depends on more than the arguments: random values, a counter, the "
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
            model.save(path)
            twin = load(path)
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
    results = [dict(zip(names, as_tuple(one.predict(_one(inputs))), strict=True)) for one in (model, twin)]
    compare(results[0], results[1], "results before and after save and load", 0.0, inputs=inputs)


def _one(inputs: tuple[Any, ...]) -> Any:
    return inputs[0] if len(inputs) == 1 else inputs
