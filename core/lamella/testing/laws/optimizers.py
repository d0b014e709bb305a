"""The laws that every optimizer obeys, each a function of an `OptimizerCase`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lamella.testing.checks import Checks
from lamella.testing.comparison import Broken, Named, compare, most
from lamella.testing.laws.configuration import configuration
from lamella.testing.runs import installed_backends

__all__ = ["OPTIMIZER_LAWS", "OptimizerCase"]

Array = np.ndarray[Any, Any]
RATE = 1e-3  # small enough that nothing overshoots the minimum of a bowl in so many steps
STEPS = 50
SCALAR = "a NumPy scalar or array of float64 in an expression; write scalars as Python floats"


class OptimizerCase(Checks):
    """An optimizer and what its laws ask about it."""

    @property
    def start(self) -> Mapping[str, float]:
        """The value that each slot starts with."""
        slots: Mapping[str, float] = self.specimen.subject.slots
        return slots

    def draw(self, shape: tuple[int, ...] = (6,), *, attempt: int = 0, dtype: str = "float64") -> Array:
        """A random parameter or gradient."""
        return np.random.default_rng([self.seed, 2, attempt]).standard_normal(shape).astype(dtype)

    def gradients(self, count: int = 3, *, shape: tuple[int, ...] = (6,), dtype: str = "float64") -> list[Array]:
        """Random gradients, one for each step."""
        return [self.draw(shape, attempt=k + 1, dtype=dtype) for k in range(count)]

    def update(self, p: Any, g: Any, slots: Mapping[str, Any], t: Any, *, rate: Any = RATE, on: Any = None) -> Any:
        """What ``update`` returns, given the very arrays; ``on`` is a backend, NumPy by default."""
        xp = (on or installed_backends()["numpy"]).xp
        with np.errstate(all="ignore"):
            return self.specimen.subject.update(xp, p, g, dict(slots), rate, t)

    def walk(self, p: Array, gradients: Sequence[Array], *, rate: Any = RATE, on: Any = None, wrap: Any = int) -> Named:
        """The parameter and the slots after a step along each of the gradients, as NumPy.

        ``wrap`` makes the step that is passed from its number.
        """
        backend = on or installed_backends()["numpy"]
        bring: Any = np.copy if backend.has_numpy_arrays else backend.asarray  # writable: one check tells of writes
        new, slots = bring(p), {name: bring(np.full_like(p, value)) for name, value in self.start.items()}
        for k, g in enumerate(gradients):
            new, slots = self.update(new, bring(g), slots, wrap(k + 1), rate=rate, on=backend)
        return {name: backend.asnumpy(value) for name, value in _named(new, slots).items()}


def _named(p: Any, slots: Mapping[str, Any]) -> dict[str, Any]:
    return {"the parameter": p} | {f"slot {name!r}": value for name, value in slots.items()}


def state(case: OptimizerCase) -> str:
    """The new parameter and every slot have the shape and dtype of the old parameter; no slot is missing, or new."""
    for dtype in ("float32", "float64"):
        for shape in ((6,), (1,), (2, 3)):
            case.check(_is_kept, dtype, shape)
    return f"slots: {', '.join(case.start) or 'none'}"


def _is_kept(case: OptimizerCase, dtype: str, shape: tuple[int, ...]) -> None:
    p = case.draw(shape, dtype=dtype)
    slots: Any = {name: np.full_like(p, value) for name, value in case.start.items()}
    for t, g in enumerate(case.gradients(shape=shape, dtype=dtype), 1):
        given = case.update(p, g, slots, t)
        if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], Mapping):
            raise Broken(
                f"update returned {type(given).__name__}; expected the new parameter and a dict of slots",
                cause="return p, {} where there are no slots",
            )
        p, slots = given
        if set(slots) != set(case.start):
            expected, got = (", ".join(map(str, names)) or "none" for names in (case.start, slots))
            raise Broken(
                f"update returned the slots {got}; expected {expected}",
                cause="slots names every array that update gets and returns, and the value it starts with",
            )
        for name, value in _named(p, slots).items():
            if getattr(value, "shape", None) != shape or value.dtype != dtype:
                got = f"{value.shape} {value.dtype}" if hasattr(value, "shape") else type(value).__name__
                raise Broken(
                    f"{name} for a parameter {shape} {dtype}: update returned {got}",
                    subject=name,
                    cause=SCALAR
                    if getattr(value, "shape", None) == shape
                    else "a sum or mean over all entries; a slot has one entry for each of the parameter",
                )


def purity(case: OptimizerCase) -> str:
    """``update`` writes to none of its arguments, and equal arguments give equal results."""
    for dtype in ("float32", "float64"):
        case.check(_writes_nothing, dtype)
        case.check(_is_steady, dtype)
    return "nothing is written, equal calls give equal results"


def _writes_nothing(case: OptimizerCase, dtype: str) -> None:
    p, g = case.draw(dtype=dtype), case.draw(attempt=1, dtype=dtype)
    slots = {
        name: np.full_like(p, value) + abs(case.draw(attempt=2, dtype=dtype)) for name, value in case.start.items()
    }
    arguments = {"p": p, "g": g} | {f"slot {name!r}": value for name, value in slots.items()}
    before = {name: value.copy() for name, value in arguments.items()}
    handed = dict(slots)
    with np.errstate(all="ignore"):
        case.specimen.subject.update(installed_backends()["numpy"].xp, p, g, handed, RATE, 2)
    if handed.keys() != slots.keys() or any(handed[name] is not value for name, value in slots.items()):
        raise Broken(
            "update wrote into the dict of slots",
            subject="slots",
            cause="slots[name] = ...; return a new dict: p, {name: ...}",
        )
    for name, value in arguments.items():
        if value.tobytes() != before[name].tobytes():
            raise Broken(
                f"update wrote into {name}",
                subject=name,
                cause="an operator such as += or out=; make a new array. The engine keeps the old ones until the "
                "whole step has succeeded",
            )


def _is_steady(case: OptimizerCase, dtype: str) -> None:
    p, gradients = case.draw(dtype=dtype), case.gradients(dtype=dtype)
    first = case.walk(p, gradients)
    case.walk(case.draw(attempt=9, dtype=dtype), gradients[::-1])
    cause = "something outlives a call: a counter or array in a closure or a global, or random values. What lasts goes "
    sides = "the first time", "the second time"
    compare(first, case.walk(p, gradients), "results of equal steps", 0.0, cause=f"{cause}into slots", sides=sides)


def elementwise(case: OptimizerCase) -> str:
    """Each entry moves by itself: pieces of a parameter, in any shape, give what the whole gives."""
    p, gradients = case.draw(), case.gradients()
    whole = case.walk(p, gradients)
    for label, parts in (("pieces of 1+2+3 entries", (1, 3)), ("single entries", (1, 2, 3, 4, 5))):
        case.check(_in_pieces, whole, p, gradients, label, parts)
    case.check(_in_another_shape, whole, p, gradients)
    return "pieces and other shapes give the same"


NOT_ELEMENTWISE = (
    "a sum, mean, norm or maximum over all entries. The engine passes pieces of one flat buffer, so each entry may "
    "depend on its own p, g and slots only; norms are clipped by fit(..., clip_norm=...)"
)


def _in_pieces(case: OptimizerCase, whole: Named, p: Array, gradients: list[Array], label: str, parts: Any) -> None:
    walks = [
        case.walk(piece, list(steps))
        for piece, *steps in zip(*(np.split(array, parts) for array in (p, *gradients)), strict=True)
    ]
    given = {name: np.concatenate([walk[name] for walk in walks]) for name in whole}
    what = f"results for the whole parameter and for {label}"
    compare(whole, given, what, 1e-9, cause=NOT_ELEMENTWISE, sides=("the whole", "pieces"))


def _in_another_shape(case: OptimizerCase, whole: Named, p: Array, gradients: list[Array]) -> None:
    walk = case.walk(p.reshape(2, 3), [g.reshape(2, 3) for g in gradients])
    given = {name: value.reshape(-1) for name, value in walk.items()}
    what = "results for a parameter (6,) and for the same as (2, 3)"
    compare(whole, given, what, 1e-9, cause=NOT_ELEMENTWISE, sides=("as (6,)", "as (2, 3)"))


def descent(case: OptimizerCase) -> str:
    """On a convex bowl, no entry moves up its slope at first, and the loss is lower after some steps."""
    fall = case.check(_falls)
    case.check(_obeys_the_rate)
    return f"{STEPS} steps take the loss of a bowl from 1 to {fall:.3g}" if fall is not None else ""


def _falls(case: OptimizerCase) -> float:
    """The loss ``sum(c (p - a)^2) / 2`` at the end, relative to that at the start, p = 0."""
    rng = np.random.default_rng([case.seed, 3])
    a = rng.uniform(1.0, 3.0, 6) * np.where(rng.integers(0, 2, 6), 1.0, -1.0)
    c = rng.uniform(0.5, 2.0, 6)
    p = np.zeros(6)  # where weight decay does nothing
    slots: Any = {name: np.full_like(p, value) for name, value in case.start.items()}
    for t in range(1, STEPS + 1):
        g = c * (p - a)
        new, slots = case.update(p, g, slots, t)
        if t == 1 and len(up := np.flatnonzero((new - p) * g > 0.0)):
            k = int(up[0])
            raise Broken(
                f"the first step on a bowl moves entry {k} by {new[k] - p[k]:.4g}, up its slope {g[k]:.4g}",
                subject="the parameter",
                cause="a sign: p - lr * direction goes downhill",
            )
        p = new
    loss = float(np.sum(c * (p - a) ** 2) / np.sum(c * a * a))
    if not loss < 1.0:
        raise Broken(
            f"{STEPS} steps on a bowl with lr={RATE} take the loss from 1 to {loss:.7g}; it must fall",
            subject="the loss",
            cause="the step does not follow the gradient, or grows without bound",
        )
    return loss


def _obeys_the_rate(case: OptimizerCase) -> None:
    p, gradients = case.draw(), case.gradients()
    one, two = (case.walk(p, gradients, rate=rate)["the parameter"] for rate in (RATE, 2.0 * RATE))
    if np.array_equal(one, two):
        raise Broken(
            f"steps with lr={RATE} and with lr={2 * RATE} are equal",
            subject="the parameter",
            cause="update uses self.learning_rate; use lr, which follows schedules and callbacks",
        )


def finite(case: OptimizerCase) -> str:
    """Gradients of 0, very small ones and large ones lead to finite values."""
    for label in GRADIENTS:
        case.check(_stays_finite, label)
    return f"finite for {', '.join(GRADIENTS)}"


GRADIENTS: dict[str, Callable[[Array], list[Array]]] = {
    "gradients of 0": lambda g: [0.0 * g] * 3,
    "gradients of 0 after others": lambda g: [g, 0.0 * g, 0.0 * g],
    "gradients of 1e-25": lambda g: [1e-25 * np.sign(g)] * 3,  # whose square float32 takes for 0
    "gradients about 1e3": lambda g: [1e3 * g] * 3,
}


def _stays_finite(case: OptimizerCase, label: str) -> None:
    gradients = GRADIENTS[label](case.draw(attempt=1))
    results = case.walk(case.draw(dtype="float32"), [g.astype("float32") for g in gradients])
    for name, value in results.items():
        if not np.isfinite(value).all():
            raise Broken(
                f"{name} for {label}: {value[~np.isfinite(value)][0]} where a finite value is expected",
                subject=name,
                cause="a division by 0: add epsilon to the divisor, as in g / (xp.sqrt(v) + 1e-8)",
            )


def backends(case: OptimizerCase) -> str:
    """All installed backends give what NumPy gives; so do ``lr`` and ``t`` as arrays, as traced steps pass them."""
    worst = [case.check(_agrees, *how) for how in _ways()]
    return f"{', '.join(installed_backends())} agree, largest relative difference {most(worst):.1e}"


def _ways() -> Iterator[tuple[str, bool]]:
    for name in installed_backends():
        yield from ((name, as_arrays) for as_arrays in (False, True) if name != "numpy" or as_arrays)


def _agrees(case: OptimizerCase, name: str, as_arrays: bool) -> float:
    p, gradients = case.draw(), case.gradients()
    expected = case.walk(p, gradients)
    backend = installed_backends()[name]
    how: dict[str, Any] = {}
    if as_arrays:
        how = {
            "rate": backend.asarray(np.asarray(RATE)),
            "wrap": lambda t: backend.asarray(np.asarray(t, "uint32")),
        }
    form = f" with lr and t as arrays{'' if name == 'numpy' else f' on {name}'}" if as_arrays else f" on {name}"
    try:
        given = case.walk(p, gradients, on=backend, **how)
    except Exception as error:  # the optimizer's own code may raise anything
        raise Broken(
            f"update fails{form}: {type(error).__name__}: {error}",
            cause="in a traced training step t is an array: xp.astype(t, p.dtype) first; no if on it"
            if as_arrays
            else "a function of NumPy, or a method of its arrays; call the functions of xp",
        ) from error
    return compare(
        expected, given, f"results on NumPy and{form}", 1e-9, sides=("NumPy", form.strip().removeprefix("on "))
    )


OPTIMIZER_LAWS: dict[str, Callable[[Any], str]] = {
    "state": state,
    "purity": purity,
    "elementwise": elementwise,
    "descent": descent,
    "finite": finite,
    "backends": backends,
    "round trip": configuration,
}
