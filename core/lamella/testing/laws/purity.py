"""The law of purity: equal arguments give equal results, nothing that is handed in changes, and float32 stays accurate.

The checks for writes come first, in `writes`; those of accuracy last, in `accuracy`.
"""

from __future__ import annotations

import itertools
import random
from functools import partial
from typing import Any

import numpy as np

from lamella.errors import LayerError
from lamella.model import Model
from lamella.testing.case import Case
from lamella.testing.comparison import EXPLAINED, Broken, Named, as_tuple, compare, named
from lamella.testing.diagnosis.causes import WIDENED
from lamella.testing.laws.accuracy import accuracy
from lamella.testing.laws.writes import LAYOUTS, OUTSIDE, in_words, writes
from lamella.testing.layouts import contiguous
from lamella.testing.turns import Turns

__all__ = ["purity", "widened"]


def purity(case: Case) -> str:
    """Equal arguments give equal results, nothing that is handed in changes, and float32 stays accurate float32."""
    case.failed.extend(writes(case))
    case.check(_own_random_values)
    if case.failed:
        return ""  # what follows compares results with each other
    for training in (True, False):
        case.check(_layouts, training)
        case.check(_broadcast, training)
    case.check(_interleaved)
    if not case.failed:  # else threads fail for the same reason
        case.check(_threads)
    case.check(_sharing)
    return accuracy(case)


def widened(case: Case) -> str:
    """What the engine says where a float32 model gets float64 from the layer; empty where it does not."""
    inputs = case.draw(3)
    for training in (True, False):
        try:
            case.step("float32", inputs, case.cotangents(inputs), training=training)
        except LayerError as error:
            if WIDENED.search(str(error)):
                return str(error)
    return ""


def _own_random_values(case: Case) -> None:
    """The global random states stay as they are."""
    inputs = case.draw(1)
    kept = np.random.get_state(), random.getstate()  # noqa: NPY002  the very state that layers leave alone
    try:
        np.random.seed((case.seed + 1) % 2**32)  # noqa: NPY002  a layer that seeds it may have left its own seed there
        random.seed(case.seed + 1)
        before = _global_state()
        for training in (True, False):
            case.step("float32", inputs, case.cotangents(inputs), training=training)
        if _global_state() != before:
            raise Broken(
                "a call changed the global random state of numpy.random or random",
                cause="values drawn from np.random or random; ctx.uniform gives the same in any slice and backend",
            )
    finally:
        np.random.set_state(kept[0])  # noqa: NPY002
        random.setstate(kept[1])


def _global_state() -> Any:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return state["state"]["key"].tobytes(), state["state"]["pos"], random.getstate()


def _layouts(case: Case, training: bool) -> None:
    """How arrays lie in memory makes no difference."""
    inputs = case.draw(4)
    cotangents = case.cotangents(inputs)
    results = {}
    for lay, lay_dy in LAYOUTS:
        given = tuple(map(lay, case.cast("float64", inputs))), tuple(map(lay_dy, case.cast("float64", cotangents)))
        results[in_words(lay, lay_dy)] = named(case.step("float64", *given, training=training))
    (first, expected), *others = results.items()
    for other, found in others:
        what = f"results with {first} and with {other}"
        _alike(case, inputs, cotangents, expected, found, what, training)


def _broadcast(case: Case, training: bool) -> None:
    """Arrays in which one element stands for many, as broadcast_to makes them, give what copies of them give."""
    inputs = case.cast("float64", case.draw(4))
    cotangents = case.cast("float64", case.cotangents(inputs))
    for axes in ("the batch", "all axes but the batch"):
        spread = tuple(_spread(dy, axes) for dy in cotangents)
        copied = named(case.step("float64", inputs, tuple(map(contiguous, spread)), training=training))
        found = named(case.step("float64", inputs, spread, training=training))
        what = f"results with a copy of dy and with dy that is broadcast along {axes}"
        _alike(case, inputs, spread, copied, found, what, training)


