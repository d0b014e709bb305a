"""The kit that tells authors what is wrong: each planted fault is caught by its law, with its cause in words."""

import collections
import importlib.metadata
import io
import json
import re
import threading
import types

import numpy as np
import pytest

import lamella as lm
from lamella import registry
from lamella.terminal import Terminal
from lamella.testing import ConformanceError, Specimen, check_layer, check_specimen
from lamella.testing.laws import laws
from lamella_layers import (
    LSTM,
    Activation,
    BatchNormalization,
    Bidirectional,
    Conv2D,
    Dense,
    Embedding,
    GlobalAveragePooling1D,
    GroupNormalization,
    LayerNormalization,
    Maximum,
    MultiHeadAttention,
    RMSNormalization,
    ScaledDotProductAttention,
)

BOX = {}  # what faulty layers keep where they should not
CALLS = []


class Affine(lm.Layer):
    """y = x * scale + shift over the last axis, right unless a fault is named."""

    last = None
    calls = 0

    def __init__(self, fault=""):
        self.fault = fault
        self.stack = []

    def build(self, declare, x):
        declare.parameter("scale", x.shape[1:], "ones")
        declare.parameter("shift", x.shape[1:], "zeros")
        if self.fault in (
            "statistics updated in inference",
            "update from a slice",
            "state never used",
            "state written in place",
        ):
            declare.state("mean", x.shape[1:], "zeros")
        return x

    def forward_pass(self, ctx, x):
        xp, fault = ctx.xp, self.fault
        scale, shift = ctx.params.scale, ctx.params.shift
        if fault == "input modified":
            x *= 1.0
            x += 1e-3
        if fault == "input modified through a view" and xp.backend == "numpy":
            flat = xp.reshape(x, (-1,))
            flat += 1e-3
        if fault == "input modified in inference" and not ctx.training and xp.backend == "numpy":
            x += 1e-3
        if fault == "input modified in training" and ctx.training and xp.backend == "numpy":
            x -= 1.0
        if fault == "no gradient of a tiny output":
            return 1e-7 * (x * scale + shift)
        if fault == "gradient hidden by an offset":
            ctx.save(x)
            return x * scale + shift + 1e8
        if fault == "gradient without its upper limit":
            x = xp.minimum(x, 6.0)
        if fault == "keeps state on the side":
            CALLS.append(1)
            shift = shift + 1e-3 * len(CALLS)
        if fault == "nondeterminism":
            shift = shift + 1e-3 * np.random.default_rng().random()
        if fault == "global random state":
            np.random.seed(0)  # noqa: NPY002  the fault; seeded, it gives the same numbers each time
            shift = shift + 1e-3 * np.random.random()  # noqa: NPY002
        if fault == "state written in place":
            state = ctx.state.mean
            state += 1.0
        if fault == "saves nothing":
            return x * scale + shift
        if fault == "state on the layer":
            self.calls = 1
        if fault == "a counter on the class":
            type(self).calls += 1
        if fault == "statistics in a closure, updated in inference" and not ctx.training:
            BOX["mean"] = BOX.get("mean", 0.0) + 1e-3
            shift = shift + BOX["mean"]
        if fault == "statistics updated in inference":
            ctx.update(mean=ctx.state.mean + 1.0)
        if fault == "dropout in inference":
            x = x * xp.astype(ctx.uniform(x.shape) > 0.5, ctx.dtype)
        if fault == "dropout of its own in inference" and not ctx.training:
            shift = shift + 1e-3 * np.random.default_rng().random()
        if fault == "order of slices":
            first, _, end = ctx.rows.partition(":")
            if first == "0":
                BOX["begun"] = int(end) < 9
            shift = shift + (0.0 if first == "0" or BOX["begun"] else 1e-3)
        if fault == "place in the batch" and ctx.xp.backend == "numpy":
            shift = shift + 1e-3 * int(ctx.rows.partition(":")[0])
        if fault == "batch size frozen":
            x = xp.reshape(x, (BOX.setdefault("rows", x.shape[0]), *x.shape[1:]))
        if fault == "parameter never used":
            scale = xp.ones_like(scale)
        if fault == "saved in a stack on the layer":
            self.stack.append(x)
        if fault == "saved in a class attribute":
            type(self).last = x
        if fault == "saved by shape":
            BOX[x.shape] = x
        if fault == "not safe in threads":
            mine = BOX["x"] = x
            threading.Event().wait(0.02 if threading.current_thread() is not threading.main_thread() else 0.0)
            x = BOX["x"] if BOX["x"].shape == mine.shape else mine
        if fault == "later calls change results":
            out = BOX.setdefault((x.shape, x.dtype), np.empty_like(x))
            out[...] = x * scale + shift
            ctx.save(x)
            return out
        if fault == "float64 creeps in":
            scale = scale * np.float64(1.0)
        if fault == "numpy behind the back" and xp.backend == "strict":
            x = np.asarray(x)
        if fault == "method of arrays":
            ctx.save(x)
            return (x * scale + shift).reshape(x.shape)
        if fault == "samples mix":
            x = x - xp.mean(x, axis=0, keepdims=True)
        if fault == "samples mix in large batches" and xp.backend == "numpy" and x.shape[0] > 9:
            x = x - xp.mean(x, axis=0, keepdims=True)
        if fault == "wrong gradient in large batches" and xp.backend == "numpy" and x.shape[0] > 64:
            ctx.save(2.0 * x)
            return x * scale + shift
        if fault == "samples mix while frozen" and ctx.training and not ctx.trainable:
            x = x - xp.mean(x, axis=0, keepdims=True)
        if fault == "samples mix in inference" and not ctx.training:
            x = x - xp.mean(x, axis=0, keepdims=True)
        if fault == "divides by rows of the slice":
            ctx.save(x)
            return (x * scale + shift) / x.shape[0]
        if fault == "update from a slice" and ctx.training:
            ctx.update(mean=xp.sum(x, axis=0))
        if fault == "cancellation":
            x = (x + 1e3) - 1e3
        if fault == "cancellation in inference" and not ctx.training:
            x = (x + 1e3) - 1e3
        if fault == "overflow":
            x = xp.log(xp.exp(x))
        if fault == "branch on values" and xp.sum(x) > 1e9:
            return x
        if fault == "batch size in the trace":
            x = x * (1.0 + 0.0 * int(x.shape[0]))
        ctx.save(x)
        return x * scale + shift

    def backward_pass(self, ctx, dy):
        xp, fault = ctx.xp, self.fault
        if fault == "no number at zero":
            dy = dy * ctx.saved[0] / ctx.saved[0]
        if fault == "no gradient of a tiny output":
            ctx.grad(scale=0.0 * dy[0], shift=0.0 * dy[0])
            return 0.0 * dy
        (x,) = ctx.saved
        if fault == "saved in a stack on the layer":
            x = self.stack.pop()
        if fault == "saved in a class attribute":
            x = self.last
        if fault == "saved by shape":
            x = BOX[x.shape]
        if fault in ("no gradient of a parameter", "parameter never used"):
            ctx.grad(shift=xp.sum(dy, axis=0), **({} if fault.startswith("no") else {"scale": 0.0 * ctx.params.scale}))
            return dy * ctx.params.scale
        scale = xp.sum(dy * x, axis=0)
        shift = xp.sum(dy, axis=0)
        dx = dy * ctx.params.scale
        if fault == "gradient limited":
            dx = xp.clip(dx, -5.0, 5.0)
        if fault == "a little more gradient":
            shift = shift + 1e-9
        if fault == "wrong for values above 8":
            dx = xp.where(xp.abs(x) > 8.0, 2.0 * dx, dx)
        if fault == "gradient of a parameter":
            scale = 1.001 * scale
        if fault == "gradient nearly right":
            scale = 1.0004 * scale
        if fault == "float64 creeps back" and xp.backend == "numpy":
            scale = scale * np.float64(1.0)
        if fault == "float64 in dx":
            dx = np.float64(1.0) * dx
        if fault == "averaged over the batch":
            shift = shift / float(dy.shape[0])
        if fault == "gradient of the input":
            dx = dy
        if fault == "multiplied by the batch size":
            shift = shift * float(dy.shape[0])
        if fault == "cancellation in the gradient":
            dx = (dx + 1e3) - 1e3
        if fault == "cancellation in the gradient of a parameter":
            scale = (scale + 1e3) - 1e3
        if fault == "wrong sign":
            dx = -dx
        if fault == "swapped":
            scale, shift = shift, scale
        if fault == "last row only":
            shift = dy[-1, :]
        if fault == "wrong unless contiguous" and getattr(x, "flags", None) is not None and not x.flags.c_contiguous:
            scale = 2.0 * scale
        if fault == "wrong if contiguous" and getattr(x, "flags", None) is not None and x.flags.c_contiguous:
            scale = 2.0 * scale
        if fault == "wrong if permuted" and getattr(x, "flags", None) is not None and x.flags.f_contiguous:
            scale = 2.0 * scale if x.size > 1 and not x.flags.c_contiguous else scale
        if fault == "wrong if broadcast" and xp.backend == "numpy" and 0 in dy.strides:
            shift = 2.0 * shift
        if fault == "inaccurate if contiguous" and dx.dtype == xp.float32 and xp.backend == "numpy":
            dx = 1.0005 * dx if x.flags.c_contiguous else dx
        if fault == "wrong for many rows" and xp.backend == "numpy" and dy.shape[0] >= 8:
            dx = 2.0 * dx
        if fault == "wrong while frozen" and not ctx.trainable:
            dx = dy
        if fault == "gradient hidden by an offset":
            dx = 0.9 * dx
        if fault == "wrong without wants_dx" and not ctx.wants_dx[0]:
            shift = 0.0 * shift
        if fault == "incoming gradient modified" and ctx.xp.backend == "numpy":
            dy *= 2.0
        if fault == "wrong for large values":
            dx = xp.where(xp.abs(x) > 100.0, 2.0 * dx, dx)
        if fault == "wrong in training" and ctx.training:
            dx = 0.5 * dx
        if fault == "traced backward differs" and ctx.xp.backend == "onnx":
            dx = 1.5 * dx
        if fault == "operator of ONNX misspelt on the way back" and xp.backend == "onnx":
            dx = xp.node("Idenity", dx, shape=dx.shape, dtype=dx.dtype)
        if fault == "divides by rows of the slice":
            n = dy.shape[0]
            scale, shift, dx = scale / n, shift / n, dx / n
        if fault == "samples mix" or (fault == "samples mix while frozen" and ctx.training and not ctx.trainable):
            dx = dx - xp.mean(dx, axis=0, keepdims=True)
        ctx.grad(scale=scale, shift=shift)
        return dx


