"""What authors of plugins write, held against mypy and pyright by `test_types.py`."""

from __future__ import annotations

import math
from collections.abc import Generator
from types import MappingProxyType
from typing import Any, assert_type

import numpy as np

import lamella as lm

Totals = Generator[tuple[Any, ...], tuple[Any, ...], Any]


class Scale(lm.Layer):
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        return x * self.factor

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        return dy * self.factor


class Gain(lm.Layer):
    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        declare.parameter("gain", (x.shape[-1],), "ones", fan_in=x.shape[-1])
        declare.state("seen", (), "zeros")
        return x.replace(low=None, high=None)

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        if ctx.training:
            ctx.update(seen=ctx.state.seen + 1.0)
        return x * ctx.params.gain

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        (x,) = ctx.saved
        ctx.grad(gain=ctx.xp.sum(x * dy, axis=0))
        return dy * ctx.params.gain if ctx.wants_dx[0] else None


class Difference(lm.Layer):
    def build(self, declare: lm.Declare, a: lm.ArraySpec, b: lm.ArraySpec) -> lm.ArraySpec:
        if a.shape != b.shape:
            raise lm.GraphError(f"expected equal shapes, got {a} and {b}")
        return a

    def forward_pass(self, ctx: lm.Context, a: Any, b: Any) -> Any:
        return a - b

    def backward_pass(self, ctx: lm.Context, dy: Any) -> tuple[Any, Any]:
        return dy, -dy


class Total(lm.Layer):
    def build(self, declare: lm.Declare, *inputs: lm.ArraySpec) -> lm.ArraySpec:
        return inputs[0]

    def forward_pass(self, ctx: lm.Context, *inputs: Any) -> Any:
        ctx.save(len(inputs))
        return sum(inputs)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> tuple[Any, ...]:
        (count,) = ctx.saved
        return (dy,) * int(count)


class Masked(lm.Layer):
    """An input that need not be there, and names of one's own."""

    def build(self, arrays: lm.Declare, x: lm.ArraySpec, mask: lm.ArraySpec | None = None) -> lm.ArraySpec:
        return x

    def forward_pass(self, context: lm.Context, x: Any, mask: Any = None) -> Any:
        context.save(mask)
        return x if mask is None else context.xp.where(mask, x, 0.0)

    def backward_pass(self, context: lm.Context, dy: Any) -> Any:
        (mask,) = context.saved
        return dy if mask is None else (context.xp.where(mask, dy, 0.0), None)


class Halves(lm.Layer):
    """Two outputs."""

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> tuple[lm.ArraySpec, lm.ArraySpec]:
        return x, x

    def forward_pass(self, ctx: lm.Context, x: Any) -> tuple[Any, Any]:
        return 0.5 * x, 0.5 * x

    def backward_pass(self, ctx: lm.Context, da: Any, db: Any) -> Any:
        return 0.5 * (da + db)


class Centered(lm.Layer):
    """Sums over the whole batch."""

    def forward_pass(self, ctx: lm.Context, x: Any) -> Totals:
        total, count = yield ctx.xp.sum(x, axis=0), x.shape[0]
        return x - total / count

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Totals:
        total, count = yield ctx.xp.sum(dy, axis=0), dy.shape[0]
        return dy - total / count


class Twice(lm.Layer):
    """Made of other layers."""

    def __init__(self, layer: lm.Layer) -> None:
        self.layer = layer

    def expand(self, x: lm.Node) -> lm.Node:
        return self.layer.named("second")(self.layer.named("first")(x))


class Both(lm.Layer):
    def expand(self, x: lm.Node) -> tuple[lm.Node, lm.Node]:
        return Gain()(x), Scale(2.0)(x)


def nodes(x: lm.Node) -> None:
    """A layer with a single output gives a node; what several outputs give, its author knows."""
    assert_type(Scale(2.0)(x), lm.Node)
    assert_type(Gain()(x), lm.Node)
    assert_type(Difference()(x, x), lm.Node)
    assert_type(Total()(x, x, x), lm.Node)
    assert_type(Masked()(x), lm.Node)
    assert_type(Centered()(x), lm.Node)
    assert_type(Twice(Gain())(x), lm.Node)
    a, b = Halves()(x)
    c, d = Both()(x)
    lm.Model(x, [a, b, c, d])


class Quartic(lm.losses.Loss):
    on_logits = False

    def prepare(self, prediction: lm.ArraySpec, target: Any) -> np.ndarray:
        return lm.losses.value_targets("quartic", prediction, target)

    def forward(self, ctx: lm.Context, prediction: Any, target: Any) -> Any:
        r = prediction - target
        ctx.save(r)
        return ctx.xp.mean(r * r * r * r, axis=1)

    def backward(self, ctx: lm.Context, d: Any) -> Any:
        (r,) = ctx.saved
        return 4.0 * r * r * r * d[:, None] / r.shape[1]


class Momentum(lm.optimizers.Optimizer):
    slots = MappingProxyType({"v": 0.0})

    def __init__(self, learning_rate: float | lm.schedules.Schedule = 0.01, momentum: float = 0.9) -> None:
        self.learning_rate = learning_rate
        self.momentum = momentum

    def update(self, xp: Any, p: Any, g: Any, slots: dict[str, Any], lr: Any, t: Any) -> tuple[Any, dict[str, Any]]:
        v = self.momentum * slots["v"] + g
        return p - lr * v, {"v": v}


class InverseRoot(lm.schedules.Schedule):
    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def at(self, step: int) -> float:
        return self.learning_rate / math.sqrt(step)


class Bias(lm.metrics.Metric):
    def per_sample(self, prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.asarray(np.mean(prediction - target, axis=1))


class Around(lm.regularization.Penalty):
    def __init__(self, center: float) -> None:
        self.center = center

    def value(self, xp: Any, p: Any) -> Any:
        return xp.sum((p - self.center) * (p - self.center))

    def gradient(self, xp: Any, p: Any) -> Any:
        return 2.0 * (p - self.center)


@lm.primitive
def cube(xp: Any, x: Any) -> Any:
    return x * x * x


@cube.kernel("numpy")
def cube_of_numpy(xp: Any, x: Any) -> Any:
    return x**3


def square(xp: Any, x: Any) -> Any:
    return x * x


def square_dx(xp: Any, x: Any, y: Any, dy: Any) -> Any:
    return 2.0 * x * dy


SQUARE = lm.ActivationFunction(square, square_dx)


def hooks() -> None:
    """What a plugin gives, and how it is examined."""

    @lm.hookimpl
    def lamella_layers() -> dict[str, type[lm.Layer]]:
        return {"scale": Scale, "gain": Gain}

    @lm.hookimpl
    def lamella_specimens() -> list[lm.testing.Specimen]:
        return [lm.testing.Specimen(Scale(2.0), (lm.ArraySpec(("N", 5)),), ("Mul",), docs="https://example.com")]

    @lm.register("scale_of_a_script")
    class Named(Scale):
        pass

    assert_type(Named(2.0), Named)
    assert_type(lm.testing.check_layer(Named(2.0), lm.ArraySpec(("N", 5))).conforms, bool)
    print(lamella_layers(), lamella_specimens())
