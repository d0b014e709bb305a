"""One step of an LSTM and of a GRU, forward and backward: a readable reference each, and a NumPy kernel.

The kernels do the same with fewer passes over memory. A sigmoid costs them one tanh: s(x) = tanh(x / 2) / 2 + 1/2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import lamella as lm
from lamella.primitives import sigmoid

__all__ = ["gru_step", "gru_step_dx", "lstm_step", "lstm_step_dx"]


def _blocks(x: Any, units: int) -> tuple[Any, ...]:
    """Cut the last of two axes into gates."""
    return tuple(x[:, k : k + units] for k in range(0, x.shape[1], units))


def _sigmoid(x: Any) -> None:
    """In place."""
    x *= 0.5
    np.tanh(x, out=x)
    x *= 0.5
    x += 0.5


@lm.primitive
def lstm_step(xp: Any, z: Any, h: Any, c: Any, recurrent: Any) -> tuple[Any, Any, Any, Any]:
    """Return the next h and c, the gates (i, f, c, o) and tanh of the next c."""
    i, f, g, o = _blocks(z + h @ recurrent, h.shape[1])
    i, f, g, o = sigmoid(xp, i), sigmoid(xp, f), xp.tanh(g), sigmoid(xp, o)
    c = f * c + i * g
    y = xp.tanh(c)
    return o * y, c, xp.concat([i, f, g, o], axis=1), y


@lstm_step.kernel("numpy")
def _(xp: Any, z: Any, h: Any, c: Any, recurrent: Any) -> tuple[Any, Any, Any, Any]:
    units = h.shape[1]
    gates = h @ recurrent
    gates += z
    i, f, g, o = _blocks(gates, units)
    _sigmoid(gates[:, : 2 * units])
    np.tanh(g, out=g)
    _sigmoid(o)
    c = f * c
    y = i * g
    c += y
    np.tanh(c, out=y)
    return o * y, c, gates, y


@lm.primitive
def lstm_step_dx(xp: Any, dh: Any, dc: Any, gates: Any, y: Any, c: Any, transposed: Any) -> tuple[Any, Any, Any]:
    """Return the gradients of the h and c before, and of z; ``c`` is the one before, ``y`` the tanh of the next."""
    i, f, g, o = _blocks(gates, dh.shape[1])
    dc = dc + dh * o * (1.0 - y * y)
    slopes = (g * i * (1.0 - i), c * f * (1.0 - f), i * (1.0 - g * g))
    dz = xp.concat([*(dc * slope for slope in slopes), dh * y * o * (1.0 - o)], axis=1)
    return dz @ transposed, dc * f, dz


@lstm_step_dx.kernel("numpy")
def _(xp: Any, dh: Any, dc: Any, gates: Any, y: Any, c: Any, transposed: Any) -> tuple[Any, Any, Any]:
    units = dh.shape[1]
    i, f, g, o = _blocks(gates, units)
    through = dh * o
    square = y * y
    square *= through
    through -= square
    dc = dc + through
    slopes = gates * gates
    np.subtract(gates[:, : 2 * units], slopes[:, : 2 * units], out=slopes[:, : 2 * units])
    np.subtract(1.0, slopes[:, 2 * units : 3 * units], out=slopes[:, 2 * units : 3 * units])
    np.subtract(o, slopes[:, 3 * units :], out=slopes[:, 3 * units :])
    dz = np.empty_like(gates)
    for known, incoming, out in zip((g, c, i, y), (dc, dc, dc, dh), _blocks(dz, units), strict=True):
        np.multiply(known, incoming, out=out)
    dz *= slopes
    dc *= f
    return dz @ transposed, dc, dz


@lm.primitive
def gru_step(xp: Any, z: Any, h: Any, recurrent: Any, bias: Any) -> tuple[Any, Any, Any]:
    """Return the next h, the gates (z, r, h), and what the reset gate r is multiplied with."""
    units = h.shape[1]
    product = h @ recurrent
    keep, reset = _blocks(sigmoid(xp, z[:, : 2 * units] + product[:, : 2 * units]), units)
    past = product[:, 2 * units :] + bias
    new = xp.tanh(z[:, 2 * units :] + reset * past)
    return new + keep * (h - new), xp.concat([keep, reset, new], axis=1), past


@gru_step.kernel("numpy")
def _(xp: Any, z: Any, h: Any, recurrent: Any, bias: Any) -> tuple[Any, Any, Any]:
    units = h.shape[1]
    gates = h @ recurrent
    keep, reset, new = _blocks(gates, units)
    past = new + bias
    both = gates[:, : 2 * units]
    both += z[:, : 2 * units]
    _sigmoid(both)
    np.multiply(reset, past, out=new)
    new += z[:, 2 * units :]
    np.tanh(new, out=new)
    h = h - new
    h *= keep
    h += new
    return h, gates, past


@lm.primitive
def gru_step_dx(xp: Any, dh: Any, gates: Any, past: Any, h: Any, transposed: Any) -> tuple[Any, Any, Any]:
    """Return the gradients of the h before, of z, and of the product of that h with the recurrent kernel."""
    keep, reset, new = _blocks(gates, dh.shape[1])
    dnew = dh * (1.0 - keep) * (1.0 - new * new)
    dkeep = dh * (h - new) * keep * (1.0 - keep)
    dreset = dnew * past * reset * (1.0 - reset)
    dproduct = xp.concat([dkeep, dreset, dnew * reset], axis=1)
    return dh * keep + dproduct @ transposed, xp.concat([dkeep, dreset, dnew], axis=1), dproduct


@gru_step_dx.kernel("numpy")
def _(xp: Any, dh: Any, gates: Any, past: Any, h: Any, transposed: Any) -> tuple[Any, Any, Any]:
    units = dh.shape[1]
    keep, reset, new = _blocks(gates, units)
    slopes = gates * gates
    np.subtract(gates[:, : 2 * units], slopes[:, : 2 * units], out=slopes[:, : 2 * units])
    np.subtract(1.0, slopes[:, 2 * units :], out=slopes[:, 2 * units :])
    dz = np.empty_like(gates)
    dkeep, dreset, dnew = _blocks(dz, units)
    kept = dh * keep
    np.subtract(dh, kept, out=dnew)
    np.subtract(h, new, out=dkeep)
    dkeep *= dh
    dnew *= slopes[:, 2 * units :]
    np.multiply(dnew, past, out=dreset)
    both = dz[:, : 2 * units]
    both *= slopes[:, : 2 * units]
    dproduct = dz.copy()
    last = dproduct[:, 2 * units :]
    last *= reset
    before = dproduct @ transposed
    before += kept
    return before, dz, dproduct
