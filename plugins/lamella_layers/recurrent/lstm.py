"""Long short-term memory.

N batch, U units, R the recurrent kernel (4, U, U), gate by gate. z = x W + b is (4, N, U), states and gates are (N, U):
the functions `lstm_step` and `lstm_step_dx` have the formulas of a step.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import lamella as lm
from lamella.initializers import initializer_of
from lamella.primitives import sigmoid
from lamella_layers.recurrent.recurrent import Recurrent, States

__all__ = ["LSTM", "lstm_step", "lstm_step_dx"]


def _remember(initializer: Any, rng: Any, shape: tuple[int, ...], fan_in: int | None, fan_out: int | None) -> Any:
    """What an initializer gives, and 1 for the forget gate."""
    size = shape[0] // 4
    values = np.array(initializer(rng, shape, fan_in, fan_out), "float64")
    values[size : 2 * size] = 1.0
    return values


class LSTM(Recurrent):
    """Long short-term memory: a cell c that gates write, keep and read.

    ``i, f, g, o = s(z_i), s(z_f), tanh(z_c), s(z_o)``, with the sigmoid s and ``z = x_t W + h_(t-1) R + b``;
    ``c_t = f c_(t-1) + i g``; ``h_t = o tanh(c_t)``.

    Arguments:
        units: the sizes of h and c.
        return_sequences: whether to give h of every step, or of the last only, which is what Keras does unless told.
        return_state: whether to give the last h and c as further outputs.
        reverse: go from the last step to the first. Outputs stay in the order of time, as in ONNX and PyTorch.
        truncate: cut the gradient between chunks of so many steps; None for the whole sequence. States are carried
            on from chunk to chunk in the forward pass.
        use_bias: whether to add ``b``.
        kernel_initializer: how ``W`` starts.
        recurrent_initializer: how ``R`` starts.
        bias_initializer: how ``b`` starts, but for the forget gate, where it starts at one.

    Inputs: x; then, if sequences have different lengths, these as integers (N,); then, if they are not zero, the h and
    c to begin with, (N, units) each. After the end of a sequence outputs are 0, and its last states are those of its
    own last step: with the length 0, those that it begins with. A length of more than ``timesteps`` means all of them;
    an input with ``low=0, high=timesteps + 1`` refuses it.

    Shapes: (N, timesteps, features) -> (N, timesteps, units), or (N, units) without ``return_sequences``. Parameters:
    ``kernel`` (features, 4 units), ``recurrent_kernel`` (units, 4 units), ``bias`` (4 units,), in blocks i, f, c, o as
    in Keras (and PyTorch, whose bias is the sum of two); ONNX has i, o, f, c.

    Onnxruntime's LSTM ends the process, without an error, where a batch has no rows: give a file one at least.

    Raises:
        ArgumentError: if ``units`` or ``truncate`` is no positive int.
        GraphError: if the input is no sequence, or lengths or states don't fit.

    Source: https://onnx.ai/onnx/operators/onnx__LSTM.html; Hochreiter and Schmidhuber (1997),
    https://doi.org/10.1162/neco.1997.9.8.1735; forget bias: Jozefowicz et al. (2015),
    https://proceedings.mlr.press/v37/jozefowicz15.html

    >>> import lamella as lm
    >>> sequence, length = lm.Input(("T", 3)), lm.Input((), dtype="int64", low=0, high=6)
    >>> h, last, cell = LSTM(4, return_state=True)(sequence, length)
    >>> h.shape, cell.shape
    (('N', 'T', 4), ('N', 4))
    """

    operator = "LSTM"
    states = ("h", "c")
    gates = ("i", "f", "c", "o")
    onnx_gates = ("i", "o", "f", "c")

    def bias_start(self) -> Any:
        try:
            return functools.partial(_remember, initializer_of(self.bias_initializer))
        except lm.RegistryError as error:
            raise lm.RegistryError(f"bias_initializer: {error}") from None

    def step(self, xp: Any, z: Any, states: States, kernel: Any, params: Any) -> tuple[States, tuple[Any, ...]]:
        h, c, gates, y = lstm_step(xp, z, *states, kernel)
        return (h, c), (gates, y, states[1])

    def step_dx(self, xp: Any, d: States, kept: tuple[Any, ...], h: Any, transposed: Any) -> tuple[States, States]:
        dh, dc, dz = lstm_step_dx(xp, *d, *kept, transposed)
        return (dh, dc), dz


@lm.primitive
def lstm_step(xp: Any, z: Any, h: Any, c: Any, kernel: Any) -> tuple[Any, Any, Any, Any]:
    """Return the next h and c, the gates (i, f, g, o) and tanh of the next c."""
    z = z + h @ kernel
    i, f, g, o = sigmoid(xp, z[0, ...]), sigmoid(xp, z[1, ...]), xp.tanh(z[2, ...]), sigmoid(xp, z[3, ...])
    c = f * c + i * g
    y = xp.tanh(c)
    return o * y, c, xp.stack([i, f, g, o], axis=0), y


@lm.primitive
def lstm_step_dx(
    xp: Any, dh: Any, dc: Any, gates: Any, y: Any, c: Any, transposed: Any
) -> tuple[Any, Any, tuple[Any, ...]]:
    """Return the gradients of h and c before the step, and of z; ``c`` is that before it, ``y`` tanh of the next."""
    i, f, g, o = gates[0, ...], gates[1, ...], gates[2, ...], gates[3, ...]
    dc = dc + dh * o * (1.0 - y * y)
    slopes = (g * i * (1.0 - i), c * f * (1.0 - f), i * (1.0 - g * g))
    dz = (*(dc * slope for slope in slopes), dh * y * o * (1.0 - o))
    return xp.sum(xp.stack(dz, axis=0) @ transposed, axis=0), dc * f, dz
