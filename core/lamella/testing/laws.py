"""The laws that every layer obeys, each a function that returns a line of detail or raises `Broken`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lamella.engine import StepResult
from lamella.graph import Input
from lamella.model import Model
from lamella.testing.case import Case

__all__ = ["LAWS", "Broken", "Skipped", "backends", "gradient", "purity", "slicing"]

Named = dict[str, np.ndarray[Any, Any]]


class Broken(AssertionError):
    """A layer breaks a law; the message says how, with the numbers."""


class Skipped(Exception):
    """A law was not examined; the message says why."""


def named(case: Case, result: StepResult) -> Named:
    """Every array of a step, with the name that messages use."""
    arrays: Named = {f"output {k}": y for k, y in enumerate(result.predictions)}
    arrays |= {f"dx of input {k}": dx for k, dx in enumerate(result.dx) if dx is not None}
    arrays |= {f"gradient of {name.rpartition('.')[2]!r}": g for name, g in result.gradients.items()}
    arrays |= {f"update of {name.rpartition('.')[2]!r}": u for name, u in result.updates.items()}
    return arrays


def difference(a: Any, b: Any) -> float:
    """The largest absolute difference; infinite where shapes, NaNs or infinities differ."""
    a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return np.inf
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(np.where(a == b, 0.0, a - b)), initial=0.0))


def compare(expected: Named, given: Named, what: str, tolerance: float) -> float:
    """Raise unless every array agrees to a tolerance relative to its largest value."""
    worst = 0.0
    for name, value in expected.items():
        scale = max(1.0, float(np.max(np.abs(value), initial=0.0))) if np.isfinite(value).all() else 1.0
        error = difference(value, given[name]) / scale
        worst = max(worst, error)
        if not error <= tolerance:
            raise Broken(f"{name}: {what} differ by {error:.2g} relative to {scale:.3g}; allowed {tolerance:.1g}")
    return worst


def gradient(case: Case) -> str:
    """The backward pass is the derivative of the forward pass, in float64, along random directions.

    Inputs, incoming gradients and every parameter, with arrays that are not contiguous, in training and in inference
    mode. Where the difference quotients from both sides disagree, the function has a kink there, and another point is
    drawn.
    """
    if case.specimen.gradient == "surrogate":
        raise Skipped(f"declared a surrogate: {case.specimen.reason}")
    worst = 0.0
    count = 0
    for training in (True, False):
        for name, error in _directional_errors(case, training):
            worst, count = max(worst, error), count + 1
            if not name:
                raise Broken("nothing to differentiate")
        inputs = case.draw(3)
        cotangents = case.cotangents(inputs)
        full = case.step("float64", inputs, cotangents, training=training)
        alone = case.step("float64", inputs, cotangents, training=training, wants_dx=False)
        compare(
            {f"gradient of {k.rpartition('.')[2]!r}": v for k, v in full.gradients.items()},
            {f"gradient of {k.rpartition('.')[2]!r}": v for k, v in alone.gradients.items()},
            "results with and without ctx.wants_dx",
            0.0,
        )
    if not count:
        raise Skipped("the layer has neither parameters nor floating inputs")
    return f"{count} directions, largest relative error {worst:.1e}"


def _directional_errors(case: Case, training: bool) -> Iterator[tuple[str, float]]:
    model = case.model("float64")
    mode = "training" if training else "inference"
    inputs = case.draw(3)
    wants = case.wants if isinstance(case.wants, tuple) else (case.wants,) * len(inputs)
    targets: list[tuple[str, int | str]] = [
        (f"dx of input {k}", k) for k, x in enumerate(inputs) if x.dtype.kind == "f" and wants[k] and x.size
    ]
    targets += [(f"gradient of {name.rpartition('.')[2]!r}", name) for name in model.parameters]
    for label, target in targets:
        for attempt in range(8):
            inputs = case.cast("float64", case.draw(3, attempt=attempt))
            cotangents = case.cotangents(inputs)
            result = case.step("float64", inputs, cotangents, training=training)
            given = result.dx[target] if isinstance(target, int) else result.gradients[target]
            if given is None:
                raise Broken(f"{label}: missing")
            rng = np.random.default_rng([case.seed, 4, attempt])
            direction = rng.standard_normal(given.shape)
            direction /= np.linalg.norm(direction) or 1.0
            analytic = float(np.vdot(given, direction))
            numeric, smooth, noise = _quotient(case, inputs, cotangents, training, target, direction)
            error = abs(analytic - numeric) / max(1.0, abs(analytic), abs(numeric))
            if error <= 1e-6 + noise:
                break
            if smooth or attempt == 7:
                ratio = f", a factor of {analytic / numeric:.4g}" if abs(numeric) > 1e-9 else ""
                raise Broken(
                    f"{label} in {mode} mode, batch of 3: backward_pass gives {analytic:.10g} along a random unit "
                    f"direction, difference quotients of forward_pass give {numeric:.10g}{ratio}"
                )
        yield label, error


def _quotient(
    case: Case, inputs: Any, cotangents: Any, training: bool, target: int | str, direction: Any
) -> tuple[float, bool, float]:
    """The derivative of the projected output along a direction, whether it is smooth there, and the rounding noise."""
    model = case.model("float64")
    h = 1e-5

    def value(shift: float) -> float:
        if isinstance(target, int):
            moved = tuple(x + shift * direction if k == target else x for k, x in enumerate(inputs))
            return case.step("float64", moved, cotangents, training=training).loss
        before = model.parameters[target]
        model.parameters[target] = before + shift * direction
        try:
            return case.step("float64", inputs, cotangents, training=training).loss
        finally:
            model.parameters[target] = before

    below, here, above = value(-h), value(0.0), value(h)
    numeric = (above - below) / (2 * h)
    left, right = (here - below) / h, (above - here) / h
    noise = 64 * np.finfo("float64").eps * max(abs(here), abs(above), 1.0) / h
    return numeric, abs(left - right) <= 1e-3 * max(1.0, abs(numeric)), noise


def purity(case: Case) -> str:
    """Equal arguments give equal results, nothing that is handed in changes, and float32 stays accurate float32."""
    inputs = case.draw(4)
    cotangents = case.cotangents(inputs)
    kept = [a.tobytes() for a in (*inputs, *cotangents)]
    first = named(case, case.step("float32", inputs, cotangents))
    if kept != [a.tobytes() for a in (*inputs, *cotangents)]:
        raise Broken("an input or incoming gradient was written to; make a new array")
    copies = {name: value.copy() for name, value in first.items()}
    other = case.draw(4, attempt=1)
    case.step("float32", other, case.cotangents(other))
    compare(copies, first, "results before and after a later call", 0.0)
    compare(copies, named(case, case.step("float32", inputs, cotangents)), "results of two equal calls", 0.0)
    for name, value in first.items():
        if value.dtype.kind == "f" and value.dtype != np.float32:
            raise Broken(f"{name} is {value.dtype} in a float32 model; write scalars as Python floats")
    _threads(case)
    _sharing(case)
    return _accuracy(case)


def _threads(case: Case) -> None:
    """Four threads at once give what they give one after the other."""
    batches = [case.draw(3, attempt=k) for k in range(4)]
    cotangents = [case.cotangents(batch) for batch in batches]
    expected = [named(case, case.step("float32", *pair)) for pair in zip(batches, cotangents, strict=True)]
    given: list[Any] = [None] * 4
    start = threading.Barrier(4)

    def work(k: int) -> None:
        start.wait()
        try:
            given[k] = named(case, case.step("float32", batches[k], cotangents[k]))
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
    nodes = [tuple(Input(s.shape[1:], None if s.is_float else s.dtype) for s in case.specs) for _ in range(2)]
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
    probes = [("random values, batch 1", case.draw(1)), ("random values, batch 2", case.draw(2))]
    probes += [("random values, batch 7", case.draw(7)), ("values up to 1e3", case.draw(3, scale=300.0))]
    probes += [("zeros", case.constant(2, 0.0)), ("ones", case.constant(2, 1.0))]
    worst = 0.0
    for label, inputs in probes:
        inputs = tuple(np.clip(x, -1e3, 1e3) if x.dtype.kind == "f" else x for x in inputs)
        cotangents = case.cotangents(inputs)
        exact = named(case, case.step("float64", inputs, cotangents))
        rounded = named(case, case.step("float32", inputs, cotangents))
        incoming = max(map(_largest, cotangents)) * max([1.0, *(_largest(x) for x in inputs if x.dtype.kind == "f")])
        moved = [_nudged(case, inputs, cotangents, k) for k in range(3)]
        for name, value in exact.items():
            if value.dtype.kind != "f" or not value.size:
                continue
            if not np.isfinite(value).all():
                continue
            change = max(difference(value, other[name]) for other in moved)
            eps = float(np.finfo("float32").eps)
            limit = 16 * change + 4 * eps * (_largest(value) + (0.0 if name.startswith("output") else incoming))
            error = difference(value, rounded[name])
            if not error <= limit:
                raise Broken(
                    f"{name} for {label}: float32 is off by {error:.3g}; rounding of the inputs explains "
                    f"{limit:.3g}. Likely causes: cancellation, overflow of an intermediate result, float16"
                )
            worst = max(worst, error / limit if limit else 0.0)
    return f"float32 error at most {worst:.0%} of what rounding explains"


def _largest(a: np.ndarray[Any, Any]) -> float:
    return float(np.max(np.abs(a), initial=0.0))


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
        return named(case, case.step("float64", tuple(map(nudge, inputs)), tuple(map(nudge, cotangents))))
    finally:
        for name, value in before.items():
            model.parameters[name] = value


def slicing(case: Case) -> str:
    """Any slicing of the batch gives what the whole batch gives, random numbers included."""
    inputs = case.draw(7)
    cotangents = case.cotangents(inputs)
    whole = named(case, case.step("float64", inputs, cotangents))
    worst = 0.0
    for sizes in ((2, 3, 2), (1, 6), (1,) * 7):
        text = "+".join(map(str, sizes))
        parts = case.slices("float64", inputs, cotangents, slices=sizes)
        for part in parts[1:]:
            if any(not np.array_equal(part.updates[n], value) for n, value in parts[0].updates.items()):
                raise Broken("ctx.update got different values in different slices; make it a function of totals")
        given = named(case, case.step("float64", inputs, cotangents, slices=sizes))
        worst = max(worst, compare(whole, given, f"whole batch of 7 and slices of {text}", 1e-9))
    rows = [case.infer("float64", [x[k : k + 1] for x in inputs]) for k in range(7)]
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
    for training in (True, False):
        inputs = case.draw(3)
        cotangents = case.cotangents(inputs)
        expected = named(case, case.step("float64", inputs, cotangents, training=training))
        given = named(case, case.step("float64", inputs, cotangents, training=training, backend="strict"))
        worst = max(worst, compare(expected, given, "NumPy and strict", 1e-9))
    return f"largest relative difference {worst:.1e}"


LAWS: dict[str, Callable[[Case], str]] = {
    "gradient": gradient,
    "purity": purity,
    "slicing": slicing,
    "backends": backends,
}
"""The laws of the core by name; plugins add others through the hook ``lamella_laws``."""
