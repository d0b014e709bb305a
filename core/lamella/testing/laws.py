"""The laws that every layer obeys, each a function that returns a line of detail or raises `Broken`.

A law runs probes through ``case.examine``, which notes what each one finds and goes on, so that everything that is
wrong is told at once.
"""

from __future__ import annotations

import itertools
import random
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from lamella.errors import LayerError
from lamella.model import Model
from lamella.testing.accuracy import accuracy
from lamella.testing.case import Case, contiguous, permuted, scattered
from lamella.testing.comparison import Broken, Named, Skipped, compare, examine_gradients, most, named, worst_place
from lamella.testing.gradient import gradient
from lamella.testing.kernels import kernels_that_differ
from lamella.testing.relation import constant_factor
from lamella.testing.round_trip import round_trip
from lamella.testing.shapes import shapes
from lamella.testing.shrinking import WIDENED
from lamella.testing.turns import Turns

__all__ = [
    "LAWS",
    "Broken",
    "Skipped",
    "backends",
    "gradient",
    "outputs_stay",
    "purity",
    "round_trip",
    "shapes",
    "slicing",
    "steady",
    "untouched",
    "widened",
]

OUTSIDE = (
    "something outlives a call: a counter, cache or running value in a closure or a global, or random numbers from "
    "elsewhere than ctx.uniform. What lasts goes into declare.state and ctx.update"
)

LAYOUTS = tuple(itertools.product((scattered, contiguous, permuted), repeat=2))  # of inputs and of dy

EXPLAINED = 1e-3
"""Of what rounding the inputs to float32 does to a result: so much float64 results may differ where they are rounded
in another order. Far more than they do, but for what is ill-conditioned."""


def purity(case: Case) -> str:
    """Equal arguments give equal results, nothing that is handed in changes, and float32 stays accurate float32."""
    for training in (True, False):
        case.examine(untouched, training)
        case.examine(steady, training)
        case.examine(outputs_stay, training)
    case.examine(_own_random_numbers)
    if case.findings:
        return ""  # what follows compares results with each other
    for training in (True, False):
        case.examine(_layouts, training)
        case.examine(_broadcast, training)
    case.examine(_interleaved)
    if not case.findings:  # else threads only show the same again
        case.examine(_threads)
    case.examine(_sharing)
    return accuracy(case)


def steady(case: Case, training: bool) -> None:
    """Equal calls give equal results, whatever was called between them, and a result stays what it was."""
    mode = "" if training else " in inference mode"
    inputs = case.draw(4)

    def run(attempt: int = 0) -> Named:
        # each time anew, lest a layer that writes into them spoil the next; what lies otherwise may be copied
        given = tuple(map(contiguous, case.draw(4, attempt=attempt)))
        return named(case.step("float32", given, case.cotangents(inputs), training=training))

    first = run()
    copies = {name: value.copy() for name, value in first.items()}
    run(attempt=1)
    cause = "a buffer that is kept and written again; make a new array for every result"
    compare(copies, first, f"results before and after a later call{mode}", 0.0, inputs=inputs, cause=cause)
    sides = "the first call", "the second"
    compare(copies, run(), f"results of two equal calls{mode}", 0.0, inputs=inputs, cause=OUTSIDE, sides=sides)


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


def _own_random_numbers(case: Case) -> None:
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
                cause="numbers drawn from np.random or random; ctx.uniform gives the same in any slice and backend",
            )
    finally:
        np.random.set_state(kept[0])  # noqa: NPY002
        random.setstate(kept[1])


def _global_state() -> Any:
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return state["state"]["key"].tobytes(), state["state"]["pos"], random.getstate()


def untouched(case: Case, training: bool) -> None:
    """Inputs and incoming gradients stay as they are."""
    inputs = case.draw(4)
    cotangents = case.cotangents(inputs)
    for lay, lay_dy in LAYOUTS:
        given = tuple(map(lay, case.cast("float64", inputs))), tuple(map(lay_dy, case.cast("float64", cotangents)))
        before = [[a.copy() for a in arrays] for arrays in given]
        case.step("float64", *given, training=training)
        for what, arrays, copies in zip(("input", "incoming gradient"), given, before, strict=True):
            for k, (array, copy) in enumerate(zip(arrays, copies, strict=True)):
                if array.tobytes() != copy.tobytes():
                    place = tuple(map(int, np.argwhere(array != copy)[0])) if np.any(array != copy) else ()
                    raise Broken(
                        f"{what} {k} was written to, with {_layout(lay, lay_dy)}",
                        subject=f"{what} {k}",
                        inputs=inputs,
                        index=place,
                        found=float(array[place]),
                        expected=float(copy[place]),
                        cause="an operator such as += or out=, on the array itself or on what xp.reshape or a slice "
                        "gave: that may be a view. Make a new array",
                    )


