"""The gated recurrent unit.

N batch, U units, R the recurrent kernel (3, U, U), gate by gate. z = x W + b is (3, N, U), states and gates are (N, U):
the functions `gru_step` and `gru_step_dx` have the formulas of a step.
"""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.primitives import sigmoid
from lamella_layers.recurrent.recurrent import Recurrent, States

__all__ = ["GRU", "gru_step", "gru_step_dx"]


class GRU(Recurrent):
    """The gated recurrent unit, with the reset gate after the product, as in PyTorch and in Keras by default.

    ``z, r = s(a_z + p_z), s(a_r + p_r)`` and ``n = tanh(a_h + r p_h)``, with the sigmoid s, ``a = x_t W + b`` and
    ``p = h_(t-1) R + b'``; ``h_t = z h_(t-1) + (1 - z) n``.

    Arguments:
        units: the size of the state.
        return_sequences: whether to give h of every step, or of the last only, which is what Keras does unless told.
        return_state: whether to give the last h as a further output.
        reverse: go from the last step to the first. Outputs stay in the order of time, as in ONNX and PyTorch.
        truncate: cut the gradient between chunks of so many steps; None for the whole sequence. States are carried
            on from chunk to chunk in the forward pass.
        use_bias: whether to add ``b`` and ``b'``.
        kernel_initializer: how ``W`` starts.
        recurrent_initializer: how ``R`` starts.
        bias_initializer: how both biases start.

    Inputs: x; then, if sequences have different lengths, these as integers (N,); then, if it is not zero, the h to
    begin with (N, units). After the end of a sequence outputs are 0, and its last state is that of its own last step:
    with the length 0, the one that it begins with. A length of more than ``timesteps`` means all of them; an input
    with ``low=0, high=timesteps + 1`` refuses it.

    Shapes: (N, timesteps, features) -> (N, timesteps, units), or (N, units) without ``return_sequences``. Parameters:
    ``kernel`` (features, 3 units), ``recurrent_kernel`` (units, 3 units), ``bias`` and ``recurrent_bias`` (3 units,),
    in blocks z, r, h as in Keras, whose bias has both in its rows, and as in ONNX with ``linear_before_reset=1``;
    PyTorch has r, z, h.

    Onnxruntime's GRU ends the process, without an error, where a batch has no rows or no steps: give a file one at
    least.

    Raises:
        ArgumentError: if ``units`` or ``truncate`` is no positive int.
        GraphError: if the input is no sequence, or lengths or states don't fit.

    Source: https://onnx.ai/onnx/operators/onnx__GRU.html; Cho et al. (2014), https://arxiv.org/abs/1406.1078

    >>> import lamella as lm
    >>> model = lm.Sequential([GRU(4)], input_shape=(5, 2))
    >>> {name: array.shape for name, array in model.parameters.items() if "bias" in name}
    {'gru_1.bias': (12,), 'gru_1.recurrent_bias': (12,)}
    """

    operator = "GRU"
    gates = onnx_gates = ("z", "r", "h")
    has_two_biases = True

    def onnx_attributes(self) -> dict[str, Any]:
        return {"linear_before_reset": 1}

    def bias_of_z(self, xp: Any, params: Any) -> Any:
        both = 2 * self.units  # those of z and r
        bias = xp.concat([params.bias[:both] + params.recurrent_bias[:both], params.bias[both:]])
        return xp.reshape(bias, (3, 1, self.units))

    def step(self, xp: Any, z: Any, states: States, kernel: Any, params: Any) -> tuple[States, tuple[Any, ...]]:
        bias = params.recurrent_bias[2 * self.units :] if self.use_bias else xp.zeros((self.units,), dtype=z.dtype)
        h, gates, past = gru_step(xp, z, *states, kernel, bias)
        return (h,), (gates, past)

    def step_dx(self, xp: Any, d: States, kept: tuple[Any, ...], h: Any, transposed: Any) -> tuple[States, States]:
        dh, dz = gru_step_dx(xp, *d, *kept, h, transposed)
        return (dh,), dz


@lm.primitive
def gru_step(xp: Any, z: Any, h: Any, kernel: Any, bias: Any) -> tuple[Any, Any, Any]:
    """Return the next h, the gates (z, r, h), and what the reset gate r is multiplied with."""
    product = h @ kernel
    keep, reset = sigmoid(xp, z[0, ...] + product[0, ...]), sigmoid(xp, z[1, ...] + product[1, ...])
    past = product[2, ...] + bias
    new = xp.tanh(z[2, ...] + reset * past)
    return new + keep * (h - new), xp.stack([keep, reset, new], axis=0), past


@lm.primitive
def gru_step_dx(xp: Any, dh: Any, gates: Any, past: Any, h: Any, transposed: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the gradients of h before the step, of z, and of ``past``."""
    keep, reset, new = gates[0, ...], gates[1, ...], gates[2, ...]
    dnew = dh * (1.0 - keep) * (1.0 - new * new)
    dkeep = dh * (h - new) * keep * (1.0 - keep)
    dreset = dnew * past * reset * (1.0 - reset)
    dpast = dnew * reset
    before = dh * keep + xp.sum(xp.stack([dkeep, dreset, dpast], axis=0) @ transposed, axis=0)
    return before, (dkeep, dreset, dnew, dpast)