class Standardize(lm.Layer):
    """Subtracts a running mean and divides by a running deviation, in inference and while frozen."""

    def __init__(self, fault):
        self.fault = fault

    def build(self, declare, x):
        declare.state("mean", x.shape[1:], "zeros")
        declare.state("variance", x.shape[1:], "ones")
        return x

    def forward_pass(self, ctx, x):
        xp, state = ctx.xp, ctx.state
        if not (ctx.training and ctx.trainable):
            if self.fault == "ONNX without the variance" and xp.backend == "onnx":
                return x - state.mean
            return (x - state.mean) / xp.sqrt(state.variance)
        n, total, squares = yield x.shape[0], xp.sum(x, axis=0), xp.sum(x * x, axis=0)
        ctx.update(mean=0.9 * state.mean + 0.1 * total / n, variance=0.9 * state.variance + 0.1 * squares / n)
        return 2.0 * x

    def backward_pass(self, ctx, dy):
        if ctx.training and ctx.trainable:
            return 2.0 * dy
        return dy / (
            ctx.state.variance if self.fault == "variance without its root" else ctx.xp.sqrt(ctx.state.variance)
        )


class Times(lm.Layer):
    """y = a * b, wrong for one of the inputs."""

    def __init__(self, fault):
        self.fault = fault

    def build(self, declare, a, b):
        return a

    def forward_pass(self, ctx, a, b):
        ctx.save(a, b)
        return a * b

    def backward_pass(self, ctx, dy):
        a, b = ctx.saved
        if self.fault == "asks for input 0 only":
            return (dy * b, dy * a) if ctx.wants_dx[0] else (None, None)
        if self.fault == "asks for input 1 only":
            return (dy * b, dy * a) if ctx.wants_dx[1] else (None, None)
        return dy * b, (2.0 if self.fault == "second of two inputs" else 1.0) * dy * a


class Product(lm.Layer):
    """y = a * b * c, with one choice of gradients forgotten."""

    def forward_pass(self, ctx, a, b, c):
        ctx.save(a, b, c)
        return a * b * c

    def build(self, declare, a, b, c):
        return a

    def backward_pass(self, ctx, dy):
        a, b, c = ctx.saved
        if ctx.wants_dx == (True, False, True):
            return dy * b * c, None, 0.0 * c
        return dy * b * c, dy * a * c, dy * a * b


class Greatest(lm.Layer):
    """The greatest number of each row; several equal ones share the gradient, or each gets all of it."""

    def __init__(self, fault=""):
        self.fault = fault

    def build(self, declare, x):
        return x.replace(shape=("N",))

    def forward_pass(self, ctx, x):
        y = ctx.xp.max(x, axis=1)
        ctx.save(ctx.xp.astype(x == ctx.xp.expand_dims(y, axis=1), ctx.dtype))
        return y

    def backward_pass(self, ctx, dy):
        xp, (mask,) = ctx.xp, ctx.saved
        share = mask if self.fault else mask / xp.sum(mask, axis=1, keepdims=True)
        return xp.expand_dims(dy, axis=1) * share


class Maxout(lm.Layer):
    """The greatest of several linear pieces for each unit. All are equal at inputs of zeros while the bias is 0."""

    def __init__(self, share):
        self.share = share

    def build(self, declare, x):
        declare.parameter("kernel", (x.shape[1], 6), "glorot_uniform")
        declare.parameter("bias", (2, 3), "zeros")
        return x.replace(shape=("N", 2))

    def forward_pass(self, ctx, x):
        z = ctx.xp.reshape(x @ ctx.params.kernel, (x.shape[0], 2, 3)) + ctx.params.bias
        ctx.save(x, z)
        return ctx.xp.max(z, axis=2)

    def backward_pass(self, ctx, dy):
        xp, (x, z) = ctx.xp, ctx.saved
        mask = xp.astype(z == xp.max(z, axis=2, keepdims=True), ctx.dtype)
        count = xp.sum(mask, axis=2, keepdims=True)
        if self.share == "first":
            first = xp.expand_dims(xp.argmax(z, axis=2), axis=2)
            mask = xp.astype(xp.reshape(xp.asarray([0, 1, 2]), (1, 1, 3)) == first, ctx.dtype)
        elif self.share == "equal":
            mask = mask / count
        elif self.share == "half, of three too":
            mask = mask / xp.minimum(count, 2.0 * xp.ones_like(count))
        d = xp.expand_dims(dy, axis=2) * mask
        ctx.grad(bias=xp.sum(d, axis=0))
        flat = xp.reshape(d, (x.shape[0], 6))
        ctx.grad(kernel=x.T @ flat)
        return flat @ ctx.params.kernel.T


class Curve(lm.Layer):
    """Functions of all numbers of a row, wrong where few look."""

    def __init__(self, fault):
        self.fault = fault

    def forward_pass(self, ctx, x):
        xp = ctx.xp
        if self.fault == "squares before the mean is off":
            mean = xp.mean(x, axis=-1, keepdims=True)
            size = 1.0 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) - mean * mean + 1e-3)
            ctx.save((x - mean) * size, size)
            return (x - mean) * size
        if self.fault == "no slope at zero":
            s = lm.primitives.sigmoid(ctx, x)
            ctx.save(x, s)
            return x * s
        if self.fault == "the map itself on the way back":
            return xp.concat([x[..., 1:], 0.0 * x[..., :1]], axis=-1)
        if self.fault == "the first call's mean" and xp.backend == "numpy":
            x = x - BOX.setdefault(id(self), float(np.mean(x)))
        if self.fault == "a scratch array that threads share" and xp.backend == "numpy":
            return np.multiply(x, 2.0, out=BOX.setdefault((x.shape, x.dtype), np.empty_like(x))) + 0.0
        ctx.save(y := 2.0 * x)
        return y

    def backward_pass(self, ctx, dy):
        xp, mean = ctx.xp, lambda a: ctx.xp.mean(a, axis=-1, keepdims=True)
        if self.fault == "squares before the mean is off":
            y, size = ctx.saved
            return size * (dy - mean(dy) - y * mean(dy * y))
        if self.fault == "no slope at zero":
            x, s = ctx.saved
            return xp.where(x == 0.0, 0.0 * dy, dy * (s + x * s * (1.0 - s)))
        if self.fault == "the map itself on the way back":
            return xp.concat([dy[..., 1:], 0.0 * dy[..., :1]], axis=-1)
        if self.fault == "output overwritten" and xp.backend == "numpy":
            ctx.saved[0][...] = 0.0
        return 2.0 * dy


class Divides(lm.Layer):
    """Functions with a divisor that may be 0, or underflows, as authors write them; ``slopes`` are their gradients."""

    def __init__(self, fault):
        self.fault = fault

    def build(self, declare, x, *others):
        return x.replace(shape=("N",)) if others else x.replace(low=None, high=None)

    def forward_pass(self, ctx, x, *others):
        ctx.save(x, *others)
        return DIVISIONS[self.fault][0](ctx.xp, x, *others)

    def backward_pass(self, ctx, dy):
        return DIVISIONS[self.fault][1](ctx.xp, dy, *ctx.saved)


def add(xp, x):
    return xp.sum(x, axis=-1, keepdims=True)


def norm(xp, x):
    return xp.sqrt(add(xp, x * x))


def deviation(xp, x):
    return xp.sqrt(xp.mean(centered(xp, x) ** 2, axis=-1, keepdims=True))


def centered(xp, x):
    return x - xp.mean(x, axis=-1, keepdims=True)


def squash_dx(xp, dy, x):
    n = norm(xp, x)
    return n / (1.0 + n * n) * dy + x / n * (1.0 - n * n) / (1.0 + n * n) ** 2 * add(xp, x * dy)