def outputs_stay(case: Case, training: bool) -> None:
    """The way back leaves alone what the way forward gave, which other layers have saved."""
    inputs = tuple(map(contiguous, case.draw(4)))  # as in `steady`
    outputs, finish = case.start("float64", inputs, training=training)
    copies = [y.copy() for y in outputs]
    finish()
    for k, (y, copy) in enumerate(zip(outputs, copies, strict=True)):
        if y.tobytes() != copy.tobytes():
            raise Broken(
                f"output {k} was written to by backward_pass",
                subject=f"output {k}",
                inputs=inputs,
                cause="an operator such as *= or out=, on what forward_pass gave to ctx.save and returned. Make a new "
                "array",
                **worst_place(y, copy),
            )


def _layout(lay: Any, lay_dy: Any) -> str:
    return f"inputs {lay.__name__} and dy {lay_dy.__name__} in memory"


def _layouts(case: Case, training: bool) -> None:
    """How arrays lie in memory makes no difference."""
    inputs = case.draw(4)
    cotangents = case.cotangents(inputs)
    results = {}
    for lay, lay_dy in LAYOUTS:
        given = tuple(map(lay, case.cast("float64", inputs))), tuple(map(lay_dy, case.cast("float64", cotangents)))
        results[_layout(lay, lay_dy)] = named(case.step("float64", *given, training=training))
    (first, expected), *others = results.items()
    for other, found in others:
        what = f"results with {first} and with {other}"
        _alike(case, inputs, cotangents, expected, found, what, training)


def _broadcast(case: Case, training: bool) -> None:
    """Arrays of which one number stands for many, as broadcast_to makes them, give what copies of them give."""
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
    outputs = [node for own in nodes for node in _several(case.layer(*own))]
    model = Model([*nodes[0], *nodes[1]], outputs, dtype="float64", seed=case.seed)
    for name in single.parameters:
        model.parameters[name] = single.parameters[name]
    batches = [case.cast("float64", case.draw(3, attempt=k)) for k in range(2)]
    alone = [y for batch in batches for y in case.infer("float64", batch)]
    given = _several(model.predict((*batches[0], *batches[1])))
    names = [f"output {k} of a layer used twice" for k in range(len(alone))]
    pair = dict(zip(names, alone, strict=True)), dict(zip(names, given, strict=True))
    compare(*pair, "results alone and shared", 1e-12, inputs=batches[0], cause=OUTSIDE)


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def slicing(case: Case) -> str:
    """Any slicing of the batch, in any order, gives what the whole batch gives, random numbers included."""
    worst = [case.examine(_sliced, sizes) for sizes in ((2, 3, 4), (1, 8), (1,) * 9)]
    worst.append(case.examine(_sliced, (2, 3, 4), "the last one first"))
    worst.append(case.examine(_sliced, (4, 5), "while frozen"))
    worst.append(case.examine(_sliced, (64, 193)))  # what is done in blocks has blocks of at most 256, as a rule
    if not case.findings:  # else single rows say nothing new
        worst.append(case.examine(_row_by_row))
    return f"largest relative difference {most(worst):.1e}"


def _sliced(case: Case, sizes: tuple[int, ...], way: str = "") -> float:
    inputs = case.draw(sum(sizes))
    rows = len(inputs[0])
    if sum(sizes) != rows:  # a smaller case: two slices at most
        sizes = (1, rows - 1) if rows > 1 else (1,)
    cotangents = case.cotangents(inputs)
    frozen, backwards = way == "while frozen", way == "the last one first"
    whole = named(case.step("float64", inputs, cotangents, frozen=frozen))
    given = named(case.step("float64", inputs, cotangents, frozen=frozen, sizes=sizes, backwards=backwards))
    what = f"whole batch of {rows} and slices of {'+'.join(map(str, sizes))}{way and f', {way},'}"
    return compare(
        whole,
        given,
        what,
        1e-9,
        inputs=inputs,
        cause=lambda name: _why_sliced(case, name, whole, given, sizes),
        sides=("the whole batch", "slices"),
        rounding=lambda: case.rounding(inputs, cotangents, EXPLAINED, frozen=frozen),
    )


