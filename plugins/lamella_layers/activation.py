"""Activation functions, the layer that applies one, and the one with parameters.

Slopes at kinks follow PyTorch: at 0 that of relu is 0, of leaky_relu 0.2. Slopes are multiplied, not chosen with
``where``, which takes NumPy ten times as long on values of random sign.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import lamella as lm
from lamella import registry
from lamella.arguments import initializer_argument, positive
from lamella.errors import shown
from lamella.primitives import Primitive, erf, relu, relu_dx, sigmoid, softmax, softplus
from lamella.testing import Specimen

__all__ = ["Activation", "PReLU", "prelu"]

_SLOPE = 0.2  # of leaky_relu
_ALPHA, _SCALE = 1.6732632423543772, 1.0507009873554805  # of selu: zero mean and unit variance are a fixed point


class Activation(lm.Layer):
    """Applies an activation function: ``y = f(x)``.

    Arguments:
        function: a registered name, such as "relu" or "softmax", or an `ActivationFunction`.
        axis: for functions along an axis, such as softmax: which one, counted with the batch axis. Their own default
            is the last.

    Shapes: any floats -> the same.

    Raises:
        RegistryError: if no plugin gives the name.
        ArgumentError: if ``axis`` is no int, or given to an elementwise function.
        GraphError: if the function would run along the batch axis.

    Source: https://onnx.ai/onnx/operators/

    >>> import lamella as lm
    >>> lm.Sequential([Activation("relu")], input_shape=(3,)).predict([[-1.0, 0.0, 2.0]])
    array([[0., 0., 2.]], dtype=float32)
    """

    def __init__(self, function: str | lm.ActivationFunction, *, axis: int | None = None):
        self.function: lm.ActivationFunction = (
            registry.find("activations", function) if isinstance(function, str) else function
        )
        if not isinstance(self.function, lm.ActivationFunction):
            raise lm.ArgumentError(
                f"function: expected a registered name or an ActivationFunction, got {shown(function)}"
            )
        self.has_axis = _takes_axis(self.function)
        if axis is not None and not self.has_axis:
            raise lm.ArgumentError(f"axis={shown(axis)}: {function!r} is elementwise; leave axis out")
        if axis is not None and type(axis) is not int:
            raise lm.ArgumentError(f"axis: expected an int, got {shown(axis)}")
        self.axis = -1 if axis is None else axis
        self.options = {"axis": self.axis} if self.has_axis else {}
        self.gives_probabilities = self.function.probabilities

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        if not x.is_float:
            raise lm.GraphError(f"expected floats, got {x}; convert the data with x.astype('float32')")
        rank = len(x.shape)
        if self.has_axis and not (0 < self.axis < rank or -rank < self.axis < 0):
            raise lm.GraphError(
                f"expected axis={self.axis} to be one of the axes after the batch, got {x}; along the batch axis the "
                "samples would depend on each other"
            )
        along = self.has_axis and self.config()["axis"] is None
        declare.features(-1 if along else None, fix="the argument axis=1")
        if self.has_axis and self.function.probabilities and x.shape[self.axis] == 1:
            declare.warn(
                f"{self!r} runs along an axis of size 1, axis={self.axis} of {x}: it gives 1 whatever comes in, and "
                "nothing before it learns. Likely fix: 'sigmoid' for yes or no, or as many units as there are classes"
            )
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        y = self.function.forward(ctx.xp, x, **self.options)
        ctx.save(x if self.function.uses_x else None, y)
        return y

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        x, y = ctx.saved
        return self.function.backward(ctx.xp, x, y, dy, **self.options)


def _takes_axis(function: lm.ActivationFunction) -> bool:
    try:
        return "axis" in inspect.signature(function.forward).parameters
    except ValueError:  # some built-in functions have no signature that can be read
        return False


class PReLU(lm.Layer):
    """A rectifier whose slope below zero is learned: ``y = max(x, 0) + alpha min(x, 0)``.

    Arguments:
        shared_axes: axes along which one ``alpha`` serves all, counted with the batch axis, 0, which is always one of
            them. (2, 3) has one for each channel of images, as PyTorch does; None has one for each element of a sample,
            as Keras does.
        alpha_initializer: how ``alpha`` starts: "zeros" is relu.

    Shapes: (N, ...) floats -> the same. Parameters: ``alpha``, of the input's shape without the batch axis, with size 1
    for each shared axis.

    Raises:
        ArgumentError: if ``shared_axes`` are not different positive ints.
        GraphError: if the input has integers, fewer axes, or an axis of unknown size that is not shared.

    Source: He et al., https://arxiv.org/abs/1502.01852; https://onnx.ai/onnx/operators/onnx__PRelu.html

    >>> import lamella as lm
    >>> model = lm.Sequential([PReLU(shared_axes=(2, 3))], input_shape=(3, 8, 8))
    >>> model.parameters["prelu_1.alpha"].shape
    (3, 1, 1)
    """

    def __init__(self, *, shared_axes: int | tuple[int, ...] | None = None, alpha_initializer: Any = "zeros"):
        shared = () if shared_axes is None else shared_axes if isinstance(shared_axes, tuple) else (shared_axes,)
        self.shared_axes = tuple(positive(axis, "shared_axes") for axis in shared)
        if len(set(self.shared_axes)) < len(self.shared_axes):
            raise lm.ArgumentError(f"shared_axes: expected different axes, got {shared_axes!r}")
        self.alpha_initializer = initializer_argument(alpha_initializer, "alpha_initializer")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        alpha = [1 if axis in self.shared_axes else size for axis, size in enumerate(x.shape)][1:]
        known = [size for size in alpha if isinstance(size, int)]
        if not x.is_float or max(self.shared_axes, default=0) >= len(x.shape) or len(known) < len(alpha):
            raise lm.GraphError(
                f"expected floats with known sizes but along shared_axes={self.shared_axes}, got {x}. Likely fix: "
                "share axes of unknown size, such as time; x.astype('float32') for integers"
            )
        declare.features(None)
        declare.parameter("alpha", known, self.alpha_initializer)
        return x

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        return prelu(ctx, x, ctx.params.alpha)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        xp, (x,), alpha = ctx.xp, ctx.saved, ctx.params.alpha
        if ctx.trainable:
            slope = xp.sum(dy * xp.minimum(x, 0.0), axis=(0, *self.shared_axes), keepdims=True)
            ctx.grad(alpha=xp.reshape(slope, alpha.shape))
        positive_part = _positive(xp, x)
        return dy * (positive_part + (1.0 - positive_part) * alpha)


@lm.primitive
def prelu(xp: Any, x: Any, alpha: Any) -> Any:
    """x where positive, else alpha x; alpha has the shape of a sample, with 1 along some axes."""
    return relu(xp, x) + alpha * xp.minimum(x, 0.0)


@prelu.kernel("onnx")
def _(xp: Any, x: Any, alpha: Any) -> Any:
    if x.dtype != xp.float32:  # onnxruntime has it in float32 only
        return prelu.reference(xp, x, alpha)
    return xp.node("PRelu", x, alpha, shape=x.shape, dtype=x.dtype)


@lm.primitive
def leaky_relu(xp: Any, x: Any) -> Any:
    """``x`` where positive, else ``0.2 x``."""
    return xp.maximum(x, _SLOPE * x)


@lm.primitive
def elu(xp: Any, x: Any) -> Any:
    """``x`` where positive, else ``exp(x) - 1``; the greater of the two on either side."""
    return xp.maximum(x, xp.expm1(xp.minimum(x, 0.0)))


@lm.primitive
def selu(xp: Any, x: Any) -> Any:
    """``scale x`` where positive, else ``scale alpha (exp(x) - 1)``; keeps zero mean and unit variance."""
    return _SCALE * relu(xp, x) + (_SCALE * _ALPHA) * xp.expm1(xp.minimum(x, 0.0))


@lm.primitive
def gelu(xp: Any, x: Any) -> Any:
    """``x Phi(x)``, with the distribution function of the normal distribution, not its approximation by tanh."""
    return x * _normal(xp, x)


@lm.primitive
def hard_sigmoid(xp: Any, x: Any) -> Any:
    """``x / 6 + 1 / 2``, held between 0 and 1: a sigmoid of straight lines."""
    return xp.clip(x / 6.0 + 0.5, 0.0, 1.0)


@lm.primitive
def hard_silu(xp: Any, x: Any) -> Any:
    """``x hard_sigmoid(x)``."""
    return x * xp.clip(x / 6.0 + 0.5, 0.0, 1.0)


@lm.primitive
def mish(xp: Any, x: Any) -> Any:
    """``x tanh(softplus(x))``."""
    return x * xp.tanh(softplus(xp, x))


@lm.primitive
def softsign(xp: Any, x: Any) -> Any:
    """``x / (1 + |x|)``."""
    return x / (1.0 + xp.abs(x))


def linear(xp: Any, x: Any) -> Any:
    """``x`` itself."""
    return x


def relu6(xp: Any, x: Any) -> Any:
    """``x``, held between 0 and 6."""
    return xp.clip(x, 0.0, 6.0)


def silu(xp: Any, x: Any) -> Any:
    """``x sigmoid(x)``."""
    return x * sigmoid(xp, x)


def tanh(xp: Any, x: Any) -> Any:
    """``(exp(x) - exp(-x)) / (exp(x) + exp(-x))``."""
    return xp.tanh(x)


def _normal(xp: Any, x: Any) -> Any:
    """Phi(x) = (1 + erf(x / sqrt(2))) / 2."""
    return 0.5 + 0.5 * erf(xp, x * math.sqrt(0.5))


def _native(primitive: Primitive, operator: str, *, since: int = 1, is_stable: bool = True, **attributes: Any) -> None:
    """One ONNX operator; the formula in older opsets, in float64, for which onnxruntime has none, and for accuracy."""

    @primitive.kernel("onnx")
    def _(xp: Any, x: Any) -> Any:
        if xp.opset < since or x.dtype != xp.float32 or (xp.stable and not is_stable):
            return primitive.reference(xp, x)
        return xp.node(operator, x, shape=x.shape, dtype=x.dtype, **attributes)


_native(leaky_relu, "LeakyRelu", alpha=_SLOPE)
_native(elu, "Elu", is_stable=False, alpha=1.0)  # exp(x) - 1, of which little is left near 0
_native(selu, "Selu", is_stable=False, alpha=_ALPHA, gamma=_SCALE)
_native(gelu, "Gelu", since=20, approximate="none")
_native(hard_sigmoid, "HardSigmoid", alpha=1.0 / 6.0, beta=0.5)
_native(hard_silu, "HardSwish")
_native(mish, "Mish")
_native(softsign, "Softsign")


def _positive(xp: Any, x: Any) -> Any:
    """[x > 0]: 1 where x is above zero, else 0."""
    return xp.astype(x > 0.0, x.dtype)


def _softmax_dx(xp: Any, x: Any, y: Any, dy: Any, *, axis: int = -1) -> Any:
    """dx_i = sum_j dy_j y_j ([i = j] - y_i) = y_i (dy_i - sum_j dy_j y_j)."""
    return y * (dy - xp.sum(dy * y, axis=axis, keepdims=True))


def _selu_dx(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    above = _positive(xp, x)
    return dy * (_SCALE * above + (_SCALE * _ALPHA) * (1.0 - above) * xp.exp(xp.minimum(x, 0.0)))


def _gelu_dx(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    density = math.sqrt(0.5 / math.pi) * xp.exp(-0.5 * x * x)
    return dy * (_normal(xp, x) + x * density)


def _silu_dx(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    s = sigmoid(xp, x)
    return dy * s * (1.0 + x * (1.0 - s))


def _between(xp: Any, y: Any, low: float, high: float) -> Any:
    """[low < y < high]."""
    return xp.astype(y > low, y.dtype) * xp.astype(y < high, y.dtype)


def _hard_silu_dx(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    s = xp.clip(x / 6.0 + 0.5, 0.0, 1.0)
    return dy * (s + x / 6.0 * _between(xp, s, 0.0, 1.0))


def _mish_dx(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    t = xp.tanh(softplus(xp, x))
    return dy * (t + x * (1.0 - t * t) * sigmoid(xp, x))


def _softsign_dx(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    share = 1.0 / (1.0 + xp.abs(x))
    return dy * share * share


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"activation": Activation, "prelu": PReLU}


@lm.hookimpl
def lamella_activations() -> dict[str, lm.ActivationFunction]:
    f = lm.ActivationFunction
    swish, hard_swish = f(silu, _silu_dx), f(hard_silu, _hard_silu_dx)
    return {
        "elu": f(elu, lambda xp, x, y, dy: dy * xp.exp(xp.minimum(x, 0.0))),  # exp(0) = 1 where x is positive
        "gelu": f(gelu, _gelu_dx),
        "hard_sigmoid": f(
            hard_sigmoid, lambda xp, x, y, dy: dy * _between(xp, y, 0.0, 1.0) / 6.0, probabilities=True, uses_x=False
        ),
        "hard_silu": hard_swish,
        "leaky_relu": f(leaky_relu, lambda xp, x, y, dy: dy * xp.maximum(_positive(xp, x), _SLOPE)),
        "linear": f(linear, lambda xp, x, y, dy: dy, uses_x=False),
        "mish": f(mish, _mish_dx),
        "relu": f(relu, relu_dx, uses_x=False),
        "relu6": f(relu6, lambda xp, x, y, dy: dy * _between(xp, y, 0.0, 6.0), uses_x=False),
        "selu": f(selu, _selu_dx),
        "sigmoid": f(sigmoid, lambda xp, x, y, dy: dy * (y * (1.0 - y)), probabilities=True, uses_x=False),
        "silu": swish,
        "softmax": f(softmax, _softmax_dx, probabilities=True, uses_x=False),
        "softsign": f(softsign, _softsign_dx),
        "softplus": f(softplus, lambda xp, x, y, dy: dy * sigmoid(xp, x)),
        "tanh": f(tanh, lambda xp, x, y, dy: dy * (1.0 - y * y), uses_x=False),
        "hard_swish": hard_swish,
        "swish": swish,
    }


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    operators = {
        "elu": ("Elu",),
        "gelu": ("Gelu",),
        "hard_sigmoid": ("HardSigmoid",),
        "hard_silu": ("HardSwish",),
        "leaky_relu": ("LeakyRelu",),
        "linear": (),
        "mish": ("Mish",),
        "relu": ("Relu",),
        "relu6": ("Clip",),
        "selu": ("Selu",),
        "sigmoid": ("Sigmoid",),
        "silu": ("Sigmoid", "Mul"),
        "softmax": ("Softmax",),
        "softplus": ("Softplus",),
        "softsign": ("Softsign",),
        "tanh": ("Tanh",),
    }
    docs = "https://onnx.ai/onnx/operators/"
    row, image = lm.ArraySpec(("N", 7)), lm.ArraySpec(("N", 3, 4, 5))
    labels = ((row.replace(dtype="int64", low=0, high=9),), "expected floats")
    along_batch = ((lm.ArraySpec(("N",)),), "along the batch axis")
    activations = [
        Specimen(
            Activation(function, axis=axis),
            (x,),
            operators[function],
            docs=docs + (f"onnx__{operators[function][0]}.html" if operators[function] else ""),
            refuses=(labels, along_batch) if function == "softmax" else (labels,),
        )
        for function, x, axis in [
            *((name, row, None) for name in operators),
            ("relu", image, None),
            ("softmax", image, 1),
        ]
    ]
    slope, series = docs + "onnx__PRelu.html", lm.ArraySpec(("N", "T", 3))
    return [
        *activations,
        Specimen(PReLU(), (row,), ("PRelu",), docs=slope, refuses=(labels, ((series,), "known sizes"))),
        Specimen(
            PReLU(shared_axes=(2, 3)), (image,), ("PRelu",), docs=slope, refuses=(((row,), "shared_axes=(2, 3)"),)
        ),
        Specimen(PReLU(shared_axes=1, alpha_initializer="ones"), (series,), ("PRelu",), docs=slope),
        Specimen(PReLU(), (lm.ArraySpec(("N",)),), ("PRelu",), docs=slope),
    ]
