"""Adam and AdamW in three passes over memory, of which NumPy takes twelve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from lamella import optimizers
from lamella_onednn.descriptors import described
from lamella_onednn.layouts import is_float32
from lamella_onednn.routines import Chain, Step, kept

__all__ = ["WRITERS"]

LEAST = 1 << 16  # values below which NumPy is faster
_ADD, _MULTIPLY, _SUBTRACT = 0x1FFF0, 0x1FFF1, 0x1FFF5
_SQUARE_ROOT, _POWER = 0x25, 0x30


def _moment(size: int) -> Chain:
    """(g - m) share + m."""
    values, one = described((size,)), described((1,))
    return Chain(values, [(_SUBTRACT, values), (_MULTIPLY, one), (_ADD, values)], f"a moment of {size} values")


def _square(size: int) -> Chain:
    """(g g - v) share + v."""
    values, one = described((size,)), described((1,))
    steps = [(_MULTIPLY, values), (_SUBTRACT, values), (_MULTIPLY, one), (_ADD, values)]
    return Chain(values, steps, f"a second moment of {size} values")


def _step(size: int) -> Chain:
    """p - rate m / (sqrt(v) + epsilon), where v comes times 1."""
    values, one = described((size,)), described((1,))
    divisor: list[Step] = [(_MULTIPLY, one), (_SQUARE_ROOT, 0.0), (_ADD, one), (_POWER, -1.0)]
    return Chain(values, [*divisor, (_MULTIPLY, values), (_MULTIPLY, one), (_ADD, values)], f"Adam of {size} values")


def _decay(size: int) -> Chain:
    """p kept."""
    return Chain(described((size,)), [(_MULTIPLY, described((1,)))], f"decay of {size} values")


def _number(value: float) -> Any:
    return np.array([value], "float32")


def _write_adam(
    rule: optimizers.Adam | optimizers.AdamW,
    p: Any,
    g: Any,
    slots: Mapping[str, Any],
    lr: float,
    t: int,
    new_p: Any,
    new_slots: Mapping[str, Any],
    work: Any,
) -> None:
    makers = (_moment, _square, _step, _decay) if p.size >= LEAST and is_float32(p) and not rule.amsgrad else ()
    routines = [kept(make, p.size) for make in makers]
    if not routines or None in routines:
        optimizers.WRITERS[type(rule).update](rule, p, g, slots, lr, t, new_p, new_slots, work)
        return
    moment, square, step, decay = routines
    m, v, new_m, new_v = slots["m"], slots["v"], new_slots["m"], new_slots["v"]
    moment(g, m, _number(1.0 - rule.beta_1), m, new_m)
    square(g, g, v, _number(1.0 - rule.beta_2), v, new_v)
    if isinstance(rule, optimizers.AdamW):
        decay(p, _number(1.0 - lr * rule.weight_decay), new_p)
        p = new_p
    rest, root = 1.0 - rule.beta_1**t, (1.0 - rule.beta_2**t) ** 0.5
    step(new_v, _number(1.0), _number(rule.epsilon * root), new_m, _number(-lr * root / rest), p, new_p)


WRITERS: Mapping[Any, Callable[..., None]] = MappingProxyType(
    {optimizers.Adam.update: _write_adam, optimizers.AdamW.update: _write_adam}
)
