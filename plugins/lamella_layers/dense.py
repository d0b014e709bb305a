"""The fully connected layer."""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.arguments import flag, initializer_argument, positive
from lamella.initializers import TruncatedNormal
from lamella.primitives import affine, affine_gradients
from lamella.testing import Specimen
from lamella_layers.activation import Activation

__all__ = ["Dense"]


class Dense(lm.Layer):
    """Every output is a weighted sum of all features: ``y = activation(x W + b)``.

    Arguments:
        units: how many outputs.
        use_bias: whether to add ``b``.
        activation: a registered name or an `ActivationFunction`, or None.
        kernel_initializer: how ``W`` starts: a registered name, a function or an object of `lamella.initializers`.
        bias_initializer: how ``b`` starts.

    Shapes: (N, ..., features) -> (N, ..., units). Parameters: ``kernel`` (features, units), ``bias`` (units,).

    Raises:
        GraphError: if the input has no feature axis beside the batch, or one of size 0 or of unknown size, or integers.

    Source: https://onnx.ai/onnx/operators/onnx__MatMul.html

    >>> import lamella as lm
    >>> model = lm.Sequential([Dense(3, activation="relu"), Dense(1)], input_shape=(2,))
    >>> {name: array.shape for name, array in model.parameters.items()}
    {'dense_1.kernel': (2, 3), 'dense_1.bias': (3,), 'dense_2.kernel': (3, 1), 'dense_2.bias': (1,)}
    """

    def __init__(
        self,
        units: int,
        *,
        use_bias: bool = True,
        activation: str | lm.ActivationFunction | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
    ):
        self.units = positive(units, "units")
        self.use_bias = flag(use_bias, "use_bias")
        self.activation = None if activation is None else Activation(activation)
        self.kernel_initializer = initializer_argument(kernel_initializer, "kernel_initializer")
        self.bias_initializer = initializer_argument(bias_initializer, "bias_initializer")

    def expand(self, x: lm.Node) -> Any:
        if self.activation is None:
            return None
        return self.activation(self.replace(activation=None).named("")(x), name="activation")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        features = x.shape[-1]
        if len(x.shape) < 2 or not isinstance(features, int) or not features or not x.is_float:
            raise lm.GraphError(
                f"expected floats (N, ..., features) with a known number of features, one or more, got {x}. Likely "
                "fix: Flatten() or Reshape((..., features)) before this layer, or x.astype('float32') for integers"
            )
        declare.features(
            -1,
            fix="Flatten() before it, or Conv2D(units, 1) for every pixel"
            if len(x.shape) == 4
            else "Flatten() before it, or Permute((2, 1)) for every step",
        )
        declare.parameter(
            "kernel", (features, self.units), self.kernel_initializer, fan_in=features, fan_out=self.units
        )
        if self.use_bias:
            declare.parameter("bias", (self.units,), self.bias_initializer, fan_in=features, fan_out=self.units)
        return x.replace(shape=(*x.shape[:-1], self.units))

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        return affine(ctx, x, ctx.params.kernel, ctx.params.bias if self.use_bias else None)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        wants_dx, weights = ctx.wants_dx[0], ctx.params.kernel
        if not ctx.trainable:
            return affine(ctx, dy, weights.T) if wants_dx else None
        (x,) = ctx.saved
        dx, kernel, bias = affine_gradients(
            ctx, x, weights, dy, use_bias=self.use_bias, wants_dx=wants_dx, out=ctx.out.kernel
        )
        if self.use_bias:
            ctx.grad(kernel=kernel, bias=bias)
        else:
            ctx.grad(kernel=kernel)
        return dx


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"dense": Dense}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    docs = "https://onnx.ai/onnx/operators/onnx__MatMul.html"
    x = lm.ArraySpec(("N", 5))
    return [
        Specimen(
            Dense(3),
            (x,),
            operators=("MatMul", "Add"),
            docs=docs,
            refuses=(
                ((lm.ArraySpec(("N",)),), "features"),
                ((lm.ArraySpec(("N", "T")),), "known number of features"),
                ((lm.ArraySpec(("N", 0)),), "a known number of features, one or more, got (N, 0)"),
                ((x.replace(dtype="int64", low=0, high=9),), "astype"),
            ),
        ),
        Specimen(Dense(1, use_bias=False), (x,), operators=("MatMul",), docs=docs),
        Specimen(Dense(4, activation="tanh"), (lm.ArraySpec(("N", 2, 3, 5)),), ("MatMul", "Add", "Tanh"), docs=docs),
        Specimen(
            Dense(4, bias_initializer=TruncatedNormal()), (lm.ArraySpec(("N", "T", 3)),), ("MatMul", "Add"), docs=docs
        ),
    ]
