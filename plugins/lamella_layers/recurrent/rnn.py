"""The vanilla recurrent layer: a step is one activation.

N batch, U units, R the recurrent kernel (U, U), f the activation; z = x W + b and the states are (N, U):

    h_t = f(z + h_(t-1) R);   dz = f'(z + h_(t-1) R) dh_t;   dh_(t-1) = dz R^T
"""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella import registry
from lamella.arguments import choice
from lamella_layers.recurrent.recurrent import Recurrent, States

__all__ = ["RNN"]


class RNN(Recurrent):
    """The vanilla recurrent layer: ``h_t = f(x_t W + h_(t-1) R + b)``, trained by backpropagation through time.

    Arguments:
        units: the size of the state.
        activation: f: "tanh", "relu" or "sigmoid".
        return_sequences: whether to give h of every step, or of the last only, which is what Keras does unless told.
        return_state: whether to give the last h as a further output.
        reverse: go from the last step to the first. Outputs stay in the order of time, as in ONNX and PyTorch.
        truncate: cut the gradient between chunks of so many steps; None for the whole sequence. States are carried
            on from chunk to chunk in the forward pass.
        use_bias: whether to add ``b``.
        kernel_initializer: how ``W`` starts.
        recurrent_initializer: how ``R`` starts.
        bias_initializer: how ``b`` starts.

    Inputs: x; then, if sequences have different lengths, these as integers (N,); then, if it is not zero, the h to
    begin with (N, units). After the end of a sequence outputs are 0, and its last state is that of its own last step:
    with the length 0, the one that it begins with. A length of more than ``timesteps`` means all of them; an input
    with ``low=0, high=timesteps + 1`` refuses it.

    Shapes: (N, timesteps, features) -> (N, timesteps, units), or (N, units) without ``return_sequences``. Parameters:
    ``kernel`` (features, units), ``recurrent_kernel`` (units, units), ``bias`` (units,).

    Raises:
        ArgumentError: if ``activation`` is another, or ``units`` or ``truncate`` no positive int.
        GraphError: if the input is no sequence, or lengths or states don't fit.

    Source: https://onnx.ai/onnx/operators/onnx__RNN.html

    >>> import lamella as lm
    >>> model = lm.Sequential([RNN(4), RNN(3, return_sequences=False)], input_shape=("T", 2))
    >>> model.predict([[[0.0, 1.0], [1.0, 0.0]]]).shape
    (1, 3)
    """

    operator = "RNN"

    def __init__(
        self,
        units: int,
        *,
        activation: str = "tanh",
        return_sequences: bool = True,
        return_state: bool = False,
        reverse: bool = False,
        truncate: int | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
    ):
        super().__init__(
            units,
            return_sequences=return_sequences,
            return_state=return_state,
            reverse=reverse,
            truncate=truncate,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
        )
        self.activation = choice(activation, "activation", ("tanh", "relu", "sigmoid"))
        self.function: lm.ActivationFunction = registry.find("activations", activation)

    def onnx_attributes(self) -> dict[str, Any]:
        return {"activations": [self.activation.capitalize()]}

    def step(self, xp: Any, z: Any, states: States, kernel: Any, params: Any) -> tuple[States, tuple[Any, ...]]:
        # h_t = f(z + h_(t-1) R)
        h = self.function.forward(xp, z[0, ...] + states[0] @ kernel[0, ...])
        return (h,), (h,)

    def step_dx(self, xp: Any, d: States, kept: tuple[Any, ...], h: Any, transposed: Any) -> tuple[States, States]:
        # dz = f'(z + h_(t-1) R) dh_t; dh_(t-1) = dz R^T
        (y,) = kept
        dz = self.function.backward(xp, y, y, d[0])  # the slopes of these functions follow from y
        return (dz @ transposed[0, ...],), (dz,)
