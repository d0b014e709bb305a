"""Agreement with PyTorch in float64, forward and all gradients, over random configurations; runs where it is found."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

import lamella as lm
from lamella.losses import MeanSquaredError
from lamella_layers import (
    Add,
    Average,
    AveragePooling1D,
    AveragePooling2D,
    Concatenate,
    ConstantPadding2D,
    Cropping2D,
    Dot,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    Maximum,
    MaxPooling1D,
    MaxPooling2D,
    Minimum,
    Multiply,
    Permute,
    PReLU,
    Subtract,
    UpSampling2D,
    ZeroPadding2D,
)

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
REPEATS = 20


class Case(NamedTuple):
    """A layer, its inputs, the same in PyTorch, which takes the inputs and then the parameters, and these by name."""

    layer: lm.Layer
    inputs: tuple[np.ndarray, ...]
    same: Callable[..., Any]
    parameters: Mapping[str, np.ndarray] = MappingProxyType({})


class Draw:
    """Random sizes and arrays."""

    def __init__(self, rng):
        self.rng = rng

    def size(self, low, high, count=None):
        drawn = self.rng.integers(low, high, count)
        return int(drawn) if count is None else tuple(map(int, drawn))

    def array(self, *shape):
        return self.rng.normal(size=shape)

    def image(self):
        return self.array(*self.size(1, 4, 2), *self.size(1, 8, 2))


CASES: dict[str, Callable[[Draw], Case]] = {}


def case(function):
    CASES[function.__name__] = function
    return function


@case
def nearest(draw):
    size = draw.size(1, 5, 2)
    return Case(UpSampling2D(size), (draw.image(),), lambda x: F.interpolate(x, scale_factor=size))


@case
def bilinear(draw):
    size = draw.size(1, 5, 2)
    how = {"scale_factor": size, "mode": "bilinear", "align_corners": False}
    return Case(UpSampling2D(size, "bilinear"), (draw.image(),), lambda x: F.interpolate(x, **how))


@case
def permute(draw):
    dims = tuple(int(k) + 1 for k in draw.rng.permutation(3))
    return Case(Permute(dims), (draw.image(),), lambda x: x.permute(0, *dims))


@case
def padding(draw):
    rows, columns, value = draw.size(0, 4, 2), draw.size(0, 4, 2), float(draw.array())
    layer, value = ((ZeroPadding2D((rows, columns)), 0.0), (ConstantPadding2D((rows, columns), value), value))[
        draw.size(0, 2)
    ]
    return Case(layer, (draw.image(),), lambda x: F.pad(x, (*columns, *rows), value=value))


@case
def cropping(draw):
    rows, columns = draw.size(0, 4, 2), draw.size(0, 4, 2)
    x = draw.array(2, 3, sum(rows) + draw.size(1, 4), sum(columns) + draw.size(1, 4))
    return Case(Cropping2D((rows, columns)), (x,), lambda x: F.pad(x, [-k for k in (*columns, *rows)]))


@case
def pooling(draw):
    axes = draw.size(1, 3)
    size, strides = draw.size(1, 5, axes), draw.size(1, 4, axes)
    pads = tuple(draw.size(0, k // 2 + 1) for k in size)
    x = draw.array(*draw.size(1, 4, 2), *(k + draw.size(0, 6) for k in size))
    arguments = (size, strides, pads) if axes == 2 else (size[0], strides[0], (pads[0], pads[0]))
    if draw.size(0, 2):
        return Case((MaxPooling1D, MaxPooling2D)[axes - 1](*arguments), (x,),
                    lambda x: (F.max_pool1d, F.max_pool2d)[axes - 1](x, size, strides, pads))  # fmt: skip
    same = functools.partial((F.avg_pool1d, F.avg_pool2d)[axes - 1], count_include_pad=False)
    layer = (AveragePooling1D, AveragePooling2D)[axes - 1](*arguments)
    return Case(layer, (x,), lambda x: same(x, size, strides, pads))


@case
def global_pooling(draw):
    x, keep = draw.image(), bool(draw.size(0, 2))
    x = (x[:, :, 0], x)[axes := draw.size(0, 2)]
    over = tuple(range(2, x.ndim))
    if draw.size(0, 2):
        layer = (GlobalAveragePooling1D, GlobalAveragePooling2D)[axes](keepdims=keep)
        return Case(layer, (x,), lambda x: x.mean(over, keepdim=keep))
    layer = (GlobalMaxPooling1D, GlobalMaxPooling2D)[axes](keepdims=keep)
    return Case(layer, (x,), lambda x: x.amax(over, keepdim=keep))


@case
def merging(draw):
    layer, same = (
        (Add, torch.add), (Subtract, torch.sub), (Multiply, torch.mul), (Maximum, torch.maximum),
        (Minimum, torch.minimum), (Average, None),
    )[draw.size(0, 6)]  # fmt: skip
    n, c, h, w = draw.size(1, 5, 4)
    shapes = ((n, c, h, w), (n, c, 1, 1), (n, 1, h, 1), (n, 1, 1, w))
    xs = tuple(draw.array(*shapes[draw.size(0, 4)]) for _ in range(2 if layer is Subtract else draw.size(2, 4)))
    return Case(layer(), xs, lambda *xs: sum(xs) / len(xs) if same is None else functools.reduce(same, xs))


@case
def concatenate(draw):
    axis, shape = draw.size(1, 4), draw.size(1, 5, 4)
    xs = tuple(draw.array(*shape[:axis], draw.size(1, 4), *shape[axis + 1 :]) for _ in range(draw.size(2, 5)))
    return Case(Concatenate(axis), xs, lambda *xs: torch.cat(xs, axis))


@case
def dot(draw):
    n, rows, columns, k = draw.size(1, 6, 4)
    normal = bool(draw.size(0, 2))
    unit = functools.partial(F.normalize, dim=2) if normal else lambda x: x
    return Case(Dot(2, normalize=normal), (draw.array(n, rows, k), draw.array(n, columns, k)),
                lambda a, b: unit(a) @ unit(b).transpose(1, 2))  # fmt: skip


@case
def prelu(draw):
    x = draw.image()
    alpha = draw.array(x.shape[1], 1, 1)
    return Case(PReLU(shared_axes=(2, 3)), (x,), lambda x, a: F.prelu(x, a[:, 0, 0]), {"alpha": alpha})


@pytest.mark.parametrize("name", CASES)
def test_layers_agree_with_pytorch(name, capsys):
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    draw, worst = Draw(np.random.default_rng(seed)), 0.0
    for _ in range(REPEATS):
        layer, inputs, same, parameters = CASES[name](draw)
        nodes = [lm.Input(x.shape[1:]) for x in inputs]
        model = lm.Model(nodes, layer(*nodes), dtype="float64")
        full = {own: parameters[own.rpartition(".")[2]] for own in model.parameters}
        for own, value in full.items():
            model.parameters[own] = value
        given = inputs if len(inputs) > 1 else inputs[0]
        y = model.predict(given)
        dy = draw.array(*y.shape)
        target = y - dy * (y.size / 2)  # the gradient of the mean square is then dy
        _, gradients, dx = model.gradients(given, target, loss=MeanSquaredError(), training=False)
        leaves = [torch.tensor(x, requires_grad=True) for x in (*inputs, *full.values())]
        expected = same(*leaves)
        slopes = torch.autograd.grad(expected, leaves, torch.tensor(dy))
        got = (y, *(dx if len(inputs) > 1 else (dx,)), *(gradients[own] for own in full))
        for a, b in zip(got, (expected.detach(), *slopes), strict=True):
            b = b.numpy()
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13, err_msg=f"{layer} on {[x.shape for x in inputs]}")
            worst = max(worst, np.abs(a - b).max() / max(1.0, np.abs(b).max()))
    with capsys.disabled():
        print(f"\n{name}: largest error {worst:.1e}")