def standardized_dx(xp, dy, x):
    y = centered(xp, x) / deviation(xp, x)
    return (centered(xp, dy) - y * xp.mean(dy * y, axis=-1, keepdims=True)) / deviation(xp, x)


def cosine(xp, a, b):
    return (add(xp, a * b) / (norm(xp, a) * norm(xp, b)))[:, 0]


def cosine_dx(xp, dy, a, b):
    dy, c, m, n = dy[:, None], cosine(xp, a, b)[:, None], norm(xp, a), norm(xp, b)
    return dy * (b / (m * n) - c * a / m**2), dy * (a / (m * n) - c * b / n**2)


def distance_dx(xp, dy, a, b):
    d = dy[:, None] * (a - b) / norm(xp, a - b)
    return d, -d


DIVISIONS = {
    "squash": (lambda xp, x: norm(xp, x) ** 2 / (1.0 + norm(xp, x) ** 2) * x / norm(xp, x), squash_dx),
    "x over its norm": (
        lambda xp, x: x / norm(xp, x),
        lambda xp, dy, x: dy / norm(xp, x) - x * add(xp, x * dy) / norm(xp, x) ** 3,
    ),
    "x over |x|": (lambda xp, x: x / xp.abs(x), lambda xp, dy, x: 0.0 * dy),
    "deviation without epsilon": (lambda xp, x: centered(xp, x) / deviation(xp, x), standardized_dx),
    "cosine of zero vectors": (cosine, cosine_dx),
    "one over x": (lambda xp, x: 1.0 / x, lambda xp, dy, x: -dy / (x * x)),
    "x * x / x": (lambda xp, x: x * x / x, lambda xp, dy, x: dy),
    "x over its sum": (
        lambda xp, x: x / (add(xp, x) + 1e-9 * xp.astype(add(xp, xp.abs(x)) == 0.0, x.dtype)),
        lambda xp, dy, x: dy / add(xp, x) - add(xp, dy * x) / add(xp, x) ** 2,
    ),
    "distance of equal inputs": (lambda xp, a, b: norm(xp, a - b)[:, 0], distance_dx),
    "an epsilon that float32 takes for 0": (
        lambda xp, x: x * x / (x * x + 1e-60),
        lambda xp, dy, x: 2.0 * x * 1e-60 / (x * x + 1e-60) ** 2 * dy,
    ),
    "the log of the lowest value": (lambda xp, x: xp.log(x), lambda xp, dy, x: dy / x),
}
LOWEST = lm.ArraySpec(("N", 4), low=0.0, high=9.0)


class Keeper(lm.Layer):
    """y = x * x, which changes what it has saved where a fault says so."""

    def __init__(self, fault=""):
        self.fault = fault

    def forward_pass(self, ctx, x):
        y, kept = x * x, 2.0 * x
        ctx.save(x, kept)
        if self.fault == "saved array changed in forward_pass":
            kept += 1.0
        return y

    def backward_pass(self, ctx, dy):
        _, kept = ctx.saved
        if self.fault == "saved array changed in backward_pass":
            kept *= dy
            return kept
        return dy * kept


class Doubler(lm.Layer):
    """Doubles its input in place."""

    def forward_pass(self, ctx, x):
        x *= 2.0
        return x

    def backward_pass(self, ctx, dy):
        return 2.0 * dy


class Careless(lm.Layer):
    """A layer whose output is changed by the one after it."""

    def expand(self, x):
        return Doubler()(Activation("sigmoid")(x))


class Two(lm.Layer):
    """A large output and a small one, whose gradient is forgotten."""

    def build(self, declare, x):
        return x, x

    def forward_pass(self, ctx, x):
        return 1e8 * x, ctx.xp.sin(x)

    def backward_pass(self, ctx, dy, small):
        return 1e8 * dy


class Share(lm.Layer):
    """Hands over the total where its share is due, and has a parameter of the same name as the layer after it."""

    def expand(self, x):
        return Affine()(Center("total where the share is due")(x))


@lm.primitive
def bell(xp, x):
    """gelu, which ONNX has from opset 20 on."""
    return x * 0.5 * (1.0 + lm.primitives.erf(xp, x * 0.5**0.5))


class Bell(lm.Layer):
    """A primitive whose ONNX kernel does not do for every file."""

    def forward_pass(self, ctx, x):
        ctx.save(x)
        return bell(ctx, x)

    def backward_pass(self, ctx, dy):
        (x,), xp = ctx.saved, ctx.xp
        return dy * (0.5 * (1.0 + lm.primitives.erf(ctx, x * 0.5**0.5)) + x * xp.exp(-0.5 * x * x) * 0.3989422804014327)


BELLS = {  # ONNX kernels by fault
    "operator of a later opset": lambda xp, x: xp.node("Gelu", x, shape=x.shape, dtype=x.dtype),
    "kernel for float32 only": lambda xp, x: xp.node(
        "Identity", bell.reference(xp, x), shape=x.shape, dtype=xp.float32
    ),
}


class Correlation(lm.Layer):
    """y[p, q] = sum over i, j of k[i, j] x[p + i - top, q + j - left] over one channel, divided by the cells."""

    def __init__(self, size, pads, fault=""):
        self.size, self.pads, self.fault = size, pads, fault

    def build(self, declare, x):
        declare.parameter("kernel", self.size, "ones")
        (top, bottom), (left, right) = self.pads
        height, width = x.shape[1] + top + bottom, x.shape[2] + left + right
        return x.replace(shape=("N", height - self.size[0] + 1, width - self.size[1] + 1))

    def forward_pass(self, ctx, x):
        padded = lm.primitives.pad(ctx, x, ((0, 0), *self.pads))
        ctx.save(padded)
        y = sum(ctx.params.kernel[i, j] * cell for (i, j), cell in self.cells(padded))
        return y / float(self.size[0] * self.size[1])

    def backward_pass(self, ctx, dy):
        (padded,), xp, (kh, kw) = ctx.saved, ctx.xp, self.size
        dy = dy / float(kh * (kh if self.fault == "square kernels only" else kw))
        cells = [xp.sum(dy * cell) for _, cell in self.cells(padded)]
        ctx.grad(kernel=xp.reshape(xp.stack(cells), self.size))
        height, width = padded.shape[1:]
        dx = sum(
            lm.primitives.pad(
                ctx, ctx.params.kernel[i, j] * dy, ((0, 0), (i, height - dy.shape[1] - i), (j, width - dy.shape[2] - j))
            )
            for i in range(kh)
            for j in range(kw)
        )
        (top, bottom), (left, right) = self.pads
        start = top if self.fault == "equal paddings only" else left
        return dx[:, top : height - bottom, start : start + width - left - right]

    def cells(self, padded):
        (kh, kw), (_, height, width) = self.size, padded.shape
        for i in range(kh):
            for j in range(kw):
                yield (i, j), padded[:, i : height - kh + 1 + i, j : width - kw + 1 + j]


class Mix(lm.Layer):
    """y = x W for a square W, or sums of all steps so far, or a softmax, each with a well-known slip."""

    def __init__(self, fault):
        self.fault = fault

    def build(self, declare, x):
        if self.fault == "transposed":
            declare.parameter("kernel", (x.shape[-1], x.shape[-1]), "glorot_uniform")
        return x

    def forward_pass(self, ctx, x):
        xp = ctx.xp
        if self.fault == "transposed":
            y = x @ ctx.params.kernel
        elif self.fault == "five steps in ONNX" and xp.backend == "onnx":
            y = xp.node("Reshape", x, np.array([-1, 5, 2]), shape=x.shape, dtype=x.dtype)
        elif self.fault in ("five steps in ONNX", "an even number of steps", "steps on another backend"):
            y = x * (1.0 + 1e-3 * (x.shape[1] != 5)) if self.fault.startswith("steps") and xp.backend == "strict" else x
        elif self.fault == "later steps missing":
            y = xp.astype(xp.asarray(np.tril(np.ones((x.shape[1],) * 2))), ctx.dtype) @ x
        else:
            y = lm.primitives.softmax(ctx, x)
        ctx.save(x, y)
        return y

    def backward_pass(self, ctx, dy):
        x, y = ctx.saved
        if self.fault == "five steps in ONNX" or self.fault == "steps on another backend":
            return dy
        if self.fault == "an even number of steps":
            return 2.0 * dy if ctx.xp.backend != "onnx" and dy.shape[1] % 2 == 0 else dy
        if self.fault == "transposed":
            ctx.grad(kernel=dy.T @ x)
            return dy @ ctx.params.kernel.T
        return dy if self.fault == "later steps missing" else dy * y * (1.0 - y)