def _spread(array: Any, axes: str) -> Any:
    few = array[:1] if axes == "the batch" else array[(slice(None), *(slice(1),) * (array.ndim - 1))]
    return np.broadcast_to(few, array.shape)


def _alike(case: Case, inputs: Any, cotangents: Any, one: Named, other: Named, what: str, training: bool) -> None:
    compare(
        one,
        other,
        what,
        1e-9,
        inputs=inputs,
        cause="memory is read as if it were contiguous, or in its own order; xp.reshape follows the axes",
        sides=("the first", "the other"),
        rounding=lambda: case.rounding(inputs, cotangents, EXPLAINED, training=training),
    )


def _interleaved(case: Case) -> None:
    """Another call between forward and backward changes nothing, with as many rows or with fewer, in either order."""
    cause = (
        "what forward_pass keeps for backward_pass stands in a place that all calls share: a list, dict or array on "
        "self, a class attribute, a closure, a global or a buffer. Give it to ctx.save, which keeps it for each call"
    )
    for training, rows in itertools.product((True, False), (3, 2)):
        inputs = [case.draw(3), case.draw(rows, attempt=1)]
        alone = [named(case.start("float32", given, training=training)[1]()) for given in inputs]
        for order, word in (((0, 1), "the same"), ((1, 0), "the opposite")):
            mode = f"{word} order{'' if training else ', in inference mode'}"
            how = f"forward passes of two calls, then their backward passes in {mode}"
            try:
                finish = [case.start("float32", given, training=training)[1] for given in inputs]
                found = dict(zip(order, [named(finish[k]()) for k in order], strict=True))
            except LayerError as error:
                raise Broken(f"fails where calls are interleaved ({how}): {error}", cause=cause) from error
            for k in order:
                what = f"results alone and interleaved ({how})"
                compare(alone[k], found[k], what, 0.0, inputs=inputs[k], cause=cause)


def _threads(case: Case) -> None:
    """Two threads that take turns, after each call and store of the layer's code, give what they give alone."""
    batches = [tuple(map(contiguous, case.draw(3, attempt=k))) for k in range(2)]
    cotangents = [tuple(map(contiguous, case.cotangents(batch))) for batch in batches]
    pairs = list(zip(batches, cotangents, strict=True))
    for training in (True, False):
        expected = [named(case.step("float32", *pair, training=training)) for pair in pairs]
        work = [partial(case.step, "float32", *pair, training=training) for pair in pairs]
        cause = "calls share something: a closure, a global or a buffer. Slices of one batch run in several threads"
        for inputs, right, result in zip(batches, expected, Turns().run(work), strict=True):
            if isinstance(result, Exception):
                raise Broken(f"fails when run in two threads at once: {result}", cause=cause)
            what = f"results alone and in two threads{'' if training else ', in inference mode'}"
            compare(right, named(result), what, 0.0, inputs=inputs, cause=cause)


def _sharing(case: Case) -> None:
    """One layer object at two nodes: each gives what it gives alone, and gradients of parameters add up."""
    single = case.model("float64")
    if len(single.state) or not single.parameters:
        return
    nodes = [case.nodes() for _ in range(2)]
    outputs = [node for own in nodes for node in as_tuple(case.layer(*own))]
    model = Model([*nodes[0], *nodes[1]], outputs, dtype="float64", seed=case.seed)
    for name in single.parameters:
        model.parameters[name] = single.parameters[name]
    batches = [case.cast("float64", case.draw(3, attempt=k)) for k in range(2)]
    alone = [y for batch in batches for y in case.infer("float64", batch)]
    given = as_tuple(model.predict((*batches[0], *batches[1])))
    names = [f"output {k} of a layer used twice" for k in range(len(alone))]
    pair = dict(zip(names, alone, strict=True)), dict(zip(names, given, strict=True))
    compare(*pair, "results alone and shared", 1e-12, inputs=batches[0], cause=OUTSIDE)
