"""One step of an LSTM and of a GRU, forward and backward: a readable reference each, and a NumPy kernel.

Gates lie on the first axis, (gates, N, units), so that each is one piece of memory; kernels are (gates, units, units).
The NumPy kernels do what the references do in fewer passes. Their sigmoid is 1 / (1 + exp(-x)), which keeps all
digits of small gates, as (1 + tanh(x / 2)) / 2 does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import lamella as lm
from lamella.primitives import sigmoid

__all__ = ["gru_step", "gru_step_dx", "lstm_step", "lstm_step_dx"]


def _to_sigmoid(x: Any) -> None:
    np.negative(x, out=x)
    with np.errstate(over="ignore"):  # 1 / (1 + inf) is right
        np.exp(x, out=x)
    x += 1.0
    np.reciprocal(x, out=x)


@lm.primitive
def lstm_step(xp: Any, z: Any, h: Any, c: Any, kernel: Any) -> tuple[Any, Any, Any, Any]:
    """Return the next h and c, the gates (i, f, c, o) and tanh of the next c."""
    z = z + h @ kernel
    i, f, g, o = sigmoid(xp, z[0, ...]), sigmoid(xp, z[1, ...]), xp.tanh(z[2, ...]), sigmoid(xp, z[3, ...])
    c = f * c + i * g
    y = xp.tanh(c)
    return o * y, c, xp.stack([i, f, g, o], axis=0), y


@lstm_step.kernel("numpy")
def _(xp: Any, z: Any, h: Any, c: Any, kernel: Any) -> tuple[Any, Any, Any, Any]:
    gates = h @ kernel
    gates += z
    i, f, g, o = gates
    y = np.tanh(g)
    _to_sigmoid(gates)
    g[...] = y
    y *= i
    c = f * c
    c += y
    np.tanh(c, out=y)
    return o * y, c, gates, y


@lm.primitive
def lstm_step_dx(
    xp: Any, dh: Any, dc: Any, gates: Any, y: Any, c: Any, transposed: Any
) -> tuple[Any, Any, tuple[Any, ...]]:
    """Return the gradients of the h and c before, and of z; ``c`` is the one before, ``y`` the tanh of the next."""
    i, f, g, o = gates[0, ...], gates[1, ...], gates[2, ...], gates[3, ...]
    dc = dc + dh * o * (1.0 - y * y)
    slopes = (g * i * (1.0 - i), c * f * (1.0 - f), i * (1.0 - g * g))
    dz = (*(dc * slope for slope in slopes), dh * y * o * (1.0 - o))
    return xp.sum(xp.stack(dz, axis=0) @ transposed, axis=0), dc * f, dz


@lstm_step_dx.kernel("numpy")
def _(xp: Any, dh: Any, dc: Any, gates: Any, y: Any, c: Any, transposed: Any) -> tuple[Any, Any, tuple[Any, ...]]:
    i, f, g, o = gates
    through = dh * o
    square = y * y
    square *= through
    through -= square
    through += dc
    slopes = gates * gates
    np.multiply(g, g, out=square)
    np.subtract(gates, slopes, out=slopes)
    np.subtract(1.0, square, out=slopes[2])
    dz = np.empty_like(slopes)
    for known, incoming, out in ((g, through, dz[0]), (c, through, dz[1]), (i, through, dz[2]), (y, dh, dz[3])):
        np.multiply(known, incoming, out=out)
    dz *= slopes
    through *= f
    return np.add.reduce(dz @ transposed, axis=0), through, tuple(dz)


@lm.primitive
def gru_step(xp: Any, z: Any, h: Any, kernel: Any, bias: Any) -> tuple[Any, Any, Any]:
    """Return the next h, the gates (z, r, h), and what the reset gate r is multiplied with."""
    product = h @ kernel
    keep, reset = sigmoid(xp, z[0, ...] + product[0, ...]), sigmoid(xp, z[1, ...] + product[1, ...])
    past = product[2, ...] + bias
    new = xp.tanh(z[2, ...] + reset * past)
    return new + keep * (h - new), xp.stack([keep, reset, new], axis=0), past


@gru_step.kernel("numpy")
def _(xp: Any, z: Any, h: Any, kernel: Any, bias: Any) -> tuple[Any, Any, Any]:
    gates = h @ kernel
    keep, reset, new = gates
    past = new + bias
    both = gates[:2]
    both += z[:2]
    _to_sigmoid(both)
    np.multiply(reset, past, out=new)
    new += z[2]
    np.tanh(new, out=new)
    h = h - new
    h *= keep
    h += new
    return h, gates, past


@lm.primitive
def gru_step_dx(xp: Any, dh: Any, gates: Any, past: Any, h: Any, transposed: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the gradients of the h before, of z, and of ``past``."""
    keep, reset, new = gates[0, ...], gates[1, ...], gates[2, ...]
    dnew = dh * (1.0 - keep) * (1.0 - new * new)
    dkeep = dh * (h - new) * keep * (1.0 - keep)
    dreset = dnew * past * reset * (1.0 - reset)
    dpast = dnew * reset
    before = dh * keep + xp.sum(xp.stack([dkeep, dreset, dpast], axis=0) @ transposed, axis=0)
    return before, (dkeep, dreset, dnew, dpast)


@gru_step_dx.kernel("numpy")
def _(xp: Any, dh: Any, gates: Any, past: Any, h: Any, transposed: Any) -> tuple[Any, tuple[Any, ...]]:
    keep, reset, new = gates
    slopes = gates * gates
    np.subtract(gates[:2], slopes[:2], out=slopes[:2])
    np.subtract(1.0, slopes[2], out=slopes[2])
    dz = np.empty_like(slopes)
    dkeep, dreset, dpast = dz
    kept = dh * keep
    dnew = dh - kept
    dnew *= slopes[2]
    np.subtract(h, new, out=dkeep)
    dkeep *= dh
    np.multiply(dnew, past, out=dreset)
    both = dz[:2]
    both *= slopes[:2]
    np.multiply(dnew, reset, out=dpast)
    before = np.add.reduce(dz @ transposed, axis=0)
    before += kept
    return before, (dkeep, dreset, dnew, dpast)