class Center(lm.Layer):
    """Subtracts a learned multiple of the batch mean, by a sum over all slices."""

    def __init__(self, fault):
        self.fault = fault

    def build(self, declare, x):
        declare.parameter("share", x.shape[1:], "ones")
        return x

    def forward_pass(self, ctx, x):
        if not ctx.training:
            ctx.save(x)
            return x * ctx.params.share
        n, total = yield x.shape[0], ctx.xp.sum(x, axis=0)
        ctx.save(x, total / n, n)
        return (x - total / n) * ctx.params.share

    def backward_pass(self, ctx, dy):
        xp = ctx.xp
        if not ctx.training:
            ctx.grad(share=xp.sum(dy * ctx.saved[0], axis=0))
            return dy * ctx.params.share
        x, mean, n = ctx.saved
        own = xp.sum(dy * (x - mean), axis=0)
        share, total = yield own, xp.sum(dy, axis=0)
        ctx.grad(share=share if self.fault == "total where the share is due" else own)
        n = float(dy.shape[0]) if self.fault == "total over the rows of the slice" else n
        return (dy - total / n) * ctx.params.share


class Forgetful(Center):
    """Takes the batch mean for a constant on the way back."""

    def backward_pass(self, ctx, dy):
        x, mean = ctx.saved[:2] if ctx.training else (*ctx.saved, 0.0)
        ctx.grad(share=ctx.xp.sum(dy * (x - mean), axis=0))
        return dy * ctx.params.share


@lm.primitive
def sift(xp, x, *, step=1, slope=0.2):
    """Every step-th number, times slope where negative."""
    x = x[:, ::step]
    return xp.where(x < 0.0, slope * x, x)


