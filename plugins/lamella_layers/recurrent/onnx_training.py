"""The passes of LSTM in training as ONNX: few operators in each step, and everything that can be outside of the loop.

A Scan of onnxruntime takes some microseconds for each node of a step. Gates therefore lie side by side, (N, 4 units),
as in the kernels, so that a step has one product; slopes, which do not depend on later steps, are computed for all
steps at once:

    dc += dh o (1 - tanh(c)^2);   dz = (dc, dc, dc, dh) slopes;   dh, dc = dz R^T, dc f

Sequences of different lengths and truncation are left to the references.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import lamella as lm
from lamella.primitives import sigmoid
from lamella_layers.recurrent.lstm import LSTM
from lamella_layers.recurrent.recurrent import Recurrent, Sequences, States, kept_recurrence, recurrence_dx

__all__: list[str] = []


def _is_plain(layer: Recurrent, given: Sequences) -> bool:
    return isinstance(layer, LSTM) and layer.truncate is None and given.lengths is None


@kept_recurrence.kernel("onnx")
def _(xp: Any, layer: Recurrent, params: Any, given: Sequences) -> Any:
    """What is kept: i, f, g, o, tanh of c, and c and h before each step, all (T, N, units)."""
    if not _is_plain(layer, given):
        return NotImplemented
    units, recurrent = layer.units, params.recurrent_kernel
    z = xp.permute_dims(given.x, (1, 0, 2)) @ params.kernel  # (T, N, 4 units)
    if layer.use_bias:
        z = z + params.bias
    zeros = xp.zeros((given.x.shape[0], units), dtype=z.dtype)

    def body(states: States, xs: tuple[Any, ...]) -> tuple[States, tuple[Any, ...]]:
        h, c = states
        i, f, g, o = _split(xp, h @ recurrent + xs[0], units)
        i, f, g, o = sigmoid(xp, i), sigmoid(xp, f), xp.tanh(g), sigmoid(xp, o)
        after = f * c + i * g
        y = xp.tanh(after)
        return (o * y, after), (i, f, g, o, y, c, h)

    last, kept = lm.scan(xp, body, given.initial or (zeros, zeros), (z,), reverse=layer.reverse)
    y = None
    if layer.return_sequences:
        # h of all steps: o tanh(c), (T, N, units) -> (N, T, units)
        y = xp.permute_dims(kept[3] * kept[4], (1, 0, 2))
    return y, last, kept


@recurrence_dx.kernel("onnx")
def _(
    xp: Any,
    layer: Recurrent,
    params: Any,
    given: Sequences,
    kept: Any,
    incoming: tuple[Any, ...],
    *,
    trainable: bool,
    wants_dx: bool,
) -> Any:
    if not _is_plain(layer, given):
        return NotImplemented
    i, f, g, o, y, c, h = kept
    slopes = [g * i * (1.0 - i), c * f * (1.0 - f), i * (1.0 - g * g), y * o * (1.0 - o)]
    through = o * (1.0 - y * y)
    dy, *rest = incoming
    zeros = xp.zeros((given.x.shape[0], layer.units), dtype=given.x.dtype)
    last: States = tuple(rest) or (zeros, zeros)
    xs = [xp.concat(slopes, axis=2), through, f]
    if layer.return_sequences:
        xs.append(xp.permute_dims(dy, (1, 0, 2)))
    else:
        last = (last[0] + dy, last[1])
    transposed = params.recurrent_kernel.T

    def body(after: States, xs_t: tuple[Any, ...]) -> tuple[States, tuple[Any, ...]]:
        (dh, dc), (slope, through, f, *more) = after, xs_t
        dh = dh + more[0] if more else dh
        dc = dc + dh * through
        dz = xp.concat([dc, dc, dc, dh], axis=1) * slope
        return (dz @ transposed, dc * f), (dz,)

    d, (dz,) = lm.scan(xp, body, last, xs, reverse=not layer.reverse)
    # (N, T, features) -> (T, N, features) -> (T*N, features), (T, N, units) -> (T*N, units)
    x = xp.permute_dims(given.x, (1, 0, 2))
    x_rows, h_rows, dz_rows = (xp.reshape(a, (-1, a.shape[2])) for a in (x, h, dz))
    gradients = {}
    if trainable:
        gradients = {"kernel": x_rows.T @ dz_rows, "recurrent_kernel": h_rows.T @ dz_rows}
        if layer.use_bias:
            gradients["bias"] = xp.sum(dz_rows, axis=0)
    return xp.permute_dims(dz @ params.kernel.T, (1, 0, 2)) if wants_dx else None, d, gradients


def _split(xp: Any, z: Any, units: int) -> tuple[Any, ...]:
    """(N, 4 units) -> four times (N, units)."""
    kinds: dict[str, Any] = {"shape": [(z.shape[0], units)] * 4, "dtype": [z.dtype] * 4}
    return xp.node("Split", z, xp.constant(np.full(4, units)), axis=1, **kinds)  # type: ignore[no-any-return]