def _why_sliced(case: Case, name: str, whole: Named, given: Named, sizes: tuple[int, ...]) -> str:
    """Why an array depends on how the batch is cut."""
    factor = constant_factor(given[name], whole[name])
    shares_sums = any(leaf.forward_yields or leaf.backward_yields for leaf in case.model().program.leaves)
    if factor is not None and abs(factor - len(sizes)) < 1e-6 and shares_sums:
        return (
            f"{len(sizes)} times too much with {len(sizes)} slices: each slice hands over the total, which yield gave "
            "back, where its own share is due"
        )
    if name.startswith(("output", "dx")) and whole[name].shape == given[name].shape:
        parts = np.split(whole[name], np.cumsum(sizes)[:-1]), np.split(given[name], np.cumsum(sizes)[:-1])
        factors = [constant_factor(b, a) for a, b in zip(*parts, strict=True)]
        ratios = [sum(sizes) / n for n in sizes]
        for words, wanted in (("divided", ratios), ("multiplied", [1 / ratio for ratio in ratios])):
            if all(f is not None and abs(f - w) < 1e-6 for f, w in zip(factors, wanted, strict=True)):
                return (
                    f"{words} by x.shape[0], the rows of the slice and not of the batch. Incoming gradients carry the "
                    "weight of each row already; a count of the whole batch comes by total = yield rows"
                )
    if name.startswith("output"):
        return (
            "samples depend on each other, or on their place in the slice. Whatever is summed over axis 0 must go "
            "through total = yield partial; slices run in any order, and in parallel"
        )
    return (
        "a mean over axis 0 or a division by x.shape[0], where each slice owes its own sum; or a sum over the slice "
        "where the whole batch's is needed: total = yield partial"
    )


def _row_by_row(case: Case) -> float:
    inputs = case.draw(9)
    alone = [case.infer("float64", [x[k : k + 1] for x in inputs]) for k in range(len(inputs[0]))]
    names = [f"output {k} in inference" for k in range(len(alone[0]))]
    single = dict(zip(names, map(np.concatenate, zip(*alone, strict=True)), strict=True))
    together = dict(zip(names, case.infer("float64", inputs), strict=True))
    cause = "in inference no sample may depend on others; use what training gathered: declare.state and ctx.update"
    sides = "the batch", "single rows"

    def rounding() -> dict[str, float]:
        allowed = case.rounding(inputs, case.cotangents(inputs), EXPLAINED, training=False)
        return {name: allowed[name.removesuffix(" in inference")] for name in names}

    how: dict[str, Any] = {"inputs": inputs, "cause": cause, "sides": sides, "rounding": rounding}
    return compare(together, single, "batch and single rows", 1e-9, **how)


def backends(case: Case) -> str:
    """Strict array-API arrays, which run the references of primitives, and NumPy with its kernels agree."""
    try:
        case.model("float64", "strict")
    except ImportError as error:
        raise Skipped(str(error)) from None
    worst = [case.examine(_strict, *how) for how in itertools.product((True, False), (1.0, 30.0))]
    worst += [case.examine(_strict, True, None), case.examine(_strict, False, 300.0)]
    if not case.findings:
        worst += [case.examine(_strict, True, 1.0, sizes) for sizes in case.other_sizes]
    return f"largest relative difference {most(worst):.1e}"


def _strict(case: Case, training: bool, scale: float | None, sizes: dict[str, int] | None = None) -> float:
    case = case.resized_to(sizes) if sizes else case
    inputs = case.draw(3, scale=scale)
    cotangents = case.cotangents(inputs)
    expected = named(case.step("float64", inputs, cotangents, training=training))
    values = f"values about {scale:g}" if scale else "multiples of 0.5"
    examine_gradients(expected, values, inputs)
    if scale == 300.0 and not all(np.isfinite(value).all() for value in expected.values()):
        return 0.0
    try:
        with warnings.catch_warnings():
            # the engine holds dtypes against strict ones on purpose: a NumPy array is then told as such below
            warnings.filterwarnings("ignore", "You are comparing a array_api_strict dtype", UserWarning)
            given = named(case.step("float64", inputs, cotangents, training=training, backend="strict"))
    except LayerError as error:
        if "build said" not in str(error) and "expected the" not in str(error):
            raise
        alike = re.search(r"(\([^()]*\)) (?:\w+\.)?(\w+), got \1 (?:\w+\.)?\2\b", str(error))
        what = "; the one is an array of the strict backend, the other of NumPy" if alike else ""
        raise Broken(
            f"on the strict backend, {error}{what}",
            cause="an array of NumPy where one of ctx.xp is due: a function of NumPy was called on arrays of another "
            "backend. Call those of ctx.xp",
        ) from error

    def cause(name: str) -> str:
        differ = kernels_that_differ(lambda: case.step("float64", inputs, cotangents, training=training))
        return f"the NumPy kernel of {' and of '.join(differ)} differs from the reference" if differ else ""

    return compare(
        expected,
        given,
        f"NumPy and strict, for {values},",
        1e-9,
        inputs=inputs,
        cause=cause,
        rounding=lambda: case.rounding(inputs, cotangents, EXPLAINED, training=training),
    )


LAWS: dict[str, Callable[[Case], str]] = {
    "gradient": gradient,
    "purity": purity,
    "slicing": slicing,
    "backends": backends,
    "round trip": round_trip,
    "shapes": shapes,
}
"""The laws of the core by name; plugins add others through the hook ``lamella_laws``."""
