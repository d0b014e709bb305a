"""The NumPy kernels of recurrent layers: the steps of `lstm` and `gru` in fewer passes over memory.

Gates lie on the first axis, (gates, N, units), so that each is one piece of memory. The sigmoid is 1 / (1 + exp(-x)),
which keeps all digits of small gates, as (1 + tanh(x / 2)) / 2 does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella_layers.recurrent.gru import gru_step, gru_step_dx
from lamella_layers.recurrent.lstm import lstm_step, lstm_step_dx

__all__: list[str] = []


def _to_sigmoid(x: Any) -> None:
    np.negative(x, out=x)
    with np.errstate(over="ignore"):  # 1 / (1 + inf) is right
        np.exp(x, out=x)
    x += 1.0
    np.divide(1.0, x, out=x)


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
