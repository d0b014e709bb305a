"""Updates with NumPy, into arrays that are there already, with the same bits as those that they stand for.

They are found by the ``update`` of a class, so that a subclass with another one gets its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from lamella.optimizers.adam import Adam, Adamax, AdamW, Nadam, momentum_of
from lamella.optimizers.around import Around, ExponentialMovingAverage, GradientAccumulation
from lamella.optimizers.momentum import SGD, Lion
from lamella.optimizers.optimizer import Optimizer, Slots

__all__ = ["WRITERS", "writer_of"]


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


def _write_mean(mean: Any, value: Any, keeps: float, new_mean: Any) -> None:
    """Write a running average, ``mean + (value - mean) (1 - keeps)``."""
    np.subtract(value, mean, out=new_mean)
    np.multiply(new_mean, 1.0 - keeps, out=new_mean)
    np.add(mean, new_mean, out=new_mean)


def _write_adam(
    rule: Adam | AdamW, p: Any, g: Any, slots: Slots, lr: float, t: int, new_p: Any, new_slots: Slots, work: Any
) -> None:
    m, v, new_m, new_v = slots["m"], slots["v"], new_slots["m"], new_slots["v"]
    _write_mean(m, g, rule.beta_1, new_m)
    _write_mean(v, np.multiply(g, g, out=work), rule.beta_2, new_v)
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


def _write_adamax(
    rule: Adamax, p: Any, g: Any, slots: Slots, lr: float, t: int, new_p: Any, new_slots: Slots, work: Any
) -> None:
    m, new_m, new_u = slots["m"], new_slots["m"], new_slots["u"]
    _write_mean(m, g, rule.beta_1, new_m)
    np.abs(g, out=work)
    np.add(work, rule.epsilon, out=work)
    np.multiply(slots["u"], rule.beta_2, out=new_u)
    np.maximum(new_u, work, out=new_u)
    np.divide(new_m, new_u, out=work)
    np.multiply(work, lr / (1.0 - rule.beta_1**t), out=work)
    np.subtract(p, work, out=new_p)


def _write_nadam(
    rule: Nadam, p: Any, g: Any, slots: Slots, lr: float, t: int, new_p: Any, new_slots: Slots, work: Any
) -> None:
    m, v, new_m, new_v, product = slots["m"], slots["v"], new_slots["m"], new_slots["v"], new_slots["mu_product"]
    mu, ahead = momentum_of(rule, np, t, p.dtype), momentum_of(rule, np, t + 1, p.dtype)
    _write_mean(m, g, rule.beta_1, new_m)
    np.multiply(slots["mu_product"], mu, out=product)
    rest = new_v  # which is not written yet
    np.multiply(g, 1.0 - mu, out=work)
    np.subtract(1.0, product, out=rest)
    np.divide(work, rest, out=work)
    np.multiply(new_m, ahead, out=new_p)
    np.multiply(product, ahead, out=rest)
    np.subtract(1.0, rest, out=rest)
    np.divide(new_p, rest, out=new_p)
    np.add(work, new_p, out=work)
    np.multiply(work, lr, out=work)
    _write_mean(v, np.multiply(g, g, out=new_p), rule.beta_2, new_v)
    np.sqrt(new_v, out=new_p)
    np.divide(new_p, (1.0 - rule.beta_2**t) ** 0.5, out=new_p)
    np.add(new_p, rule.epsilon, out=new_p)
    np.divide(work, new_p, out=work)
    np.subtract(p, work, out=new_p)


def _write_lion(
    rule: Lion, p: Any, g: Any, slots: Slots, lr: float, t: int, new_p: Any, new_slots: Slots, work: Any
) -> None:
    m, new_m = slots["m"], new_slots["m"]
    np.multiply(m, rule.beta_1, out=work)
    np.multiply(g, 1.0 - rule.beta_1, out=new_p)
    np.add(work, new_p, out=work)
    np.sign(work, out=new_p)  # into another array, which is many times as fast
    if rule.weight_decay:
        np.multiply(p, rule.weight_decay, out=work)
        np.add(new_p, work, out=new_p)
    np.multiply(new_p, lr, out=new_p)
    np.subtract(p, new_p, out=new_p)
    np.multiply(m, rule.beta_2, out=new_m)
    np.multiply(g, 1.0 - rule.beta_2, out=work)
    np.add(new_m, work, out=new_m)


def _write_accumulation(
    rule: GradientAccumulation, p: Any, g: Any, slots: Slots, lr: float, t: int, new_p: Any, new_slots: Slots, work: Any
) -> None:
    mean = new_slots["accumulated"]
    np.divide(g, rule.steps, out=mean)
    np.add(slots["accumulated"], mean, out=mean)
    if t % rule.steps:
        np.copyto(new_p, p)
        for name, slot in slots.items():
            if name != "accumulated":
                np.copyto(new_slots[name], slot)
        return
    write = writer_of(rule.optimizer)
    assert write is not None
    write(rule.optimizer, p, mean, slots, lr, t // rule.steps, new_p, new_slots, work)
    mean[...] = 0.0


def _write_average(
    rule: ExponentialMovingAverage,
    p: Any,
    g: Any,
    slots: Slots,
    lr: float,
    t: int,
    new_p: Any,
    new_slots: Slots,
    work: Any,
) -> None:
    write, average = writer_of(rule.optimizer), new_slots["average"]
    assert write is not None
    write(rule.optimizer, p, g, slots, lr, t, new_p, new_slots, work)
    keeps = rule.momentum * float(t > 1)
    np.multiply(slots["average"], keeps, out=average)
    np.multiply(new_p, 1.0 - keeps, out=work)
    np.add(average, work, out=average)


WRITERS: Mapping[Any, Callable[..., None]] = MappingProxyType(
    {
        SGD.update: _write_sgd,
        Lion.update: _write_lion,
        Adam.update: _write_adam,
        AdamW.update: _write_adam,
        Adamax.update: _write_adamax,
        Nadam.update: _write_nadam,
        GradientAccumulation.update: _write_accumulation,
        ExponentialMovingAverage.update: _write_average,
    }
)


def writer_of(optimizer: Optimizer) -> Callable[..., None] | None:
    """Return what writes an optimizer's update; None where there is only its formula, or that of one within."""
    writer = WRITERS.get(type(optimizer).update)
    if writer is not None and isinstance(optimizer, Around) and writer_of(optimizer.optimizer) is None:
        return None
    return writer