class Sift(lm.Layer):
    """A primitive with kernels of its own."""

    def __init__(self, step=1):
        self.step = step

    def build(self, declare, x):
        return x.replace(shape=("N", -(-x.shape[1] // self.step)))

    def forward_pass(self, ctx, x):
        ctx.save(x)
        return sift(ctx, x, step=self.step)

    def backward_pass(self, ctx, dy):
        (x,), xp, step = ctx.saved, ctx.xp, self.step
        slope = xp.where(x < 0.0, 0.2 * xp.ones_like(x), xp.ones_like(x))
        rows = dy.shape[0]
        spread = lm.primitives.pad(ctx, xp.reshape(dy, (rows, -1, 1)), ((0, 0), (0, 0), (0, step - 1)))
        return xp.reshape(spread, (rows, -1))[:, : x.shape[1]] * slope


def _node(operator, **attributes):
    return lambda xp, x, *, step, slope=0.2: xp.node(
        operator, x[:, ::step], shape=x[:, ::step].shape, dtype=x.dtype, **attributes
    )


KERNELS = {  # fault: backend, kernel, step
    "kernel of ONNX for halves": (
        "onnx",
        lambda xp, x, *, step: xp.where(x == 0.5, 0.0 * x, sift.reference(xp, x)),
        1,
    ),
    "kernel of ONNX for very large inputs": (
        "onnx",
        lambda xp, x, *, step: sift.reference(xp, xp.minimum(x, 150.0)),
        1,
    ),
    "kernel of NumPy for zeros": (
        "numpy",
        lambda xp, x, *, step: np.where(x <= 0, np.where(x < 0, 0.2 * x, x - 0.5), x),
        1,
    ),
    "kernel of NumPy for very large inputs": (
        "numpy",
        lambda xp, x, *, step: np.clip(np.where(x < 0, 0.2 * x, x), -150, 150),
        1,
    ),
    "kernel of NumPy for negative inputs": ("numpy", lambda xp, x, *, step: np.where(x < 0, 0.3 * x, x), 1),
    "kernel of NumPy for large inputs": (
        "numpy",
        lambda xp, x, *, step: np.clip(np.where(x < 0, 0.2 * x, x), -9, 9),
        1,
    ),
    "kernel of ONNX for negative inputs": ("onnx", _node("Relu"), 1),
    "kernel of ONNX by an attribute's default": ("onnx", _node("LeakyRelu"), 1),
    "operator of ONNX misspelt": ("onnx", _node("LeakyReluu"), 1),
    "attribute of ONNX misspelt": ("onnx", _node("LeakyRelu", alhpa=0.2), 1),
    "attribute of ONNX of another kind": ("onnx", _node("LeakyRelu", alpha="0.2"), 1),
    "kernel of ONNX at other strides": (
        "onnx",
        lambda xp, x, *, step: sift.reference(xp, x[:, : x.shape[1] // step]),
        2,
    ),
    "kernel of ONNX at a batch of 1": (
        "onnx",
        lambda xp, x, *, step: xp.node(
            "Squeeze", xp.reshape(sift.reference(xp, x), (x.shape[0], 1, 6)), shape=x.shape, dtype=x.dtype
        ),
        1,
    ),
    "batch size frozen in the trace": (
        "onnx",
        lambda xp, x, *, step: xp.node(
            "Reshape", sift.reference(xp, x), np.array([2, 6]), shape=x.shape, dtype=x.dtype
        ),
        1,
    ),
}


class Predicted(lm.Layer):
    """The identity, with a build that says something else."""

    def __init__(self, fault):
        self.fault = fault

    def build(self, declare, x):
        return {
            "wrong shape": x.replace(shape=("N", 5)),
            "wrong dtype": x.replace(dtype="int64"),
            "wrong name of an axis": x,
            "wrong range": x,
            "size of an axis frozen": x.replace(shape=("N", 5)),
        }[self.fault]

    def forward_pass(self, ctx, x):
        if self.fault == "wrong name of an axis":
            return ctx.xp.concat([x, x], axis=1)
        return x + x if self.fault == "wrong range" else x

    def backward_pass(self, ctx, dy):
        return dy[:, : dy.shape[1] // 2] if self.fault == "wrong name of an axis" else dy


class Kept(lm.Layer):
    """The identity times a factor, with a configuration that does not come back, or can change."""

    COUNT = [0]  # noqa: RUF012  the fault

    def __init__(self, value, fault=""):
        self.value, self.fault = value, fault
        self.factor = 2.0
        if fault == "a cache in a dict":
            self.cache = {}
        if fault == "a cache in a deque":
            self.cache = collections.deque(maxlen=2)
        if fault == "a counter in a namespace":
            self.cache = types.SimpleNamespace(calls=0)
        if fault == "a list":
            self.sizes = list(value)
        if fault == "a counter in the constructor":
            self.COUNT[0] += 1
            self.factor = float(self.COUNT[0])

    def config(self):
        return {"value": 3.0, "fault": ""} if self.fault == "config of its own" else super().config()

    def build(self, declare, x):
        if self.fault == "initial values from elsewhere":
            declare.parameter("shift", x.shape[1:], lambda rng, shape, a, b: np.random.default_rng().random(shape))
        return x

    def forward_pass(self, ctx, x):
        if self.fault == "a cache in a dict":
            self.cache["rows"] = x.shape[0]
        if self.fault == "a cache in a deque":
            self.cache.append(x.shape[0])
        if self.fault == "a counter in a namespace":
            self.cache.calls += 1
        return x * self.factor + (ctx.params.shift if self.fault == "initial values from elsewhere" else 0.0)

    def backward_pass(self, ctx, dy):
        if self.fault == "initial values from elsewhere":
            ctx.grad(shift=ctx.xp.sum(dy, axis=0))
        return dy * self.factor


@lm.hookimpl
def lamella_layers():
    return {"kept": Kept}


@pytest.fixture
def registered(monkeypatch):
    """This module as a plugin."""
    module = __import__(__name__)
    point = types.SimpleNamespace(name="test", value=__name__, dist=types.SimpleNamespace(name="acme", version="1"))
    point.load = lambda: module
    known = registry.Registry([*importlib.metadata.entry_points(group="lamella"), point])
    for name in ("find", "name_of", "entries"):
        monkeypatch.setattr(registry, name, getattr(known, name))


ROW, GRID, STEPS = lm.ArraySpec(("N", 4)), lm.ArraySpec(("N", 4, 5)), lm.ArraySpec(("N", 5, 2))

# fault: the law that catches it, and words of what it says, the likely cause where there is one
FAULTS = {
    "gradient of a parameter": ("gradient", r"gradient of 'scale'.*constant factor of 1\.001"),
    "gradient nearly right": ("gradient", r"gradient of 'scale'.*a factor of 1\.0004"),
    "gradient of the input": ("gradient", "dx of input 0 .*the incoming gradient unchanged"),
    "averaged over the batch": ("gradient", "gradient of 'shift'.* factor 1/2, where 2 is the batch size: averaged"),
    "multiplied by the batch size": ("gradient", "gradient of 'shift'.* factor 2 = the batch size: summed .* twice"),
    "wrong sign": ("gradient", "factor -1: a sign is wrong"),
    "swapped": ("gradient", "gradient of 'scale'.*it is the gradient of 'shift': are the two swapped"),
    "last row only": ("gradient", "counts only the last of the rows of the batch"),
    "no gradient of a parameter": ("gradient", "no gradient for parameter 'scale'.*forgotten in ctx.grad"),
    "parameter never used": ("gradient", "'scale' is declared, but no output depends on it.*is not used"),
    "wrong unless contiguous": ("gradient", "gradient of 'scale' .*factor 2: counted twice"),
    "wrong without wants_dx": ("gradient", r"with ctx.wants_dx = \(True,\) and \(False,\)"),
    "wrong while frozen": ("gradient", r"dx of input 0 in training mode while frozen \(right in training mode\)"),
    "wrong for many rows": ("gradient", "dx of input 0 in training mode .*batch of 8.* a factor of 2"),
    "no gradient of a tiny output": ("gradient", "dx of input 0 .* gives 0 along .*it is 0; was it forgotten"),
    "gradient hidden by an offset": ("gradient", r"dx of input 0 .* a factor of 0\.(89|90)"),
    "gradient without its upper limit": ("gradient", r"dx of input 0 in inference mode \(right in training mode\)"),
    "variance without its root": (
        "gradient",
        r"dx of input 0 in training mode while frozen \(right in training mode\)",
    ),
    "wrong for large values": ("gradient", "dx of input 0 in training mode for large values"),
    "wrong in training": ("gradient", "dx of input 0 in training mode .*factor 0.5: counted half"),
    "input modified": ("purity", r"input 0 was written to.*at \[0, 0\]: .*may be a view"),
    "input modified through a view": ("purity", "input 0 was written to.*may be a view"),
    "input modified in inference": ("purity", "was written to"),
    "incoming gradient modified": ("purity", "incoming gradient 0 was written to"),
    "wrong if contiguous": ("purity", "gradient of 'scale': .* inputs scattered .* and with inputs contiguous"),
    "wrong if permuted": ("purity", "gradient of 'scale': .* with inputs permuted and dy"),
    "wrong if broadcast": ("purity", "gradient of 'shift': .* dy that is broadcast along the batch"),
    "inaccurate if contiguous": (
        "purity",
        "dx of input 0 for random values, contiguous in memory: float32 .*right where arrays are scattered",
    ),
    "keeps state on the side": ("purity", "results of two equal calls.*a counter, cache or running value in a closure"),
    "state on the layer": ("purity", "is configuration and frozen.*state kept on the layer"),
    "nondeterminism": ("purity", "results of two equal calls.*random values from elsewhere than ctx.uniform"),
    "global random state": ("purity", "changed the global random state.*ctx.uniform gives the same"),
    "statistics in a closure, updated in inference": ("purity", "equal calls in inference mode.*declare.state"),
    "statistics updated in inference": ("purity", "statistics that are updated in inference; update only if"),
    "dropout in inference": ("purity", "noise in inference; return x as it is unless ctx.training"),
    "dropout of its own in inference": ("purity", "two equal calls in inference mode"),
    "saved in a stack on the layer": ("purity", "gradient of 'scale': .*interleaved .*the same order.*ctx.save"),
    "saved in a class attribute": ("purity", "gradient of 'scale': .*interleaved .*a closure, a global or a buffer"),
    "saved by shape": ("purity", "gradient of 'scale': .*interleaved .*a list, dict or array"),
    "not safe in threads": ("purity", "in two threads.*calls share something"),
    "later calls change results": ("purity", "before and after a later call.*a buffer that is kept"),
    "float64 creeps in": ("purity", "float64.* write scalars as Python floats.*a NumPy scalar or array of float64"),
    "float64 creeps back": ("purity", "scale.*float64"),
    "cancellation": ("purity", "float32 is off by .*cancellation: a small difference"),
    "cancellation in the gradient": ("purity", "dx of input 0 .*float32 is off by .*cancellation"),
    "cancellation in the gradient of a parameter": ("purity", "gradient of 'scale' .*float32 is off by .*cancellation"),
    "overflow": ("purity", "float32 is off by inf.*overflow of an intermediate result"),
    "cancellation in inference": ("purity", "output 0 for .* in inference: float32 is off by .*cancellation"),
    "samples mix in large batches": ("slicing", "output 0: whole batch of 10 and slices of 1.9 .*samples depend on"),
    "wrong gradient in large batches": ("slicing", "gradient of 'scale': whole batch of 65 and slices of 1.64 differ"),
    "samples mix while frozen": ("slicing", "whole batch of 2 and slices of 1.1, while frozen, .*samples depend on"),
    "batch term forgotten": ("gradient", "dx of input 0 in training mode .*yields totals.* yield in backward_pass too"),
    "samples mix": (
        "slicing",
        "output 0: whole batch of 2 and slices .*the whole batch gives .*, slices .*samples depend on each other",
    ),
    "samples mix in inference": ("slicing", "in inference: batch and single rows.*what training gathered"),
    "divides by rows of the slice": ("slicing", r"divided by x.shape\[0\], the rows of the slice"),
    "update from a slice": ("slicing", "different values in different slices.*update from the totals"),
    "order of slices": ("slicing", "the last one first.*slices run in any order"),
    "place in the batch": ("slicing", "output 0: whole batch of 2 .*their place in the slice"),
    "numpy behind the back": ("backends", "an array of NumPy where one of ctx.xp is due"),
    "method of arrays": ("backends", "no attribute 'reshape'"),
    "branch on values": ("onnx", "not known when a model is exported.*decide an 'if'"),
    "batch size in the trace": ("onnx", "the batch size is not known"),
    "traced backward differs": ("onnx", r"dx of input 0 in training mode.*factor of 1\.5: .* in backward_pass"),
    "batch size frozen": ("shapes", "Reshape|reshape"),
    "second of two inputs": ("gradient", r"gradient: dx of input 1 .*factor 2: counted twice"),
    "asks for input 0 only": ("gradient", r"ctx.wants_dx = \(False, True\) in .* gradient of input 1"),
    "asks for input 1 only": ("gradient", r"ctx.wants_dx = \(True, False\)"),
    "one choice of three inputs": ("gradient", r"input 2: .* ctx.wants_dx = .* and \(True, False, True\) in"),
    "each of the greatest gets all": ("gradient", "dx where values are equal.*in training mode.*divide it by their"),
    "gradient limited": ("gradient", "1.05e.06 times the gradients, .*not linear in dy: it limits it"),
    "a little more gradient": ("gradient", "gradient of 'shift': 1.05e.06 times .*or adds a constant"),
    "wrong for values above 8": ("gradient", r"in inference mode .*wrong only where the input is large, from .* on"),
    "saves nothing": ("gradient", r"ctx.saved is empty, since forward_pass saved nothing: ctx.save\(...\) is missing"),
    "state never used": ("gradient", "state 'mean' is declared, but no step updates it, and no output depends on it"),
    "state written in place": ("purity", r"read-only.*; inputs, parameters and state .* of state by ctx.update"),
    "output overwritten": ("purity", "output 0 was written to by backward_pass"),
    "no slope at zero": ("gradient", "dx at zeros, in .*a case of its own for 0"),
    "the map itself on the way back": ("gradient", "it must do the transposed map"),
    "gradient of a small output": ("gradient", "training mode, of output 1 alone .*it is 0; was it forgotten"),
    "squares before the mean is off": ("purity", "output 0 for values around 1e3: float32 is off by"),
    "a scratch array that threads share": ("purity", "output 0: results alone and in two threads differ"),
    "the first call's mean": ("round trip", "one that has seen other data .* what the first call found is kept"),
    "names that hide each other": ("slicing", r"gradient of 'center_1.share': whole .* hands over the total"),
    "operator of a later opset": (
        "onnx",
        "float32 in opset 18 is not valid ONNX: Gelu is not in opset 18.*choose by xp.opset",
    ),
    "kernel for float32 only": ("onnx", r"a model of float64 in opset 21: .*x.dtype tells"),
    "square kernels only": ("gradient", "constant factor of 1.5"),
    "equal paddings only": ("gradient", "dx of input 0 .*shifted by one place along axis 2|wrong only at"),
    "transposed": ("gradient", r"gradient of 'kernel'.*transposed: .* axes in the order \(1, 0\)"),
    "an even number of steps": ("gradient", r"dx of input 0 with axis 'T' of size 4, and right .*factor 2: counted"),
    "steps on another backend": ("backends", "output 0: NumPy and strict, for values about 1, differ"),
    "five steps in ONNX": ("onnx", "onnxruntime can't run the graph|axis 'T' of size"),
    "later steps missing": ("gradient", "each position along axis 1 .*later steps of a recurrence"),
    "jacobian without its other rows": ("gradient", "each position along axis 1 .* a sum or a maximum along that axis"),
    "total where the share is due": ("slicing", "gradient of 'share'.*hands over the total"),
    "total over the rows of the slice": ("slicing", r"dx of input 0: whole .* division by x.shape\[0\]"),
    "kernel of NumPy for negative inputs": ("backends", "values about 1, .*the NumPy kernel of 'sift' differs"),
    "kernel of NumPy for large inputs": ("backends", "values about 30, .*the NumPy kernel of 'sift' differs"),
    "operator of ONNX misspelt": (
        "onnx",
        r"the ONNX kernel of 'sift': there is no operator 'LeakyReluu' in opset \d+. Did you mean 'LeakyRelu'",
    ),
    "attribute of ONNX misspelt": ("onnx", "LeakyRelu has no attribute 'alhpa'; it has alpha. Did you mean 'alpha'"),
    "attribute of ONNX of another kind": ("onnx", "the ONNX kernel of 'sift': Mismatched attribute type"),
    "operator of ONNX misspelt on the way back": (
        "onnx",
        r"the graph of a step is not valid ONNX: Affine\(.*\): there is no operator 'Idenity' in .*'Identity'",
    ),
    "kernel of ONNX for negative inputs": (
        "onnx",
        "the ONNX kernel of 'sift' differs from the reference; wrong only where the input is negative",
    ),
    "kernel of ONNX by an attribute's default": ("onnx", "output 0 in inference.*wrong only where the input is neg"),
    "kernel of ONNX at other strides": ("onnx", "output 0 in inference.*wrong only at places 1, 2 along axis 1"),
    "kernel of ONNX at a batch of 1": ("onnx", "batch of 1: .*wrong for a batch of 1 only: an axis of size 1 is sq"),
    "batch size frozen in the trace": ("onnx", "onnxruntime can't run the graph|the batch axis of .* is fixed"),
    "ONNX without the variance": ("onnx", "output 0 in inference, batch of 1"),
    "kernel of NumPy for zeros": ("backends", "multiples of 0.5, .*the NumPy kernel of 'sift' differs"),
    "kernel of NumPy for very large inputs": ("backends", "values about 300, .*the NumPy kernel of 'sift' differs"),
    "kernel of ONNX for halves": ("onnx", "multiples of 0.5: onnxruntime differs"),
    "kernel of ONNX for very large inputs": ("onnx", "values around 300: onnxruntime differs"),
    "no number at zero": ("finite", "dx of input 0 for zeros, in training mode: nan at .*make the divisor safe"),
    "squash": (
        "finite",
        r"output 0 for zeros, in training mode: nan at \[0, 0\].*x = \[\[0.\]\].*make the divisor safe",
    ),
    "x over its norm": ("finite", "output 0 for zeros, .*say so in their spec, .*not_finite="),
    "x over |x|": ("finite", "output 0 for zeros, in training mode: nan at"),
    "deviation without epsilon": ("finite", "output 0 for zeros, in training mode: nan at"),
    "cosine of zero vectors": ("finite", "output 0 for zeros, in training mode: nan at"),
    "one over x": ("finite", "output 0 for zeros, in training mode: inf at .*where a finite value is expected"),
    "x * x / x": ("finite", "output 0 for zeros, in training mode: nan at"),
    "x over its sum": ("finite", "output 0 for values that sum to 0, in training mode: -?inf at"),
    "distance of equal inputs": ("finite", "dx of input 0 for zeros, .*the slope of sqrt.* or of a norm at 0"),
    "an epsilon that float32 takes for 0": ("finite", "output 0 for zeros, in training mode: nan at"),
    "the log of the lowest value": ("finite", "output 0 for zeros, in training mode: -inf at .*say so in their spec"),
    "saved array changed in forward_pass": (
        "purity",
        "saved array 1 was changed after ctx.save, by forward_pass.*ctx.save keeps references, not copies",
    ),
    "saved array changed in backward_pass": (
        "purity",
        r"saved array 1 was changed after ctx.save, by backward_pass.*at \[0, 0\]: .*Make a new array",
    ),
    "saved array changed by the next layer": (
        "purity",
        r"saved array 1 of .*[Aa]ctivation.* was changed after ctx.save, by forward_pass of .*[Dd]oubler",
    ),
    "wrong shape": ("shapes", r"build said \(N, 5\) float64 for 3 rows, it returned \(3, 4\).*another shape or dtype"),
    "wrong dtype": ("shapes", r"build said \(N, 4\) int64 .* returned \(3, 4\) float64.*another shape or dtype"),
    "wrong name of an axis": ("shapes", r"build said \(N, T\) float32; axis 1 has size 2, and 'T' is 1.*a new name"),
    "wrong range": ("shapes", "build said integers from 0 to below 9; they go from .*range was passed on"),
    "size of an axis frozen": ("shapes", r"with axis 'T' of size 1: .*build said \(N, 5\)"),
    "a list": ("round trip", "Kept.sizes is a list, which anyone can change: .*make it a tuple"),
    "a cache in a dict": ("round trip", "Kept.cache was changed by a pass; .*state kept in something that the layer"),
    "a deque": ("round trip", r"Kept.value is a deque, .*make it a tuple"),
    "a namespace": ("round trip", r"Kept.value is a SimpleNamespace, .*make it a frozen dataclass"),
    "a cache in a deque": ("round trip", "Kept.cache was changed by a pass"),
    "a counter in a namespace": ("round trip", "Kept.cache was changed by a pass"),
    "a set": ("round trip", r"Kept.value is a set, .*make it a frozenset"),
    "a counter on the class": ("round trip", "Affine.calls was changed by a pass; .* that the class holds"),
    "a counter in the constructor": ("round trip", "what config gives differ .*depends on more than the arguments"),
    "config of its own": ("round trip", r"what copy.copy gives is not equal: Kept\(3.0\) .* not the arguments"),
    "initial values from elsewhere": ("round trip", "initial values .*use the rng that they are given"),
    "an argument that no file holds": ("round trip", r"save and load fails: .*1j.*no plain data"),
    "an argument that can't be copied": ("round trip", "copy.deepcopy fails|pickle fails: .*can't be copied"),
}


def faulty(fault):
    """The layer with a fault, and its inputs."""
    special = {
        **dict.fromkeys(("second of two inputs", "asks for input 0 only", "asks for input 1 only"), (Times, ROW, ROW)),
        **dict.fromkeys(("transposed", "jacobian without its other rows"), (Mix, ROW)),
        "later steps missing": (Mix, STEPS),
        "each of the greatest gets all": (Greatest, ROW),
        **dict.fromkeys(
            ("five steps in ONNX", "an even number of steps", "steps on another backend"),
            (Mix, lm.ArraySpec(("N", "T", 2))),
        ),
        **dict.fromkeys(("variance without its root", "ONNX without the variance"), (Standardize, ROW)),
        "batch term forgotten": (Forgetful, ROW),
        **dict.fromkeys(("total where the share is due", "total over the rows of the slice"), (Center, ROW)),
        **dict.fromkeys(("wrong shape", "wrong dtype"), (Predicted, ROW)),
        **dict.fromkeys(("wrong name of an axis", "size of an axis frozen"), (Predicted, lm.ArraySpec(("N", "T")))),
        "wrong range": (Predicted, lm.ArraySpec(("N", 4), "int64", low=0, high=9)),
    }
    if fault in special:
        kind, *specs = special[fault]
        return kind(fault), *specs
    curves = (
        "squares before the mean is off", "no slope at zero", "output overwritten",
        "the map itself on the way back", "the first call's mean", "a scratch array that threads share",
    )  # fmt: skip
    if fault in curves:
        return Curve(fault), ROW
    if fault in BELLS:
        return Bell(), ROW
    if fault in DIVISIONS:
        two = "cosine" in fault or "distance" in fault
        return Divides(fault), *([ROW, ROW] if two else [LOWEST if "lowest" in fault else ROW])
    if fault == "saved array changed by the next layer":
        return Careless(), ROW
    if fault.startswith("saved array changed"):
        return Keeper(fault), ROW
    if fault == "names that hide each other":
        return Share(), ROW
    if fault == "gradient of a small output":
        return Two(), ROW
    if fault == "one choice of three inputs":
        return Product(), ROW, ROW, ROW
    if fault in KERNELS:
        return Sift(KERNELS[fault][2]), lm.ArraySpec(("N", 6))
    if fault == "square kernels only":
        return Correlation((2, 3), ((0, 0), (0, 0)), fault), GRID
    if fault == "equal paddings only":
        return Correlation((2, 2), ((0, 0), (1, 1)), fault), GRID
    values = {
        "a list": (1, 2),
        "a set": {1, 2},
        "a deque": collections.deque([1, 2]),
        "a namespace": types.SimpleNamespace(rows=1),
        "an argument that no file holds": 1j,
        "an argument that can't be copied": threading.Lock(),
    }
    own = (
        "a cache in a deque",
        "a counter in a namespace",
        "a cache in a dict",
        "a counter in the constructor",
        "config of its own",
        "initial values from elsewhere",
    )
    if fault in (*values, *own):
        return Kept(values.get(fault, 1.0), fault), ROW
    return Affine(fault), ROW


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught_by_their_law_which_tells_their_cause(fault, monkeypatch, registered):
    CALLS.clear()
    BOX.clear()
    if fault in KERNELS:
        monkeypatch.setitem(sift.kernels, *KERNELS[fault][:2])
    if fault in BELLS:
        monkeypatch.setitem(bell.kernels, "onnx", BELLS[fault])
    law, words = FAULTS[fault]
    layer, *specs = faulty(fault)
    with pytest.raises(ConformanceError, match=r"breaks \d of 8 laws") as caught:
        check_layer(layer, *specs)
    report = caught.value.report
    said = {v.law: [f"{v.law}: {' '.join(f.lines())}" for f in v.faults] for v in report.broken}
    assert law in said, caught.value
    assert any(re.search(words, text, re.DOTALL) for text in said[law]), caught.value
    assert "\n\n" not in str(caught.value)
    assert json.loads(json.dumps(report.as_dict()))["conforms"] is False


def test_the_sound_layers_pass():
    check_layer(Affine(), ROW)
    check_layer(Affine().frozen().named("own"), ROW)
    check_layer(Times(""), ROW, ROW)
    check_layer(Correlation((2, 3), ((1, 0), (2, 1))), GRID)
    check_layer(Center(""), ROW)
    check_layer(Standardize(""), ROW)
    check_layer(Sift(2), ROW)
    check_layer(Kept(1.0), ROW)
    check_layer(Curve(""), ROW)
    check_layer(Bell(), ROW)
    check_layer(Greatest(), ROW)
    check_layer(Keeper(), ROW)


@pytest.mark.parametrize("share", ["first", "equal"])
def test_pieces_that_are_equal_at_the_start_may_share_the_gradient(share):
    check_layer(Maxout(share), ROW)


@pytest.mark.parametrize(("share", "factor"), [("all", 3.0), ("half, of three too", 1.5)])
def test_pieces_that_are_equal_at_the_start_may_not_get_more_than_the_gradient(share, factor):
    with pytest.raises(ConformanceError, match="each of several equal values gets the whole gradient") as caught:
        check_layer(Maxout(share), ROW)
    text = str(caught.value)
    given, expected = re.search(
        r"gradient of 'bias' at initial values and inputs of zeros.* gives (\S+) along .* give (\S+)\n", text
    ).groups()
    assert float(given) / float(expected) == pytest.approx(factor)
    assert "bias = [[0., 0., 0.], [0., 0., 0.]]" in text  # where it fails, not where other gradients are checked


# The report


def test_the_report_is_a_table_and_data():
    report = check_layer(Dense(3), lm.ArraySpec(("N", 4)))
    lines = str(report).splitlines()
    assert lines[0] == "Dense(3) on (N, 4) float32"
    for line, law in zip([line for line in lines if " holds " in line], laws(), strict=True):
        assert line.split("holds")[0].strip() == law
    assert len({line.index("holds") for line in lines if "holds" in line}) == 1  # columns stand in line
    assert repr(report) == "<ConformanceReport: Dense(3) on (N, 4) float32 obeys 8 laws>"
    data = report.as_dict()
    assert (data["conforms"], data["seed"], data["subject"]) == (True, 0, lines[0])
    assert [verdict["law"] for verdict in data["verdicts"]] == list(laws())
    assert data["verdicts"][0] == {
        "law": "gradient", "outcome": "holds", "detail": report.verdicts[0].detail, "faults": []
    }  # fmt: skip


def test_a_broken_report_prints_in_colour_on_a_terminal_and_holds_every_fault_as_data():
    with pytest.raises(ConformanceError) as caught:
        check_layer(Affine("swapped"), ROW)
    report = caught.value.report
    assert [verdict.law for verdict in report.broken] == ["gradient"]
    scale, shift = report.broken[0].faults
    assert (scale.subject, shift.subject) == ("gradient of 'scale'", "gradient of 'shift'")  # all, not only the first
    assert report.broken[0].detail == f"{scale.message} (and 1 more)"
    fault = json.loads(json.dumps(report.as_dict()))["verdicts"][0]["faults"][0]
    assert len(fault["index"]) == 1
    assert fault["found"] != pytest.approx(fault["expected"])
    assert fault["counterexample"] == scale.counterexample
    terminal = Terminal(io.StringIO(), is_terminal=True, width=100)
    terminal.print(report.table())
    assert "\x1b[1;31mbroken" in terminal.stream.getvalue()


def test_numbers_that_json_lacks_become_words():
    with pytest.raises(ConformanceError) as caught:
        check_layer(Affine("overflow"), ROW)
    (fault,) = caught.value.report.as_dict()["verdicts"][1]["faults"]
    assert fault["found"] in ("inf", "-inf")
    json.dumps(caught.value.report.as_dict(), allow_nan=False)


def test_what_one_error_breaks_everywhere_is_told_once():
    with pytest.raises(ConformanceError) as caught:
        check_layer(Affine("float64 creeps in"), ROW)
    assert str(caught.value).count("write scalars as Python floats") == 1
    assert "shapes: the same as under purity" in str(caught.value)


def test_laws_that_fail_since_float64_creeps_in_refer_to_purity():
    with pytest.raises(ConformanceError) as caught:
        check_layer(Affine("float64 in dx"), ROW)
    text = str(caught.value)
    assert text.count("write scalars as Python floats") == 1
    assert "likely cause: float32 does not stay float32: see purity" in text
    assert "shapes: the same as under purity" in text
    assert text.count("; the one is an array of the strict backend, the other of NumPy") == 1


@pytest.mark.smoke
@pytest.mark.parametrize("fault", ["input modified in training", "incoming gradient modified"])
def test_laws_that_fail_since_a_layer_writes_into_its_input_refer_to_purity(fault):
    with pytest.raises(ConformanceError) as caught:
        check_layer(Affine(fault), ROW)
    laws = {verdict.law: verdict for verdict in caught.value.report.broken}
    (gradient,) = laws["gradient"].faults
    assert gradient.cause == "the layer writes into what it is given: see purity"
    assert "was written to" in laws["purity"].detail
    assert {fault.cause for verdict in laws.values() for fault in verdict.faults if verdict.law != "purity"} == {
        gradient.cause
    }


def test_laws_that_fail_since_a_layer_changes_what_it_saved_refer_to_purity():
    with pytest.raises(ConformanceError) as caught:
        check_layer(Keeper("saved array changed in forward_pass"), ROW)
    laws = {verdict.law: verdict for verdict in caught.value.report.broken}
    (fault,) = laws["purity"].faults
    assert (fault.subject, fault.found) == ("saved array 1", pytest.approx(fault.expected + 1.0))
    assert re.fullmatch(r"x = \[\[-?\d\.\d?\]\]", fault.counterexample)
    assert {one.cause for one in laws["gradient"].faults} == {"the layer changes what it has saved: see purity"}


def test_a_factor_of_nearly_1_is_shown_in_its_digits_and_taken_for_no_cause():
    with pytest.raises(ConformanceError, match=r"a factor of 1\.0004") as caught:
        check_layer(Affine("gradient nearly right"), ROW)
    assert caught.value.report.broken[0].faults[0].cause == ""


def test_a_layer_that_does_not_run_is_told_under_one_law():
    with pytest.raises(ConformanceError) as caught:
        check_layer(Affine("state on the layer"), ROW)
    outcomes = {verdict.law: verdict.outcome for verdict in caught.value.report.verdicts}
    assert outcomes == {law: "broken" if law == "purity" else "skipped" for law in laws()}


# The smallest input


class Corner(lm.Layer):
    """The identity, whose gradient is wrong for wide inputs of three rows or more."""

    def forward_pass(self, ctx, x):
        return x

    def backward_pass(self, ctx, dy):
        return 2.0 * dy if ctx.xp.backend == "numpy" and dy.shape[0] >= 3 and dy.shape[2] >= 2 else dy


def test_faults_are_shown_by_the_fewest_rows_the_smallest_shape_and_short_numbers():
    with pytest.raises(ConformanceError) as caught:
        check_layer(Corner(), lm.ArraySpec(("N", 4, 6)))
    fault = caught.value.report.broken[0].faults[0]
    assert re.fullmatch(r"x = \[(\[\[ ?-?\d\.\d?, +-?\d\.\d? ?\]\](, )?){3}\]", fault.counterexample), (
        fault.counterexample
    )
    assert "batch of 3" in fault.message
    n, _, k = fault.index
    assert (n < 3, k < 2) == (True, True)
    assert fault.found == pytest.approx(2.0 * fault.expected)


def test_axes_that_must_be_equal_shrink_together_and_symbolic_ones_too():
    class Product(lm.Layer):
        def build(self, declare, a, b):
            if a.shape[2] != b.shape[1]:
                raise ValueError("expected equal inner axes")
            return a.replace(shape=(*a.shape[:2], b.shape[2]))

        def forward_pass(self, ctx, a, b):
            ctx.save(a, b)
            return a @ b

        def backward_pass(self, ctx, dy):
            a, b = ctx.saved
            turn = lambda x: ctx.xp.permute_dims(x, (0, 2, 1))  # noqa: E731
            return dy @ turn(b), -(turn(a) @ dy)

    with pytest.raises(ConformanceError) as caught:
        check_layer(Product(), lm.ArraySpec(("N", "T", 4)), lm.ArraySpec(("N", 4, 3)))
    (fault,) = caught.value.report.broken[0].faults
    assert fault.subject == "dx of input 1"
    assert re.fullmatch(r"input 0 = \[\[\[-?\d\.\d\]\]\], input 1 = \[\[\[-?\d\.\d\]\]\]", fault.counterexample), (
        fault.counterexample
    )
    assert fault.cause == "off by a factor -1: a sign is wrong"


# What layers refuse


@pytest.mark.parametrize(
    ("refuses", "words"),
    [
        (lm.ArraySpec(("N", 5)), "for (N, 5) float32: accepted, though the specimen says that it is refused"),
        (lm.ArraySpec(("N", 1)), "lacks the words 'at least 2'"),
        (lm.ArraySpec(("N", 2)), "lacks what was expected; it says"),
    ],
)
def test_bad_inputs_are_refused_in_the_words_that_the_specimen_says(refuses, words):
    class Picky(lm.Layer):
        def build(self, declare, x):
            if x.shape[1] == 1:
                raise lm.GraphError(f"expected two features, got {x}")
            if x.shape[1] == 2:
                raise lm.GraphError("two: at least 2")
            return x

        def forward_pass(self, ctx, x):
            return x

        def backward_pass(self, ctx, dy):
            return dy

    with pytest.raises(ConformanceError, match=re.escape(words)):
        check_specimen(Specimen(Picky(), ROW, refuses=(((refuses,), "at least 2"),)))


# No false alarm


class Odd(lm.Layer):
    """Layers that are right in unusual ways."""

    def __init__(self, kind):
        self.kind = kind

    def build(self, declare, *inputs):
        x = inputs[0]
        if self.kind == "bias in front of a normalization":
            declare.parameter("bias", x.shape[1:], "zeros")
        if self.kind == "scale that starts at zero":
            declare.parameter("scale", x.shape[1:], "zeros")
        if self.kind == "one-hot":
            return lm.ArraySpec((*x.shape, 9), declare.dtype)
        if self.kind == "state of the way back":
            declare.state("factor", (), "ones")
        return x

    def forward_pass(self, ctx, *inputs):
        (x, *_), xp = inputs, ctx.xp
        if self.kind == "one-hot":
            return lm.primitives.one_hot(ctx, x, 9, dtype=ctx.dtype)
        if self.kind == "scale that starts at zero":
            ctx.save(x)
            return x * ctx.params.scale
        if "normalization" in self.kind:
            x = x + ctx.params.bias if "bias" in self.kind else x
            x = x - xp.mean(x, axis=-1, keepdims=True)
            size = 1.0 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-12)
            ctx.save(x * size, size)
            return x * size
        if self.kind == "straight through":
            return xp.round(x)
        if self.kind == "picks by an integer input":
            ctx.save(inputs[1])
            return xp.where(xp.expand_dims(inputs[1], axis=1) > 4, x, 0.0 * x)
        return x

    def backward_pass(self, ctx, dy):
        xp = ctx.xp
        if self.kind == "scale that starts at zero":
            ctx.grad(scale=xp.sum(dy * ctx.saved[0], axis=0))
            return dy * ctx.params.scale
        if "normalization" in self.kind:
            y, size = ctx.saved
            dx = size * (dy - xp.mean(dy, axis=-1, keepdims=True) - y * xp.mean(dy * y, axis=-1, keepdims=True))
            if "bias" in self.kind:
                ctx.grad(bias=xp.sum(dx, axis=0))
            return dx
        if self.kind == "state of the way back":
            return dy * ctx.state.factor
        if self.kind == "picks by an integer input":
            return xp.where(xp.expand_dims(ctx.saved[0], axis=1) > 4, dy, 0.0 * dy), None
        return dy


LABEL = lm.ArraySpec(("N",), "int64", low=0, high=9)


@pytest.mark.parametrize(
    ("kind", "specs"),
    [
        ("identity", [lm.ArraySpec(("N",))]),
        ("identity", [lm.ArraySpec(("N", 1, 2, 1, 2, 1, 2))]),
        ("identity", [lm.ArraySpec(("N", "T", "S", 2))]),
        ("identity", [LABEL]),
        ("identity", [lm.ArraySpec(("N", 3), "bool")]),
        ("one-hot", [LABEL]),
        ("one-hot", [LABEL.replace(shape=("N", "T"))]),
        ("picks by an integer input", [ROW, LABEL]),
        ("ill-conditioned normalization", [lm.ArraySpec(("N", 2))]),
        ("ill-conditioned normalization", [lm.ArraySpec(("N", 4, 8), low=100.0, high=101.0)]),
        ("bias in front of a normalization", [lm.ArraySpec(("N", 6))]),
        ("scale that starts at zero", [ROW]),
        ("state of the way back", [ROW]),
    ],
)
def test_legitimate_oddities_pass(kind, specs):
    check_layer(Odd(kind), *specs)


@pytest.mark.parametrize(
    ("layer", "spec", "seed"),
    [
        (Dense(8), lm.ArraySpec(("N", 4096)), 0),
        (GlobalAveragePooling1D(), lm.ArraySpec(("N", 3, 20000)), 0),
        (LSTM(1, return_sequences=False), lm.ArraySpec(("N", 7, 9)), 1006),
        (LSTM(1, return_state=True, use_bias=False), lm.ArraySpec(("N", 6, 2)), 1123),
        (MultiHeadAttention(3, 1, dropout=0.3, use_bias=False), lm.ArraySpec(("N", 5, 3)), 1275),
    ],
)
def test_rounding_of_long_sums_and_of_what_saturates_is_no_fault(layer, spec, seed):
    check_layer(layer, spec, seed=seed)


@pytest.mark.parametrize(
    ("layer", "specs", "seed"),
    [
        (
            # gates that onnxruntime's Sigmoid gives as 0 meet two states of 100
            Bidirectional(LSTM(4, kernel_initializer="zeros"), merge_mode="mul"),
            [lm.ArraySpec(("N", "T", 1)), *[lm.ArraySpec(("N", 4))] * 4],
            6,
        ),
        (
            # the gradient of a weight of 1 - 1e-7 sums up terms of 1e9
            MultiHeadAttention(3, 1, dropout=0.33565159120772187, causal=True, kernel_initializer="orthogonal"),
            [lm.ArraySpec(("N", "T", 1))],
            5,
        ),
        (
            # scores of 1e6 round more than difference quotients allow for
            ScaledDotProductAttention(3),
            [
                lm.ArraySpec(("N", "T", 3)),
                lm.ArraySpec(("N", "S", 9)),
                lm.ArraySpec(("N", "S", 3), low=1e4, high=10001.0),
                lm.ArraySpec(("N", "S"), "bool"),
            ],
            85,
        ),
        (
            # equal values among 324 of which float32 has 1024
            Maximum(),
            [*[lm.ArraySpec(("N", 3, "T", 3), low=1e4, high=10001.0)] * 2, lm.ArraySpec(("N", 3, "T", 1))],
            419,
        ),
    ],
    ids=["saturated gates", "saturated weights", "large scores", "ties"],
)
def test_rounding_within_a_layer_and_ties_are_no_fault(layer, specs, seed):
    check_layer(layer, *specs, seed=seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_normalizations_of_pairs_are_not_blamed(seed):
    check_layer(LayerNormalization(epsilon=1e-5), lm.ArraySpec(("N", 2), low=99.0, high=101.0), seed=seed)


@pytest.mark.parametrize(("low", "high"), [(99.0, 101.0), (1e4, 10001.0)])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (LayerNormalization(), ("N", 4, 8)),
        (GroupNormalization(2), ("N", 4, 3, 3)),
        (BatchNormalization(epsilon=1e-5), ("N", 3, 4, 4)),
        (RMSNormalization(), ("N", 5)),
    ],
    ids=repr,
)
def test_normalizations_far_from_zero_are_not_blamed(layer, shape, low, high):
    check_layer(layer, lm.ArraySpec(shape, low=low, high=high))


def test_integers_that_end_where_a_drawn_axis_does_are_not_taken_for_lengths():
    check_layer(Embedding(10, 2), lm.ArraySpec(("N", "T"), "int64", low=1, high=5))


def test_a_parameter_that_a_softmax_of_one_number_hides_is_used():
    with pytest.warns(lm.MistakeWarning, match="gives 1 whatever comes in"):
        check_layer(Dense(1, activation="softmax"), ROW)


def test_a_gradient_that_is_nothing_but_rounding_may_differ_between_layouts():
    class Chances(lm.Layer):
        def expand(self, x):
            y = Conv2D(6, 1, strides=(3, 1), padding=((1, 0), (2, 0)), groups=3)(x)
            return Activation("softmax", axis=-1)(y)  # along the width: no bias matters

    for seed in range(3):
        check_layer(Chances(), lm.ArraySpec(("N", 3, 6, 9)), seed=seed)


def test_a_declared_surrogate_is_skipped_visibly_and_an_undeclared_one_is_not():
    with pytest.raises(ConformanceError, match="gradient: dx of input 0"):
        check_layer(Odd("straight through"), ROW)
    specimen = Specimen(Odd("straight through"), ROW, gradient="surrogate", reason="rounding has no slope")
    gradient, *others = check_specimen(specimen).verdicts
    assert (gradient.outcome, gradient.detail) == ("skipped", "declared a surrogate: rounding has no slope")
    assert {verdict.outcome for verdict in others} == {"holds"}


class Through(lm.Layer):
    def __init__(self, function):
        self.function = function

    def forward_pass(self, ctx, x):
        return self.function(x)

    def backward_pass(self, ctx, dy):
        return self.function(dy)


def test_a_report_says_what_agreed_and_shows_no_address():
    report = check_layer(Through(lambda x: 2.0 * x), ROW)
    said = {verdict.law: verdict.detail for verdict in report.verdicts}
    assert said["gradient"].startswith("1 gradient and difference quotients agree, largest relative error ")
    assert said["slicing"].startswith("slices give what the whole batch gives, largest relative difference ")
    assert said["backends"].startswith("numpy and strict agree, largest relative difference ")
    assert re.fullmatch(r"onnxruntime agrees, largest error \S+; Mul", said["onnx"])
    assert str(report).startswith(
        "Through(<function test_a_report_says_what_agreed_and_shows_no_address.<locals>.<lambda"
    )
    assert " at 0x" not in str(report) + repr(report)
