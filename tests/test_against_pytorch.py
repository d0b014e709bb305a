"""Every layer, loss and optimizer that PyTorch has, against PyTorch: forward and all gradients, in float64, over random
configurations. Runs where PyTorch is found; ``-s`` prints the largest errors as a table.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import lamella as lm
from lamella import losses, optimizers, registry
from lamella.testing import Specimen
from lamella.testing.case import Case
from lamella_layers import (
    GRU,
    LSTM,
    RNN,
    Activation,
    Add,
    Average,
    AveragePooling1D,
    AveragePooling2D,
    BatchNormalization,
    Bidirectional,
    Concatenate,
    ConstantPadding2D,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    Cropping2D,
    Dense,
    DepthwiseConv2D,
    Dot,
    Dropout,
    Embedding,
    Flatten,
    GaussianNoise,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    GroupNormalization,
    LayerNormalization,
    Maximum,
    MaxPooling1D,
    MaxPooling2D,
    Minimum,
    MultiHeadAttention,
    Multiply,
    Normalization,
    Permute,
    PositionEmbedding,
    PReLU,
    Rescaling,
    Reshape,
    RMSNormalization,
    ScaledDotProductAttention,
    SeparableConv2D,
    SpatialDropout2D,
    Subtract,
    UpSampling2D,
    ZeroPadding2D,
)

try:
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)  # arrays are small
except ModuleNotFoundError:
    torch = None

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
REPEATS = 12
LIMIT = 1e-11  # of an error, relative to the largest number of the array where that is above 1

NOT_IN_PYTORCH = {
    Dropout: "its random numbers are its own; tests/test_families.py counts them",
    SpatialDropout2D: "its random numbers are its own; tests/test_families.py counts them",
    GaussianNoise: "its random numbers are its own; tests/test_families.py measures their moments",
    Normalization: "PyTorch has none; tests/test_preprocessing.py compares it with the statistics themselves",
    Rescaling: "PyTorch has none; its formula is one line",
    optimizers.Lion: "PyTorch has none; tests/test_against_keras.py compares it with Keras's",
}


class Example(NamedTuple):
    """A layer or a loss, its inputs, and ``same(p, *inputs)``, which is PyTorch's with the parameters and state ``p``.

    ``training`` tells where the two must agree: in training, in inference, or in both.
    """

    layer: Any
    inputs: tuple[np.ndarray, ...]
    same: Callable[..., Any]
    training: tuple[bool, ...] = (True, False)


class Draw:
    """Random sizes and arrays. A test that fails shows its seed."""

    def __init__(self, seed: int):
        self.seed, self.rng = seed, np.random.default_rng(seed)

    def __repr__(self) -> str:
        return f"Draw(seed={self.seed})"

    def size(self, low: int, high: int, count: int | None = None) -> Any:
        drawn = self.rng.integers(low, high, count)
        return int(drawn) if count is None else tuple(map(int, drawn))

    def chance(self) -> bool:
        return bool(self.rng.integers(2))

    def one_of(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def array(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape)

    def image(self) -> np.ndarray:
        return self.array(*self.size(1, 4, 2), *self.size(1, 8, 2))

    def cut(self, rows: int) -> list[int]:
        """Sizes of slices of a batch."""
        ends = [0, *sorted(self.rng.choice(rows - 1, self.size(0, rows), replace=False) + 1), rows]
        return [int(b - a) for a, b in itertools.pairwise(ends)]


CASES: dict[str, tuple[type, Callable[[Draw, Any], Example]]] = {}


def case(*classes: type, label: str = "") -> Callable[[Any], Any]:
    """Let a function draw examples of some classes."""

    def add(function: Any) -> Any:
        CASES.update({f"{cls.__name__} {label}".strip(): (cls, function) for cls in classes})
        return function

    return add


# Dense and activations


@case(Dense)
def _(draw, layer):
    x, use_bias = draw.array(*draw.size(1, 6, draw.size(1, 4)), draw.size(1, 8)), draw.chance()
    activation = draw.one_of(None, "tanh")
    f = torch.tanh if activation else lambda y: y
    return Example(layer(draw.size(1, 8), use_bias=use_bias, activation=activation), (x,),
                   lambda p, x: f(F.linear(x, p["kernel"].T, p.get("bias"))))  # fmt: skip


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "elu": lambda x: F.elu(x),
    "gelu": lambda x: F.gelu(x),
    "hard_sigmoid": lambda x: torch.clamp(x / 6.0 + 0.5, 0.0, 1.0),  # whose slope PyTorch rounds to float32
    "hard_silu": lambda x: F.hardswish(x),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "linear": lambda x: x + 0.0,
    "mish": lambda x: F.mish(x),
    "relu": lambda x: F.relu(x),
    "relu6": lambda x: F.relu6(x),
    "selu": lambda x: F.selu(x),
    "sigmoid": lambda x: torch.sigmoid(x),
    "silu": lambda x: F.silu(x),
    "softmax": lambda x: F.softmax(x, -1),
    "softplus": lambda x: F.softplus(x, threshold=1e9),  # by default PyTorch takes a straight line from 20 on
    "softsign": lambda x: F.softsign(x),
    "tanh": lambda x: torch.tanh(x),
}
for name, function in ACTIVATIONS.items():

    @case(Activation, label=name)
    def _(draw, layer, name=name, function=function):
        return Example(layer(name), (10.0 ** draw.size(0, 3) * draw.image(),), lambda p, x: function(x))


@case(Activation, label="softmax, axis")
def _(draw, layer):
    axis = draw.size(1, 4)
    return Example(layer("softmax", axis=axis), (draw.image(),), lambda p, x: F.softmax(x, axis))


@case(PReLU)
def _(draw, layer):
    return Example(layer(shared_axes=(2, 3)), (draw.image(),), lambda p, x: F.prelu(x, p["alpha"][:, 0, 0]))


# Convolution


def window(draw, axes, *, strides=4, dilations=4):
    """Arguments of a layer with windows, and the sizes of an image that is large enough for them."""
    size, s = draw.size(1, 5, axes), draw.size(1, strides, axes)
    d = draw.size(1, dilations, axes)
    padding = draw.one_of("valid", "same", tuple(draw.size(0, 4, 2) for _ in range(axes)))
    image = tuple((k - 1) * b + draw.size(1, 8) for k, b in zip(size, d, strict=True))
    return size, s, d, padding, image


def plain(values):
    """One number where there is one axis, as layers for series take it."""
    return values[0] if isinstance(values, tuple) and len(values) == 1 else values


def padded(x, size, strides, dilations, padding):
    """An image with its border: PyTorch's convolutions pad both sides alike, and know "same" for stride 1 only."""
    if padding == "valid":
        return x
    if padding == "same":
        rows = zip(x.shape[2:], size, strides, dilations, strict=True)
        missing = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in rows]
        padding = [(m // 2, m - m // 2) for m in missing]
    return F.pad(x, [side for pair in reversed(padding) for side in pair])


@case(Conv1D, Conv2D)
def _(draw, layer):
    axes = 1 if layer is Conv1D else 2
    size, s, d, padding, image = window(draw, axes)
    groups = draw.size(1, 4)
    x = draw.array(draw.size(1, 4), groups * draw.size(1, 4), *image)
    ours = layer(groups * draw.size(1, 4), plain(size), strides=plain(s), dilation_rate=plain(d),
                 padding=plain(padding), groups=groups, use_bias=draw.chance())  # fmt: skip

    def same(p, x):
        conv = (F.conv1d, F.conv2d)[axes - 1]
        return conv(padded(x, size, s, d, padding), p["kernel"], p.get("bias"), stride=s, dilation=d, groups=groups)

    return Example(ours, (x,), same)


@case(DepthwiseConv2D)
def _(draw, layer):
    size, s, d, padding, image = window(draw, 2)
    x = draw.array(*draw.size(1, 4, 2), *image)
    ours = layer(
        size, depth_multiplier=draw.size(1, 4), strides=s, dilation_rate=d, padding=padding, use_bias=draw.chance()
    )

    def same(p, x):
        x, groups = padded(x, size, s, d, padding), x.shape[1]
        return F.conv2d(x, p["kernel"], p.get("bias"), stride=s, dilation=d, groups=groups)

    return Example(ours, (x,), same)


@case(SeparableConv2D)
def _(draw, layer):
    size, s, d, padding, image = window(draw, 2)
    x, filters, depth = draw.array(*draw.size(1, 4, 2), *image), draw.size(1, 5), draw.size(1, 4)
    ours = layer(filters, size, strides=s, padding=padding, dilation_rate=d, depth_multiplier=depth)

    def same(p, x):
        x, groups = padded(x, size, s, d, padding), x.shape[1]
        apart = F.conv2d(x, p["depthwise.kernel"], stride=s, dilation=d, groups=groups)
        return F.conv2d(apart, p["pointwise.kernel"], p["pointwise.bias"])

    return Example(ours, (x,), same)


@case(Conv2DTranspose)
def _(draw, layer):
    size, s, d = draw.size(1, 5, 2), draw.size(1, 4, 2), draw.size(1, 4, 2)
    extent = [(k - 1) * b + 1 for k, b in zip(size, d, strict=True)]
    pads = tuple(min(draw.size(0, 3), (e - 1) // 2) for e in extent)  # both sides alike, as PyTorch has them
    more = tuple(draw.size(0, stride) for stride in s)
    padding = draw.one_of("same", tuple((k, k) for k in pads))
    groups = draw.size(1, 3)
    x = draw.array(draw.size(1, 4), groups * draw.size(1, 3), *draw.size(1, 7, 2))
    ours = layer(groups * draw.size(1, 4), size, strides=s, padding=padding, dilation_rate=d, groups=groups,
                 output_padding=0 if padding == "same" else more, use_bias=draw.chance())  # fmt: skip
    how = {"stride": s, "dilation": d, "groups": groups}

    def same(p, x):
        if padding != "same":
            return F.conv_transpose2d(x, p["kernel"], p.get("bias"), padding=pads, output_padding=more, **how)
        y = F.conv_transpose2d(x, p["kernel"], p.get("bias"), **how)  # all of it, and then what "same" leaves
        edges = [max(e - stride, 0) // 2 for e, stride in zip(extent, s, strict=True)]
        ends = [edge + n * stride for edge, n, stride in zip(edges, x.shape[2:], s, strict=True)]
        y = y[:, :, edges[0] : ends[0], edges[1] : ends[1]]
        # where windows leave gaps, what is missing at the end holds the bias alone
        missing = [n * stride - m for n, stride, m in zip(x.shape[2:], s, y.shape[2:], strict=True)]
        bias = p["bias"][:, None, None] if "bias" in p else 0.0
        return F.pad(y - bias, (0, missing[1], 0, missing[0])) + bias

    return Example(ours, (x,), same)


# Pooling


@case(MaxPooling1D, MaxPooling2D, AveragePooling1D, AveragePooling2D)
def _(draw, layer):
    axes = 1 if "1D" in layer.__name__ else 2
    size, s = draw.size(1, 5, axes), draw.size(1, 4, axes)
    pads = tuple(draw.size(0, k // 2 + 1) for k in size)  # both sides alike, at most half, as PyTorch has them
    x = draw.array(*draw.size(1, 4, 2), *(k + draw.size(0, 6) for k in size))
    ours = layer(plain(size), plain(s), plain(tuple((k, k) for k in pads)))
    if layer in (MaxPooling1D, MaxPooling2D):
        return Example(ours, (x,), lambda p, x: (F.max_pool1d, F.max_pool2d)[axes - 1](x, size, s, pads))
    same = functools.partial((F.avg_pool1d, F.avg_pool2d)[axes - 1], count_include_pad=False)
    return Example(ours, (x,), lambda p, x: same(x, size, s, pads))


@case(GlobalMaxPooling1D, GlobalMaxPooling2D, GlobalAveragePooling1D, GlobalAveragePooling2D)
def _(draw, layer):
    x, keep = draw.image(), draw.chance()
    x = x[:, :, 0] if "1D" in layer.__name__ else x
    over = tuple(range(2, x.ndim))
    if "Max" in layer.__name__:
        return Example(layer(keepdims=keep), (x,), lambda p, x: x.amax(over, keepdim=keep))
    return Example(layer(keepdims=keep), (x,), lambda p, x: x.mean(over, keepdim=keep))


# Normalization


def spread(draw, *shape):
    """Numbers whose mean is not 0 and whose deviation is not 1."""
    return 3.0 * draw.array(*shape) + 10.0 * draw.array()


def channels_second(function):
    """A function of (N, C, ...) for (N, C), (N, T, C) and (N, C, H, W)."""

    def moved(x):
        return function(x.movedim(-1, 1)).movedim(1, -1) if x.ndim == 3 else function(x)

    return moved


def batch_normalization_case(training):
    @case(BatchNormalization, label="training" if training else "inference")
    def _(draw, layer):
        x, epsilon = spread(draw, *draw.size(2, 6, draw.size(2, 5))), draw.one_of(1e-3, 1e-5)

        def same(p, x):
            running = (None, None) if training else (p["mean"], p["variance"])
            how = {"weight": p["gamma"], "bias": p["beta"], "training": training, "eps": epsilon}
            return channels_second(lambda x: F.batch_norm(x, *running, **how))(x)

        return Example(layer(epsilon=epsilon), (x,), same, training=(training,))


batch_normalization_case(training=True)
batch_normalization_case(training=False)


@case(LayerNormalization, RMSNormalization)
def _(draw, layer):
    shape, epsilon = draw.size(2, 7, draw.size(2, 5)), draw.one_of(1e-3, 1e-5)
    last = draw.size(1, len(shape))

    def norm(p, x, shape):
        if layer is RMSNormalization:
            return F.rms_norm(x, shape, p["gamma"], epsilon)
        return F.layer_norm(x, shape, p["gamma"], p["beta"], epsilon)

    x = spread(draw, *shape)
    if draw.chance():
        return Example(layer(tuple(range(-last, 0)), epsilon), (x,), lambda p, x: norm(p, x, shape[-last:]))
    return Example(layer(last, epsilon), (x,),
                   lambda p, x: norm(p, x.movedim(last, -1), shape[last : last + 1]).movedim(-1, last))  # fmt: skip


@case(GroupNormalization)
def _(draw, layer):
    groups, epsilon = draw.size(1, 4), draw.one_of(1e-3, 1e-5)
    channels, (n, *size) = 2 * groups * draw.size(1, 3), draw.size(1, 5, draw.size(1, 4))
    shape = (n, *size, channels) if len(size) == 1 else (n, channels, *size)
    return Example(layer(groups, epsilon=epsilon), (spread(draw, *shape),), lambda p, x: channels_second(
        lambda x: F.group_norm(x, groups, p["gamma"], p["beta"], epsilon))(x))  # fmt: skip


# Sequences


def block_order(array, order):
    """Blocks of gates along the last axis, in another order, which is the first axis in PyTorch."""
    blocks = array.chunk(len(order), -1)
    return torch.cat([blocks[k] for k in order], -1).movedim(-1, 0)


def recurrent(draw, kind, *, both):
    rows, steps, features, units = draw.size(1, 7, 4)
    packed, given, sequences = draw.chance(), draw.chance(), draw.chance()
    reverse = not both and not packed and draw.chance()  # PyTorch has the reverse as one of both directions only
    options: dict[str, Any] = {"return_sequences": sequences, "return_state": True, "reverse": reverse}
    make, order = {"RNN": (torch.nn.RNN, [0]), "LSTM": (torch.nn.LSTM, [0, 1, 2, 3]), "GRU": (torch.nn.GRU, [1, 0, 2])}[
        kind.__name__
    ]
    theirs = {}
    if kind is RNN:
        options["activation"] = theirs["nonlinearity"] = draw.one_of("tanh", "relu")
    network = make(features, units, batch_first=True, bidirectional=both, dtype=torch.float64, **theirs)
    layer, directions, states = kind(units, **options), 1 + both, 1 + (kind is LSTM)
    x = draw.array(rows, steps, features)
    lengths = (draw.rng.integers(1, steps + 1, rows),) if packed else ()
    begin = tuple(draw.array(rows, units) for _ in range(states * directions)) if given else ()

    def same(p, x, *more):
        weights = {}
        for place, suffix in (("forward.", ""), ("backward.", "_reverse"))[:directions]:
            own = {name.removeprefix(place): value for name, value in p.items() if not both or name.startswith(place)}
            bias = own["bias"][None]
            second = own.get("recurrent_bias", torch.zeros_like(own["bias"]))[None]
            named = {
                "weight_ih": own["kernel"],
                "weight_hh": own["recurrent_kernel"],
                "bias_ih": bias,
                "bias_hh": second,
            }
            for key, value in named.items():
                turned = block_order(value, order)
                weights[f"{key}_l0{suffix}"] = turned[:, 0] if "bias" in key else turned
        first = more[len(lengths) :]  # ours: h and c of one direction, then of the other
        stacked = tuple(torch.stack(first[k::states]) for k in range(states)) if first else None
        fed = x.flip(1) if reverse else x
        if packed:
            fed = torch.nn.utils.rnn.pack_padded_sequence(fed, more[0], batch_first=True, enforce_sorted=False)
        given = stacked[0] if stacked and states == 1 else stacked
        y, last = torch.func.functional_call(network, weights, (fed, given))
        if packed:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=steps)
        last = (last,) if states == 1 else last
        y = y.flip(1) if reverse else y
        y = y if sequences else torch.cat(tuple(last[0]), -1)
        return (y, *(state[d] for d in range(directions) for state in last))

    return Example(Bidirectional(layer) if both else layer, (x, *lengths, *begin), same)


@case(RNN, LSTM, GRU)
def _(draw, layer):
    return recurrent(draw, layer, both=False)


@case(Bidirectional)
def _(draw, layer):
    return recurrent(draw, draw.one_of(RNN, LSTM, GRU), both=True)


@case(ScaledDotProductAttention)
def _(draw, layer):
    n, t, s, heads, f, v = draw.size(1, 6, 6)
    arrays = [draw.array(*size) for size in ((n, t, heads * f), (n, s, heads * v), (n, s, heads * f))]
    causal, size = draw.chance(), draw.one_of(None, (n, t, s), (n, 1, s), (n, s))
    masks = [] if size is None else [draw.rng.integers(0, 3, size) > 0]

    def same(p, query, value, key, mask=None):
        allowed = torch.ones(t, s, dtype=torch.bool)
        allowed = allowed.tril() if causal else allowed
        if mask is not None:
            allowed = allowed & (mask[:, None, None, :] if mask.ndim == 2 else mask[:, None])
        parts = (a.unflatten(2, (heads, -1)).transpose(1, 2) for a in (query, key, value))
        return F.scaled_dot_product_attention(*parts, attn_mask=allowed).transpose(1, 2).flatten(2)

    return Example(layer(heads, causal=causal), (*arrays, *masks), same)


@case(MultiHeadAttention)
def _(draw, layer):
    n, t, s, heads, f, of_key, of_value = draw.size(1, 6, 7)
    width, causal = heads * f, draw.chance()
    inputs = tuple(draw.array(n, *size) for size in ((t, width), (s, of_value), (s, of_key)))
    sizes = {"kdim": of_key, "vdim": of_value, "batch_first": True, "dtype": torch.float64}
    network = torch.nn.MultiheadAttention(width, heads, **sizes)

    def same(p, query, value, key):
        kernels = {name: p[f"{name}.kernel"].T for name in ("query", "key", "value")}
        weights = {f"{name[0]}_proj_weight": kernel for name, kernel in kernels.items()}
        if network.in_proj_weight is not None:  # where all sizes are equal
            weights = {"in_proj_weight": torch.cat(tuple(kernels.values()))}
        weights |= {"in_proj_bias": torch.cat([p[f"{name}.bias"] for name in kernels])}
        weights |= {"out_proj.weight": p["output.kernel"].T, "out_proj.bias": p["output.bias"]}
        future = torch.ones(t, s, dtype=torch.bool).triu(1) if causal else None
        return torch.func.functional_call(network, weights, (query, key, value), {"attn_mask": future})[0]

    return Example(layer(heads, f, causal=causal), inputs, same)


@case(Embedding)
def _(draw, layer):
    n, t, size, width = draw.size(1, 9, 4)
    return Example(layer(size, width), (draw.rng.integers(0, size, (n, t)),),
                   lambda p, x: F.embedding(x, p["embeddings"]))  # fmt: skip


@case(PositionEmbedding)
def _(draw, layer):
    n, t, features, more = draw.size(1, 6, 4)
    return Example(layer(t + more - 1), (draw.array(n, t, features),),
                   lambda p, x: F.embedding(torch.arange(t).expand(n, t), p["positions"]) + 0.0 * x)  # fmt: skip


# Shapes and borders


@case(Flatten)
def _(draw, layer):
    return Example(layer(), (draw.image(),), lambda p, x: x.flatten(1))


@case(Reshape)
def _(draw, layer):
    n, a, b, c = draw.size(1, 6, 4)
    shape = draw.one_of((c, a, b), (-1, a), (b * c, -1), (a * b * c,))
    return Example(layer(shape), (draw.array(n, a, b, c),), lambda p, x: x.reshape(n, *shape))


@case(Permute)
def _(draw, layer):
    dims = tuple(int(k) + 1 for k in draw.rng.permutation(3))
    return Example(layer(dims), (draw.image(),), lambda p, x: x.permute(0, *dims))


@case(UpSampling2D, label="nearest")
def _(draw, layer):
    size = draw.size(1, 5, 2)
    return Example(layer(size), (draw.image(),), lambda p, x: F.interpolate(x, scale_factor=size))


@case(UpSampling2D, label="bilinear")
def _(draw, layer):
    size = draw.size(1, 5, 2)
    how = {"scale_factor": size, "mode": "bilinear", "align_corners": False}
    return Example(layer(size, "bilinear"), (draw.image(),), lambda p, x: F.interpolate(x, **how))


@case(ZeroPadding2D, ConstantPadding2D)
def _(draw, layer):
    rows, columns, value = draw.size(0, 4, 2), draw.size(0, 4, 2), float(draw.array())
    options, value = ({}, 0.0) if layer is ZeroPadding2D else ({"value": value}, value)
    ours = layer((rows, columns), **options)
    return Example(ours, (draw.image(),), lambda p, x: F.pad(x, (*columns, *rows), value=value))


@case(Cropping2D)
def _(draw, layer):
    rows, columns = draw.size(0, 4, 2), draw.size(0, 4, 2)
    x = draw.array(2, 3, sum(rows) + draw.size(1, 4), sum(columns) + draw.size(1, 4))
    return Example(layer((rows, columns)), (x,), lambda p, x: F.pad(x, [-k for k in (*columns, *rows)]))


# Merging

MERGES: dict[type, Callable[..., Any]] = {
    Add: lambda *xs: sum(xs),
    Average: lambda *xs: sum(xs) / len(xs),
    Maximum: lambda *xs: functools.reduce(torch.maximum, xs),
    Minimum: lambda *xs: functools.reduce(torch.minimum, xs),
    Multiply: lambda *xs: functools.reduce(torch.mul, xs),
    Subtract: lambda a, b: a - b,
}


@case(*MERGES)
def _(draw, layer):
    n, c, h, w = draw.size(1, 5, 4)
    shapes = ((n, c, h, w), (n, c, 1, 1), (n, 1, h, 1), (n, 1, 1, w))
    xs = tuple(draw.array(*draw.one_of(*shapes)) for _ in range(2 if layer is Subtract else draw.size(2, 4)))
    return Example(layer(), xs, lambda p, *xs: MERGES[layer](*xs))


@case(Concatenate)
def _(draw, layer):
    axis, shape = draw.size(1, 4), draw.size(1, 5, 4)
    xs = tuple(draw.array(*shape[:axis], draw.size(1, 4), *shape[axis + 1 :]) for _ in range(draw.size(2, 5)))
    return Example(layer(axis), xs, lambda p, *xs: torch.cat(xs, axis))


@case(Dot)
def _(draw, layer):
    n, rows, columns, k = draw.size(1, 6, 4)
    normal = draw.chance()
    unit = functools.partial(F.normalize, dim=2) if normal else lambda x: x
    return Example(layer(2, normalize=normal), (draw.array(n, rows, k), draw.array(n, columns, k)),
                   lambda p, a, b: unit(a) @ unit(b).transpose(1, 2))  # fmt: skip


# Losses: one number for each sample, the mean over its other axes


def per_sample(values):
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def of_classes(draw):
    """Shape, and labels of which some do not count, or one-hot rows or shares; options, and what PyTorch calls them."""
    shape = draw.size(2, 7, draw.size(2, 4))
    smoothing = draw.one_of(0.0, float(draw.rng.uniform()))
    theirs = {"label_smoothing": smoothing, "reduction": "none"}
    if draw.chance():
        return shape, draw.rng.dirichlet(np.ones(shape[-1]), shape[:-1]), {"label_smoothing": smoothing}, theirs
    labels, ignored = draw.rng.integers(0, shape[-1], shape[:-1]), draw.one_of(None, 0, -1)
    options = {"label_smoothing": smoothing, "ignore_class": ignored}
    if ignored is None:
        return shape, labels, options, theirs
    return (
        shape,
        np.where(draw.rng.uniform(size=labels.shape) < 0.3, ignored, labels),
        options,
        theirs | {"ignore_index": ignored},
    )


def classes_second(x, t, **options):
    """PyTorch's cross entropy, which wants classes on the second axis."""
    t = t.movedim(-1, 1) if t.ndim == x.ndim else t
    return per_sample(F.cross_entropy(x.movedim(-1, 1), t, **options))


@case(losses.SoftmaxCrossEntropy)
def _(draw, loss):
    shape, target, options, theirs = of_classes(draw)
    return Example(loss(**options), (3.0 * draw.array(*shape), target), lambda p, x, t: classes_second(x, t, **theirs))


@case(losses.CategoricalCrossEntropy)
def _(draw, loss):
    shape, target, options, theirs = of_classes(draw)
    shares = draw.rng.dirichlet(np.full(shape[-1], 3.0), shape[:-1])
    return Example(loss(**options), (shares, target), lambda p, x, t: -classes_of(x.log(), t, **theirs))


def classes_of(log_p, t, *, label_smoothing, reduction, ignore_index=None):
    """The mean over places of log_p at smooth targets, without another softmax."""
    rows = t
    if t.ndim < log_p.ndim:
        rows = F.one_hot(torch.where(t == ignore_index, 0, t) if ignore_index is not None else t, log_p.shape[-1])
    rows = (1.0 - label_smoothing) * rows.to(log_p.dtype) + label_smoothing / log_p.shape[-1]
    if ignore_index is not None:
        rows = rows * (t != ignore_index)[..., None]
    return per_sample((rows * log_p).sum(-1))


@case(losses.SoftmaxFocalCrossEntropy)
def _(draw, loss):
    (shape, target, options, theirs), gamma = of_classes(draw), float(draw.rng.uniform(0.0, 4.0))

    def same(p, x, t):
        log_p = F.log_softmax(x, -1)
        return -classes_of((1.0 - log_p.exp()) ** gamma * log_p, t, **theirs)

    return Example(loss(gamma, **options), (2.0 * draw.array(*shape), target), same)


@case(losses.KLDivergence)
def _(draw, loss):
    shape = draw.size(2, 7, draw.size(2, 4))
    p, t = (draw.rng.dirichlet(np.full(shape[-1], 3.0), shape[:-1]) for _ in range(2))
    return Example(loss(), (p, t), lambda _, p, t: per_sample(F.kl_div(p.log(), t, reduction="none").sum(-1)))


@case(losses.BinaryCrossEntropy, label="logits")
def _(draw, loss):
    shape, smoothing = draw.size(1, 7, draw.size(1, 4)), draw.one_of(0.0, float(draw.rng.uniform()))
    return Example(loss(label_smoothing=smoothing), (10.0 * draw.array(*shape), draw.rng.uniform(size=shape)),
                   lambda p, x, t: per_sample(F.binary_cross_entropy_with_logits(
                       x, (1.0 - smoothing) * t + 0.5 * smoothing, reduction="none")))  # fmt: skip


@case(losses.BinaryCrossEntropy, label="probabilities")
def _(draw, loss):
    shape = draw.size(1, 7, draw.size(1, 4))
    return Example(loss(from_logits=False), (draw.rng.uniform(0.01, 0.99, shape), draw.rng.uniform(size=shape)),
                   lambda p, x, t: per_sample(F.binary_cross_entropy(x, t, reduction="none")))  # fmt: skip


@case(losses.BinaryFocalCrossEntropy)
def _(draw, loss):
    shape, gamma = draw.size(1, 7, draw.size(1, 4)), float(draw.rng.uniform(0.0, 4.0))
    alpha = draw.one_of(None, float(draw.rng.uniform()))

    def same(p, x, t):
        s = torch.sigmoid(x)
        weight = 1.0 if alpha is None else alpha * t + (1.0 - alpha) * (1.0 - t)
        missing = 1.0 - (s * t + (1.0 - s) * (1.0 - t))
        return per_sample(weight * missing**gamma * F.binary_cross_entropy_with_logits(x, t, reduction="none"))

    target = draw.rng.integers(0, 2, shape) if draw.chance() else draw.rng.uniform(size=shape)
    return Example(loss(gamma, alpha), (2.0 * draw.array(*shape), target.astype(float)), same)


@case(losses.Hinge)
def _(draw, loss):
    shape = draw.size(1, 7, draw.size(1, 4))
    return Example(loss(), (draw.array(*shape), draw.rng.integers(0, 2, shape)),
                   lambda p, x, t: per_sample(torch.clamp(1.0 - (2.0 * t - 1.0) * x, min=0.0)))  # fmt: skip


@case(losses.Poisson)
def _(draw, loss):
    shape, log_input = draw.size(1, 7, draw.size(1, 4)), draw.chance()
    x = draw.array(*shape) if log_input else draw.rng.uniform(0.1, 20.0, shape)
    how = {"log_input": log_input, "eps": 1e-7, "reduction": "none"}
    return Example(loss(log_input=log_input), (x, draw.rng.poisson(3.0, shape)),
                   lambda p, x, t: per_sample(F.poisson_nll_loss(x, t, **how)))  # fmt: skip


@case(losses.CosineSimilarity)
def _(draw, loss):
    shape = draw.size(2, 7, draw.size(2, 4))
    return Example(loss(), (draw.array(*shape), draw.array(*shape)),
                   lambda p, x, t: -per_sample(F.cosine_similarity(x, t, -1)))  # fmt: skip


@case(losses.MeanSquaredError, losses.MeanAbsoluteError, losses.Huber, losses.LogCosh, losses.Weighted)
def _(draw, loss):
    shape, delta, weight = draw.size(1, 7, draw.size(1, 4)), *draw.rng.uniform(0.1, 2.0, 2)
    ours, same = {
        losses.MeanSquaredError: (loss, F.mse_loss),
        losses.MeanAbsoluteError: (loss, F.l1_loss),
        losses.Huber: (lambda: loss(delta), functools.partial(F.huber_loss, delta=delta)),
        losses.LogCosh: (loss, lambda x, t, reduction: torch.log(torch.cosh(x - t))),
        losses.Weighted: (lambda: loss("huber", weight), lambda *x, **how: weight * F.huber_loss(*x, **how)),
    }[loss]
    return Example(ours(), (draw.array(*shape), draw.array(*shape)),
                   lambda p, x, t: per_sample(same(x, t, reduction="none")))  # fmt: skip


# Optimizers: ours and PyTorch's with equal options


def optimizer_cases(draw):
    """By class: how ours is made, how PyTorch's, and options that both know by the same or by another name."""
    rate, small = float(draw.rng.uniform(1e-3, 0.1)), 10.0 ** -draw.size(4, 9)
    share, other = (float(b) for b in draw.rng.uniform(0.5, 0.99, 2))
    adam = {"learning_rate": rate, "beta_1": share, "beta_2": other, "epsilon": small}
    torch_adam = {"lr": rate, "betas": (share, other), "eps": small}
    momentum = draw.one_of(0.0, share)
    nesterov, centered = bool(momentum) and draw.chance(), draw.chance()
    o, t = optimizers, torch.optim
    return {
        o.SGD: (
            o.SGD(rate, momentum, nesterov),
            functools.partial(t.SGD, lr=rate, momentum=momentum, nesterov=nesterov),
        ),
        o.Adam: (o.Adam(**adam, amsgrad=centered), functools.partial(t.Adam, **torch_adam, amsgrad=centered)),
        o.AdamW: (
            o.AdamW(**adam, weight_decay=rate, amsgrad=centered, exclude_from_weight_decay="*.bias"),
            lambda tensors: t.AdamW(
                [
                    {"params": [x for x in tensors if x.ndim > 1], "weight_decay": rate},
                    {"params": [x for x in tensors if x.ndim == 1], "weight_decay": 0.0},
                ],
                **torch_adam,
                amsgrad=centered,
            ),
        ),
        o.Nadam: (
            o.Nadam(**adam, momentum_decay=small),
            functools.partial(t.NAdam, **torch_adam, momentum_decay=small),
        ),
        o.Adamax: (o.Adamax(**adam), functools.partial(t.Adamax, **torch_adam)),
        o.GradientAccumulation: (
            o.GradientAccumulation(o.Adam(**adam), 3),
            lambda tensors: Thirds(tensors, torch_adam),
        ),
        o.ExponentialMovingAverage: (
            o.ExponentialMovingAverage(o.SGD(rate), share),
            functools.partial(t.SGD, lr=rate),
        ),
        o.LearningRateMultipliers: (
            o.LearningRateMultipliers(o.SGD(rate, momentum), {"dense_1.*": share, "*.bias": 2.0}),
            lambda tensors: t.SGD(
                [
                    {"params": [x], "lr": rate * (share if k < 2 else 1.0) * (2.0 if x.ndim == 1 else 1.0)}
                    for k, x in enumerate(tensors)
                ],
                momentum=momentum,
            ),
        ),
        o.RMSprop: (
            o.RMSprop(rate, share, momentum, small, centered),
            functools.partial(t.RMSprop, lr=rate, alpha=share, momentum=momentum, eps=small, centered=centered),
        ),
        o.Adagrad: (
            o.Adagrad(rate, 0.5, small),
            functools.partial(t.Adagrad, lr=rate, initial_accumulator_value=0.5, eps=small),
        ),
        o.Adadelta: (o.Adadelta(rate, share, small), functools.partial(t.Adadelta, lr=rate, rho=share, eps=small)),
    }


class Thirds:
    """PyTorch's way to accumulate: three backward passes of a third of the loss before each step."""

    def __init__(self, tensors: Any, options: Any) -> None:
        self.optimizer, self.calls, self.sums = torch.optim.Adam(tensors, **options), 0, None
        self.tensors = tensors

    def zero_grad(self) -> None:
        for tensor in self.tensors:
            tensor.grad = None

    def step(self) -> None:
        self.calls += 1
        own = [tensor.grad / 3.0 for tensor in self.tensors]
        self.sums = own if self.sums is None else [a + b for a, b in zip(self.sums, own, strict=True)]
        if self.calls % 3 == 0:
            for tensor, mean in zip(self.tensors, self.sums, strict=True):
                tensor.grad = mean
            self.optimizer.step()
            self.sums = None


OPTIMIZERS = [optimizers.SGD, optimizers.Adam, optimizers.AdamW, optimizers.RMSprop, optimizers.Adagrad,
              optimizers.Adadelta, optimizers.Nadam, optimizers.Adamax, optimizers.GradientAccumulation,
              optimizers.ExponentialMovingAverage, optimizers.LearningRateMultipliers]  # fmt: skip


# The comparison


@pytest.fixture
def draw() -> Draw:
    return Draw(int(np.random.default_rng().integers(1 << 30)))


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, float]]]:
    """The largest errors, by row and column; printed in the end."""
    rows: dict[str, dict[str, float]] = {}
    yield rows
    print(f"\n\n{'largest error in float64':<28}     forward      inputs  parameters")
    for name, row in rows.items():
        cells = (f"{row[column]:.1e}" if column in row else "-" for column in ("forward", "inputs", "parameters"))
        print(f"{name:<28}" + "".join(f"{cell:>12}" for cell in cells))


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """NAdam keeps the product of its momenta in PyTorch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def note(row, column, ours, theirs, words):
    """Keep the largest error, and fail where it is above the limit."""
    theirs = np.asarray(theirs.detach())
    assert ours.shape == theirs.shape, words
    scale = max(1.0, np.abs(theirs).max(initial=0.0))
    error = float(np.abs(ours - theirs).max(initial=0.0)) / scale
    row[column] = max(row.get(column, 0.0), error)
    assert error <= LIMIT, f"{words}: {column} differ by {error:.1e}"


@needs_torch
@pytest.mark.filterwarnings("ignore:.*softmax.* runs (along an axis of size 1|over one key)")  # drawn at random
@pytest.mark.filterwarnings("ignore:.*the shape is that of images with channels last")
@pytest.mark.parametrize("name", CASES)
def test_layers_and_losses_agree(name, draw, table):
    cls, make = CASES[name]
    row = table.setdefault(name, {})
    for _ in range(REPEATS):
        example = make(draw, cls)
        assert type(example.layer) is cls
        compare(example, draw.one_of(*example.training), draw, row)


def spec_of(x):
    """The spec of an input, with the limits that losses ask of their targets."""
    limits = {"low": min(0, int(x.min())), "high": int(x.max()) + 1} if x.dtype.kind == "i" else {}
    if x.dtype.kind == "f" and x.min() >= 0.0 and x.max() <= 1.0:
        limits = {"low": 0, "high": 1}
    return lm.ArraySpec(("N", *x.shape[1:]), {"f": "float32", "i": "int64", "b": "bool"}[x.dtype.kind], **limits)


def compare(example, training, draw, row):
    layer, inputs = example.layer, example.inputs
    subject = layer.named("it") if isinstance(layer, lm.Layer) else layer
    bench = Case(Specimen(subject, tuple(map(spec_of, inputs))))
    model, words = bench.model("float64"), f"{layer} on {[x.shape for x in inputs]}, {training=}"
    for name, value in model.state.items():
        model.state[name] = 0.5 + np.abs(draw.array(*value.shape))
    own = {name.removeprefix("it").lstrip("./"): np.array(value) for name, value in model.parameters.items()}
    parameters = {name: torch.tensor(value, requires_grad=True) for name, value in own.items()}
    state = {name.removeprefix("it."): torch.tensor(np.array(value)) for name, value in model.state.items()}
    tensors = [torch.tensor(x, requires_grad=wanted) for x, wanted in zip(inputs, bench.wants, strict=True)]

    expected = example.same(parameters | state, *tensors)
    expected = expected if isinstance(expected, tuple) else (expected,)
    weights = tuple(draw.array(*y.shape) for y in expected)
    leaves = [x for x in tensors if x.requires_grad]
    slopes = torch.autograd.grad(expected, [*leaves, *parameters.values()], [torch.tensor(w) for w in weights])

    result = bench.step("float64", inputs, weights, sizes=draw.cut(len(inputs[0])), training=training)
    outputs = [result.predictions] if training else [result.predictions, bench.infer("float64", inputs)]
    for output in outputs:
        for y, theirs in zip(output, expected, strict=True):
            note(row, "forward", y, theirs, words)
    for dx, theirs in zip([dx for dx in result.dx if dx is not None], slopes, strict=False):
        note(row, "inputs", dx, theirs, words)
    for gradient, theirs in zip(result.gradients.values(), slopes[len(leaves) :], strict=True):
        note(row, "parameters", gradient, theirs, words)


@needs_torch
@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
@pytest.mark.usefixtures("float64_by_default")
def test_optimizers_agree(cls, draw, table):
    row = table.setdefault(cls.__name__, {})
    for _ in range(REPEATS // 3):
        ours, theirs = optimizer_cases(draw)[cls]
        model = lm.Sequential([Dense(4, activation="tanh"), Dense(2)], input_shape=(3,), dtype="float64")
        tensors = {name: torch.tensor(np.array(value), requires_grad=True) for name, value in model.parameters.items()}
        first, first_bias, second, second_bias = tensors.values()
        other = theirs(list(tensors.values()))
        average = None
        if cls is optimizers.ExponentialMovingAverage:
            module = torch.nn.ParameterList(tensors.values())
            averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(ours.momentum)
            average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=averaging)
            tensors = dict(zip(tensors, module, strict=True))
            first, first_bias, second, second_bias = tensors.values()
            other = theirs(list(tensors.values()))
        for _ in range(12):
            x, y = draw.array(5, 3), draw.array(5, 2)
            loss = model.train_on_batch(x, y, loss="mean_squared_error", optimizer=ours)
            other.zero_grad()
            z = torch.tanh(torch.tensor(x) @ first + first_bias) @ second + second_bias
            expected = F.mse_loss(z, torch.tensor(y))
            expected.backward()
            other.step()
            note(row, "forward", np.asarray(loss), expected, repr(ours))
            for name, value in model.parameters.items():
                note(row, "parameters", value, tensors[name], repr(ours))
            if average is not None:
                average.update_parameters(module)
                for value, theirs_now in zip(model.averaged().parameters.values(), average.module, strict=True):
                    note(row, "parameters", value, theirs_now, repr(ours))


def test_everything_built_in_is_compared_or_says_why_not():
    compared = {cls for cls, _ in CASES.values()} | set(OPTIMIZERS)
    built_in = {
        entry.object
        for kind in ("layers", "losses", "optimizers")
        for entry in registry.entries(kind)
        if entry.plugin.distribution == "lamella"
    }
    assert compared | set(NOT_IN_PYTORCH) == built_in
    assert not compared & set(NOT_IN_PYTORCH)
    given = {entry.name: entry.object for entry in registry.entries("activations")}
    assert {id(given[name]) for name in ACTIVATIONS} == set(map(id, given.values()))  # some have two names
