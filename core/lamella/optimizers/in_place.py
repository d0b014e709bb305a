"""Updates with NumPy, into arrays that are there already, with the same bits as those that they stand for.

They are found by the ``update`` of a class, so that a subclass with another one gets its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from lamella.optimizers.adam import Adam, AdamW
from lamella.optimizers.momentum import SGD
from lamella.optimizers.optimizer import Slots

__all__ = ["WRITERS"]


def _write_sgd(
    rule: SGD, p: Any, g: Any, slots: Slots, lr: float, t: int, new_p: Any, new_slots: Slots, work: Any
) -> None:
    step = g
    if rule.momentum:
        step = v = new_slots["velocity"]
        np.multiply(slots["velocity"], rule.momentum, out=v)
        np.add(v, g, out=v)
        if rule.nesterov:
            np.multiply(v, rule.momentum, out=new_p)
            step = np.add(g, new_p, out=new_p)
    np.multiply(step, lr, out=new_p)
    np.subtract(p, new_p, out=new_p)


def _write_adam(
    rule: Adam | AdamW, p: Any, g: Any, slots: Slots, lr: float, t: int, new_p: Any, new_slots: Slots, work: Any
) -> None:
    m, v, new_m, new_v = slots["m"], slots["v"], new_slots["m"], new_slots["v"]
    np.subtract(g, m, out=new_m)
    np.multiply(new_m, 1.0 - rule.beta_1, out=new_m)
    np.add(m, new_m, out=new_m)
    np.multiply(g, g, out=work)
    np.subtract(work, v, out=work)
    np.multiply(work, 1.0 - rule.beta_2, out=work)
    np.add(v, work, out=new_v)
    c_1, root = 1.0 - rule.beta_1**t, (1.0 - rule.beta_2**t) ** 0.5
    if rule.amsgrad:
        new_v = np.maximum(slots["v_max"], new_v, out=new_slots["v_max"])
    np.sqrt(new_v, out=work)
    np.add(work, rule.epsilon * root, out=work)
    np.divide(new_m, work, out=work)
    np.multiply(work, lr * root / c_1, out=work)
    if isinstance(rule, AdamW):
        np.multiply(p, lr * rule.weight_decay, out=new_p)
        np.subtract(p, new_p, out=new_p)
        p = new_p
    np.subtract(p, work, out=new_p)


WRITERS: Mapping[Any, Callable[..., None]] = MappingProxyType(
    {SGD.update: _write_sgd, Adam.update: _write_adam, AdamW.update: _write_adam}
)
