"""The laws that every layer obeys, each a function that returns a line of detail or raises `Broken`."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from lamella.model import Model
from lamella.testing.case import Case, contiguous, scattered
from lamella.testing.comparison import Broken, Named, Skipped, compare, difference, largest, named
from lamella.testing.gradient import gradient

__all__ = ["LAWS", "Broken", "Skipped", "backends", "gradient", "purity", "slicing"]


def purity(case: Case) -> str:
    """Equal arguments give equal results, nothing that is handed in changes, and float32 stays accurate float32."""
    layouts = [_layouts(case, dtype, training) for dtype in ("float32", "float64") for training in (True, False)]
    inputs = case.draw(4)
    cotangents = case.cotangents(inputs)
    first = named(case.step("float32", inputs, cotangents))
    copies = {name: value.copy() for name, value in first.items()}
    other = case.draw(4, attempt=1)
    case.step("float32", other, case.cotangents(other))
    compare(copies, first, "results before and after a later call", 0.0)
    compare(copies, named(case.step("float32", inputs, cotangents)), "results of two equal calls", 0.0)
    for comparison in itertools.chain(*layouts):
        compare(*comparison)
    _threads(case)
    _sharing(case)
    return _accuracy(case)


def _layouts(case: Case, dtype: str, training: bool) -> list[tuple[Named, Named, str, float]]:
    """Inputs and incoming gradients stay as they are, however they lie in memory; what to compare between layouts."""
    inputs = case.draw(4)
    cotangents = case.cotangents(inputs)
    results = {}
    for lay, lay_dy in itertools.product((scattered, contiguous), repeat=2):
        given = tuple(map(lay, case.cast(dtype, inputs))), tuple(map(lay_dy, case.cast(dtype, cotangents)))
        before = [a.tobytes() for a in (*given[0], *given[1])]
        layout = f"inputs {lay.__name__} and dy {lay_dy.__name__} in memory"
        results[layout] = named(case.step(dtype, *given, training=training))
        if before != [a.tobytes() for a in (*given[0], *given[1])]:
            raise Broken(
                f"an input or incoming gradient was written to, with {layout}; make a new array. "
                "What xp.reshape returns may be a view"
            )
    tolerance = 1e-3 if dtype == "float32" else 1e-9
    (first, expected), *others = results.items()
    return [(expected, given, f"{dtype} results with {first} and with {other}", tolerance) for other, given in others]


def _threads(case: Case) -> None:
    """Four threads at once give what they give one after the other."""
    batches = [case.draw(3, attempt=k) for k in range(4)]
    cotangents = [case.cotangents(batch) for batch in batches]
    expected = [named(case.step("float32", *pair)) for pair in zip(batches, cotangents, strict=True)]
    given: list[Any] = [None] * 4
    start = threading.Barrier(4)

    def work(k: int) -> None:
        start.wait()
        try:
            given[k] = named(case.step("float32", batches[k], cotangents[k]))
        except Exception as error:  # handed to the thread that waits
            given[k] = error

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k in range(4):
        if isinstance(given[k], Exception):
            raise Broken(f"fails when run in four threads at once: {given[k]}")
        compare(expected[k], given[k], "results alone and among four threads", 0.0)


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
    compare(
        dict(zip(names, alone, strict=True)), dict(zip(names, given, strict=True)), "results alone and shared", 1e-12
    )


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _accuracy(case: Case) -> str:
    """Float32 results are no further from float64 ones than rounding of the inputs explains.

    The limit is 16 times the largest change of the float64 result under changes of the inputs and parameters by one
    unit in the last place, plus 4 such units of the largest result. Gradients may also be off by 4 units of the
    incoming gradient times the input, since backward passes work from results that were rounded on the way forward.
    """
    probes = [(f"random values, batch {rows}", case.draw(rows)) for rows in (1, 2, 7)]
    probes += [("values up to 100", case.draw(3, scale=30.0)), ("values up to 1e3", case.draw(3, scale=300.0))]
    probes += [("zeros", case.constant(2, 0.0)), ("ones", case.constant(2, 1.0))]
    worst = 0.0
    eps, tiny = float(np.finfo("float32").eps), float(np.finfo("float32").tiny)
    for label, inputs in probes:
        cotangents = case.cotangents(inputs)
        exact = named(case.step("float64", inputs, cotangents))
        rounded = named(case.step("float32", inputs, cotangents))
        incoming = max(map(largest, cotangents)) * max([1.0, *(largest(x) for x in inputs if x.dtype.kind == "f")])
        moved = [_nudged(case, inputs, cotangents, k) for k in range(3)]
        fits = {name: _fits(name, exact, moved) for name, value in exact.items() if value.dtype.kind == "f"}
        overflows = not all(fit.all() for name, fit in fits.items() if name.startswith("output"))
        for name, fit in fits.items():
            if overflows and not name.startswith("output"):
                continue  # gradients may be made of outputs that float32 can't hold
            value = exact[name][fit]
            change = max(difference(value, other[name][fit]) for other in moved)
            limit = 16 * change + 4 * eps * (largest(value) + (0.0 if name.startswith("output") else incoming))
            limit += tiny  # below it, float32 has fewer digits, or none
            error = difference(value, rounded[name][fit])
            if not error <= limit:
                raise Broken(
                    f"{name} for {label}: float32 is off by {error:.3g}; rounding of the inputs explains "
                    f"{limit:.3g}. Likely causes: cancellation, overflow of an intermediate result, float16"
                )
            worst = max(worst, error / limit if limit else 0.0)
    return f"float32 error at most {worst:.0%} of what rounding explains"


def _fits(name: str, exact: Named, moved: list[Named]) -> Any:
    """Where float32 can hold a result, and those a rounding of the inputs away."""
    most = float(np.finfo("float32").max) / 2
    return np.logical_and.reduce([np.abs(results[name]) <= most for results in (exact, *moved)])


def _nudged(case: Case, inputs: Any, cotangents: Any, attempt: int) -> Named:
    """A step in float64 with every input and parameter moved by one float32 unit in the last place, up or down."""
    model = case.model("float64")
    rng = np.random.default_rng([case.seed, 5, attempt])

    def nudge(a: Any) -> Any:
        if a.dtype.kind != "f":
            return a
        return a + np.spacing(np.abs(a).astype("float32")).astype("float64") * rng.choice([-1.0, 1.0], a.shape)

    before = dict(model.parameters)
    try:
        for name, value in before.items():
            model.parameters[name] = nudge(value)
        return named(case.step("float64", tuple(map(nudge, inputs)), tuple(map(nudge, cotangents))))
    finally:
        for name, value in before.items():
            model.parameters[name] = value


def slicing(case: Case) -> str:
    """Any slicing of the batch gives what the whole batch gives, random numbers included."""
    inputs = case.draw(9)
    cotangents = case.cotangents(inputs)
    whole = named(case.step("float64", inputs, cotangents))
    worst = 0.0
    for sizes in ((2, 3, 4), (1, 8), (1,) * 9):
        text = "+".join(map(str, sizes))
        given = named(case.step("float64", inputs, cotangents, sizes=sizes))
        worst = max(worst, compare(whole, given, f"whole batch of 9 and slices of {text}", 1e-9))
    rows = [case.infer("float64", [x[k : k + 1] for x in inputs]) for k in range(9)]
    alone = {f"output {k} in inference": np.concatenate(parts) for k, parts in enumerate(zip(*rows, strict=True))}
    together = dict(zip(alone, case.infer("float64", inputs), strict=True))
    compare(together, alone, "batch and single rows", 1e-9)
    return f"largest relative difference {worst:.1e}"


def backends(case: Case) -> str:
    """Strict array-API arrays, which run the references of primitives, and NumPy with its kernels agree."""
    try:
        case.model("float64", "strict")
    except ImportError as error:
        raise Skipped(str(error)) from None
    worst = 0.0
    for training, scale in itertools.product((True, False), (1.0, 30.0)):
        inputs = case.draw(3, scale=scale)
        cotangents = case.cotangents(inputs)
        expected = named(case.step("float64", inputs, cotangents, training=training))
        given = named(case.step("float64", inputs, cotangents, training=training, backend="strict"))
        worst = max(worst, compare(expected, given, f"NumPy and strict, for values about {scale:g},", 1e-9))
    return f"largest relative difference {worst:.1e}"


LAWS: dict[str, Callable[[Case], str]] = {
    "gradient": gradient,
    "purity": purity,
    "slicing": slicing,
    "backends": backends,
}
"""The laws of the core by name; plugins add others through the hook ``lamella_laws``."""
