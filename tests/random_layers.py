"""Random valid configurations of every built-in layer and loss, for the laws to find nothing wrong with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import lamella as lm
import lamella_layers as ll
from lamella import losses, registry
from lamella.testing import Specimen

INTEGERS = ("int8", "int16", "int32", "int64", "uint8")


class Draw:
    """Random choices of what constructors and specs take."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def some(self, low: int, high: int) -> int:
        """An int from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def fraction(self, below: float = 1.0) -> float:
        """In [0, 1), not seldom 0."""
        return self.pick(0.0, *(float(self.rng.random()) * below for _ in range(3)))

    def size(self, most: int = 5) -> int:
        """Of an axis; often 1."""
        return 1 if self.chance(0.2) else self.some(1, most)

    def sizes(self, count: int, *names: str, most: int = 5) -> list[Any]:
        """Of several axes, some of which may have a name."""
        sizes: list[Any] = [self.size(most) for _ in range(count)]
        for name in names:
            if sizes and self.chance(0.25):
                sizes[self.some(0, count - 1)] = name
        return sizes

    def options(self, **options: Any) -> dict[str, Any]:
        """Some of the keyword arguments; the others keep their defaults."""
        return {name: value for name, value in options.items() if self.chance(0.6)}

    def function(self, along_axis: bool = True) -> str:
        names = (entry.name for entry in registry.entries("activations"))
        return self.pick(*(name for name in names if along_axis or name != "softmax"))

    def initializer(self) -> Any:
        return self.pick("he_normal", "glorot_uniform", "ones", "zeros", "orthogonal")

    def several(self, low: int, high: int, axes: int = 2) -> Any:
        """One int for all axes that windows move along, or one for each."""
        return self.some(low, high) if axes == 1 or self.chance(0.4) else (self.some(low, high), self.some(low, high))

    def borders(self, most: int, axes: int = 2) -> Any:
        """In each way in which a border may be written."""
        ends = [(self.some(0, most), self.some(0, most)) for _ in range(2)]
        return self.pick(self.some(0, most), ends[0], *([tuple(ends)] if axes == 2 else []))

    def floats(self, *shape: Any) -> lm.ArraySpec:
        """Floats, now and then within limits."""
        limits: list[dict[str, float]] = [{"low": -1.0, "high": 1.0}, {"low": 0.5}, {"high": 0.0}]
        limits += [{"low": 99.0, "high": 101.0}, {"low": 1e4, "high": 10001.0}]
        return lm.ArraySpec(("N", *shape), **(self.pick(*limits) if self.chance(0.15) else {}))

    def numbers(self, *shape: Any) -> lm.ArraySpec:
        """Floats, integers or bools."""
        integers = lm.ArraySpec(("N", *shape), self.pick(*INTEGERS), low=self.pick(None, 0, 3), high=self.pick(7, 100))
        return self.pick(self.floats(*shape), integers, lm.ArraySpec(("N", *shape), "bool"))

    def axes(self, rank: int) -> Any:
        """One or several different axes after the batch, counted from either end."""
        count = self.some(1, rank - 1)
        axes = [int(axis) - self.pick(0, rank) for axis in 1 + self.rng.permutation(rank - 1)[:count]]
        return axes[0] if count == 1 and self.chance(0.7) else tuple(axes)

    def image(self, channels: int | None = None, axes: int = 2, most: int = 9) -> lm.ArraySpec:
        return self.floats(self.size(4) if channels is None else channels, *self.sizes(axes, most=most))


Configuration = tuple[Any, ...]
"""A layer or a loss, and the specs of its inputs."""


def dense(d: Draw) -> Configuration:
    options = d.options(
        use_bias=d.pick(True, False), activation=d.pick(None, d.function()), kernel_initializer=d.initializer()
    )
    return ll.Dense(d.size(), **options), d.floats(*d.sizes(d.some(0, 3), "T", "S"), d.size(6))


def activation(d: Draw) -> Configuration:
    sizes, function = d.sizes(d.some(0, 4), "T", "S"), d.function()
    axis = d.pick(None, d.some(-len(sizes), len(sizes))) if function == "softmax" else None
    return ll.Activation(function, axis=axis), d.floats(*sizes)


def prelu(d: Draw) -> Configuration:
    sizes = d.sizes(d.some(1, 4), "T", "S")
    shared = {1 + k for k, size in enumerate(sizes) if isinstance(size, str) or d.chance(0.4)}
    axes = d.pick(None, 1) if shared in (set(), {1}) else tuple(d.rng.permutation(list(shared)).tolist())
    return ll.PReLU(shared_axes=axes, alpha_initializer=d.initializer()), d.floats(*sizes)


def embedding(d: Draw) -> Configuration:
    count = d.size(9)
    words = lm.ArraySpec(("N", *d.sizes(d.some(0, 3), "T", "S")), d.pick(*INTEGERS), low=0, high=d.some(1, count))
    return ll.Embedding(count, d.size(), embeddings_initializer=d.initializer()), words


def position_embedding(d: Draw) -> Configuration:
    return ll.PositionEmbedding(d.some(1, 9), initializer=d.initializer()), d.floats(*d.sizes(1, "T", most=9), d.size())


def convolution(kind: type[lm.Layer]) -> Callable[[Draw], Configuration]:
    axes = 1 if kind is ll.Conv1D else 2

    def draw(d: Draw) -> Configuration:
        groups = d.pick(1, d.some(1, 4))
        options = d.options(
            strides=d.several(1, 3, axes),
            padding=d.pick("valid", "same", d.borders(3, axes)),
            dilation_rate=d.several(1, 3, axes),
            use_bias=d.pick(True, False),
            activation=d.pick(None, d.function(along_axis=False)),
        )
        if kind in (ll.DepthwiseConv2D, ll.SeparableConv2D):
            options |= d.options(depthwise_initializer=d.initializer(), depth_multiplier=d.some(1, 3))
        else:
            options |= d.options(kernel_initializer=d.initializer()) | {"groups": groups}
        if kind is ll.SeparableConv2D:
            options |= d.options(pointwise_initializer=d.initializer())
        if kind is ll.Conv2DTranspose:
            options |= d.options(output_padding=d.several(0, 2))
        filters = () if kind is ll.DepthwiseConv2D else (groups * d.size(3),)
        most = 5 if kind is ll.Conv2DTranspose else 9
        return kind(*filters, d.several(1, 4, axes), **options), d.image(groups * d.size(3), axes, most)

    return draw


def pooling(kind: type[lm.Layer], axes: int) -> Callable[[Draw], Configuration]:
    def draw(d: Draw) -> Configuration:
        options = d.options(
            strides=d.pick(None, d.several(1, 4, axes)), padding=d.pick("valid", "same", d.borders(2, axes))
        )
        return kind(d.several(1, 4, axes), **options), d.image(axes=axes)

    return draw


def global_pooling(kind: type[lm.Layer], axes: int) -> Callable[[Draw], Configuration]:
    return lambda d: (kind(keepdims=d.pick(True, False)), d.floats(d.size(), *d.sizes(axes, "T", "S")))


def batch_normalization(d: Draw) -> Configuration:
    options = d.options(momentum=d.fraction(), epsilon=10.0 ** -d.some(1, 8))
    axis, x = by_channels(d, d.size(6))
    return ll.BatchNormalization(**options, axis=axis), x


def group_normalization(d: Draw) -> Configuration:
    groups = d.size(3)
    axis, x = by_channels(d, groups * d.size(3))
    if "T" in x.shape or "S" in x.shape:  # at a size of 1, groups of one number are left to onnxruntime's rounding
        axis, x = by_channels(d, groups * d.some(2, 4))
    return ll.GroupNormalization(groups, **d.options(epsilon=10.0 ** -d.some(1, 8)), axis=axis), x


def by_channels(d: Draw, channels: int) -> Configuration:
    """The axis of the channels, as the layer is told, and a spec that has so many there."""
    return d.pick(
        (d.pick(None, 1, -1), d.floats(channels)),
        (d.pick(None, -1), d.floats(d.pick("T", d.size()), channels)),
        (1, d.floats(channels, d.pick("T", d.size()))),
        (d.pick(None, 1), d.floats(channels, *d.sizes(2, "T", "S"))),
    )


def feature_normalization(kind: type[lm.Layer]) -> Callable[[Draw], Configuration]:
    def draw(d: Draw) -> Configuration:
        sizes = d.sizes(d.some(1, 4), "T")
        return kind(d.axes(len(sizes) + 1), **d.options(epsilon=10.0 ** -d.some(1, 8))), d.floats(*sizes)

    return draw


def normalization(d: Draw) -> Configuration:
    sizes = d.sizes(d.some(1, 3), "T")
    rank = len(sizes) + 1
    axes = d.axes(rank)
    places = sorted(axis % rank for axis in (axes if isinstance(axes, tuple) else (axes,)))
    shape = () if d.chance(0.3) else tuple(sizes[k - 1] for k in places)
    if any(isinstance(size, str) for size in shape):
        shape = ()
    mean, variance = 10.0 * d.rng.standard_normal(shape), 10.0 ** d.rng.uniform(-3.0, 3.0, shape)
    variance = np.where(d.rng.random(shape) < 0.2, 0.0, variance)
    axes = d.pick(None, axes) if shape == () else axes
    return ll.Normalization(mean=mean.tolist(), variance=variance.tolist(), axis=axes), d.numbers(*sizes)


def rescaling(d: Draw) -> Configuration:
    scale, offset = (10.0 ** d.some(-3, 2) * d.pick(-1.0, 1.0) * d.pick(0.0, 1.0, 0.3) for _ in range(2))
    return ll.Rescaling(scale, **d.options(offset=offset)), d.numbers(*d.sizes(d.some(0, 3), "T", "S"))


def noise(kind: type[lm.Layer]) -> Callable[[Draw], Configuration]:
    def draw(d: Draw) -> Configuration:
        if kind is ll.SpatialDropout2D:
            return kind(d.fraction()), d.image()
        strength = d.pick(0.0, 1e-3, 0.5, 20.0) if kind is ll.GaussianNoise else d.fraction()
        return kind(strength), d.floats(*d.sizes(d.some(0, 4), "T", "S"))

    return draw


def flatten(d: Draw) -> Configuration:
    return ll.Flatten(), d.numbers(*d.sizes(d.some(0, 4)))


def reshape(d: Draw) -> Configuration:
    factors = [d.size(4) for _ in range(d.some(1, 4))]

    def shared_out(count: int) -> list[int]:
        places = d.rng.integers(count, size=len(factors))
        return [math.prod(f for f, place in zip(factors, places, strict=True) if place == k) for k in range(count)]

    shape, given = shared_out(d.some(1, 4)), shared_out(d.some(1, 4))
    if d.chance(0.4):
        shape[d.some(0, len(shape) - 1)] = -1
    return ll.Reshape(shape[0] if len(shape) == 1 and d.chance(0.5) else tuple(shape)), d.numbers(*given)


def permute(d: Draw) -> Configuration:
    sizes = d.sizes(d.some(1, 4), "T", "S")
    return ll.Permute(tuple((1 + d.rng.permutation(len(sizes))).tolist())), d.numbers(*sizes)


def up_sampling(d: Draw) -> Configuration:
    return ll.UpSampling2D(d.several(1, 3), **d.options(interpolation=d.pick("nearest", "bilinear"))), d.image(most=5)


def border(kind: type[lm.Layer]) -> Callable[[Draw], Configuration]:
    def draw(d: Draw) -> Configuration:
        more = d.options(value=d.pick(-1.5, 0, 1e3)) if kind is ll.ConstantPadding2D else {}
        return kind(d.borders(3), **more), d.image()

    return draw


def merging(kind: type[lm.Layer]) -> Callable[[Draw], Configuration]:
    def draw(d: Draw) -> Configuration:
        whole = d.sizes(d.some(0, 4), "T", "S")
        inputs = []
        for _ in range(2 if kind is ll.Subtract else d.some(2, 4)):
            sizes = [1 if d.chance(0.2) else size for size in whole]
            inputs.append(d.floats(*(sizes[d.some(0, len(sizes)) :] if d.chance(0.2) else sizes)))
        return kind(), *inputs

    return draw


def concatenate(d: Draw) -> Configuration:
    first = d.numbers(*d.sizes(d.some(1, 4), "T"))
    rank = len(first.shape)
    place = d.some(1, rank - 1)
    shapes = [(*first.shape[:place], d.size(), *first.shape[place + 1 :]) for _ in range(d.some(2, 4))]
    return ll.Concatenate(d.pick(place, place - rank)), *(first.replace(shape=shape) for shape in shapes)


def dot(d: Draw) -> Configuration:
    along = d.pick("K", *(d.size(6) for _ in range(4)))
    axes, specs = [], []
    for name in "AB":
        sizes = d.sizes(d.some(0, 2), name)
        place = d.some(0, len(sizes))
        specs.append(d.floats(*sizes[:place], along, *sizes[place:]))
        axes.append(d.pick(place + 1, place - len(sizes) - 1))
    return ll.Dot(axes[0] if axes[0] == axes[1] else tuple(axes), **d.options(normalize=d.pick(True, False))), *specs


def attention(d: Draw) -> Configuration:
    heads, t, s = d.size(3), d.pick("T", d.size()), d.pick("S", d.size())
    features, own = heads * d.size(3), heads * d.size(3)
    specs = [d.floats(t, features), d.floats(s, own), d.floats(s, features)]
    options = d.options(causal=d.pick(True, False), dropout=d.fraction(0.9))
    return ll.ScaledDotProductAttention(heads, **options), *specs, *mask(d, t, s)


def multi_head_attention(d: Draw) -> Configuration:
    t, s = d.pick("T", d.size()), d.pick("S", d.size())
    count = d.some(1, 3)
    specs = [d.floats(t, d.size()), d.floats(s, d.size()), d.floats(s, d.size())][:count]
    options = d.options(
        value_dim=d.size(3),
        dropout=d.fraction(0.9),
        use_bias=d.pick(True, False),
        causal=d.pick(True, False),
        kernel_initializer=d.initializer(),
    )
    return ll.MultiHeadAttention(d.size(3), d.size(3), **options), *specs, *mask(d, t, t if count == 1 else s)


def mask(d: Draw, t: Any, s: Any) -> list[lm.ArraySpec]:
    """A mask of one of the shapes that attention takes, or none."""
    shape = d.pick((t, s), (1, s), (t, 1), (s,))
    return [lm.ArraySpec(("N", *shape), "bool")] if d.chance(0.6) else []


def recurrent(kind: type[lm.Layer]) -> Callable[[Draw], Configuration]:
    def draw(d: Draw) -> Configuration:
        inner = d.pick(ll.RNN, ll.LSTM, ll.GRU) if kind is ll.Bidirectional else kind
        units, steps = d.size(4), d.pick("T", d.size(6))
        options = d.options(
            return_sequences=d.pick(True, False),
            return_state=d.pick(True, False),
            reverse=d.pick(True, False),
            use_bias=d.pick(True, False),
            kernel_initializer=d.initializer(),
            recurrent_initializer=d.initializer(),
        )
        if d.chance(0.2):
            options["truncate"] = d.some(1, 4)
        if inner is ll.RNN:
            options |= d.options(activation=d.pick("tanh", "relu", "sigmoid"))
        layer, states = inner(units, **options), (2 if inner is ll.LSTM else 1)
        if kind is ll.Bidirectional:
            modes = d.options(merge_mode=d.pick("concat", "sum", "mul", "ave", None))
            layer, states = ll.Bidirectional(layer.frozen() if d.chance(0.1) else layer, **modes), 2 * states
        longest = 5 if steps == "T" else steps  # the laws begin with 5 steps
        lengths = lm.ArraySpec(("N",), d.pick("int32", "int64"), low=1, high=longest + 1)
        given = [lm.ArraySpec(("N", units))] * states
        return layer, d.floats(steps, d.size()), *([lengths] * d.pick(0, 1)), *(given * d.pick(0, 1))

    return draw


def labels(kind: type[losses.Loss]) -> Callable[[Draw], Configuration]:
    def draw(d: Draw) -> Configuration:
        limits = {"low": 0.0, "high": 1.0} if kind is losses.CategoricalCrossEntropy else {}
        classes, sizes = d.some(2, 6), d.sizes(d.some(0, 2), "T", "S")
        prediction = lm.ArraySpec(("N", *sizes, classes), **limits)
        options = d.options(label_smoothing=d.pick(0.1, 1.0), ignore_class=d.pick(-1, 0, 1))
        if kind is losses.SoftmaxFocalCrossEntropy:
            options |= d.options(gamma=d.pick(0.0, 0.5, 1.0, 3.0))
        low = min(0, options.get("ignore_class", 0))
        dtypes = [name for name in INTEGERS if low == 0 or name.startswith("i")]
        numbered = lm.ArraySpec(("N", *sizes), d.pick(*dtypes), low=low, high=classes)
        return kind(**options), prediction, d.pick(numbered, *soft(prediction.shape))

    return draw


def soft(shape: Sequence[Any]) -> list[lm.ArraySpec]:
    """Targets from 0 to 1 for each number of a prediction."""
    shape = tuple(shape)
    return [lm.ArraySpec(shape, low=0.0, high=1.0), lm.ArraySpec(shape, "int64", low=0, high=2)]


def binary(kind: type[losses.Loss]) -> Callable[[Draw], Configuration]:
    def draw(d: Draw) -> Configuration:
        sizes = d.sizes(d.some(0, 3), "T", "S")
        prediction, options = d.floats(*sizes), d.options(label_smoothing=d.pick(0.1, 1.0))
        if kind is losses.BinaryFocalCrossEntropy:
            options |= d.options(gamma=d.pick(0.0, 0.5, 1.0, 3.0), alpha=d.pick(0.0, 0.25, 1.0))
        elif d.chance(0.3):
            options, prediction = options | {"from_logits": False}, lm.ArraySpec(prediction.shape, low=0.0, high=1.0)
        return kind(**options), prediction, d.pick(*soft(prediction.shape))

    return draw


def hinge(d: Draw) -> Configuration:
    prediction = d.floats(*d.sizes(d.some(0, 3), "T", "S"))
    return losses.Hinge(), prediction, lm.ArraySpec(prediction.shape, d.pick("int8", "int64", "bool"), low=0, high=2)


def kl_divergence(d: Draw) -> Configuration:
    shares = lm.ArraySpec(("N", *d.sizes(d.some(0, 2), "T", "S"), d.some(1, 6)), low=0.0, high=1.0)
    return losses.KLDivergence(), shares, shares


def poisson(d: Draw) -> Configuration:
    log_input = d.chance(0.5)
    limits = {"low": -5.0, "high": 5.0} if log_input else {"low": 0.1, "high": 100.0}
    prediction = lm.ArraySpec(("N", *d.sizes(d.some(0, 3), "T", "S")), **limits)
    return losses.Poisson(log_input=log_input), prediction, lm.ArraySpec(prediction.shape, "int64", low=0, high=20)


def cosine_similarity(d: Draw) -> Configuration:
    vectors = d.floats(*d.sizes(d.some(0, 2), "T", "S"), d.some(1, 6))
    return losses.CosineSimilarity(), vectors, vectors


def distance(d: Draw) -> Configuration:
    huber = losses.Huber(**d.options(delta=10.0 ** d.some(-3, 3)))
    sizes, others = d.sizes(d.some(0, 3), "T", "S"), (losses.MeanSquaredError, losses.MeanAbsoluteError, losses.LogCosh)
    return d.pick(huber, *(kind() for kind in others)), d.floats(*sizes), d.floats(*sizes)


def one_distance(kind: type[losses.Loss]) -> Callable[[Draw], Configuration]:
    def draw(d: Draw) -> Configuration:
        while not isinstance((drawn := distance(d))[0], kind):
            pass
        return drawn

    return draw


def weighted(d: Draw) -> Configuration:
    others = [draw for kind, draw in GENERATORS.items() if issubclass(kind, losses.Loss) and draw is not weighted]
    loss, *specs = d.pick(*others)(d)
    return losses.Weighted(loss, d.pick(0.0, 1.0, 0.3, 50.0)), *specs


GENERATORS: dict[type, Callable[[Draw], Configuration]] = {
    ll.Activation: activation,
    ll.BatchNormalization: batch_normalization,
    ll.Concatenate: concatenate,
    ll.Dense: dense,
    ll.Dot: dot,
    ll.Embedding: embedding,
    ll.Flatten: flatten,
    ll.GroupNormalization: group_normalization,
    ll.MultiHeadAttention: multi_head_attention,
    ll.Normalization: normalization,
    ll.PReLU: prelu,
    ll.Permute: permute,
    ll.PositionEmbedding: position_embedding,
    ll.Rescaling: rescaling,
    ll.Reshape: reshape,
    ll.ScaledDotProductAttention: attention,
    ll.UpSampling2D: up_sampling,
    losses.CosineSimilarity: cosine_similarity,
    losses.Hinge: hinge,
    losses.KLDivergence: kl_divergence,
    losses.Poisson: poisson,
    losses.Weighted: weighted,
    **{kind: pooling(kind, 1) for kind in (ll.MaxPooling1D, ll.AveragePooling1D)},
    **{kind: pooling(kind, 2) for kind in (ll.MaxPooling2D, ll.AveragePooling2D)},
    **{kind: global_pooling(kind, 1) for kind in (ll.GlobalMaxPooling1D, ll.GlobalAveragePooling1D)},
    **{kind: global_pooling(kind, 2) for kind in (ll.GlobalMaxPooling2D, ll.GlobalAveragePooling2D)},
    **{kind: convolution(kind) for kind in (ll.Conv1D, ll.Conv2D, ll.Conv2DTranspose)},
    **{kind: convolution(kind) for kind in (ll.DepthwiseConv2D, ll.SeparableConv2D)},
    **{kind: feature_normalization(kind) for kind in (ll.LayerNormalization, ll.RMSNormalization)},
    **{kind: noise(kind) for kind in (ll.Dropout, ll.GaussianNoise, ll.SpatialDropout2D)},
    **{kind: border(kind) for kind in (ll.ZeroPadding2D, ll.ConstantPadding2D, ll.Cropping2D)},
    **{kind: merging(kind) for kind in (ll.Add, ll.Average, ll.Maximum, ll.Minimum, ll.Multiply, ll.Subtract)},
    **{kind: recurrent(kind) for kind in (ll.RNN, ll.LSTM, ll.GRU, ll.Bidirectional)},
    **{kind: labels(kind) for kind in (losses.SoftmaxCrossEntropy, losses.CategoricalCrossEntropy)},
    losses.SoftmaxFocalCrossEntropy: labels(losses.SoftmaxFocalCrossEntropy),
    **{kind: binary(kind) for kind in (losses.BinaryCrossEntropy, losses.BinaryFocalCrossEntropy)},
    **{kind: one_distance(kind) for kind in (losses.MeanSquaredError, losses.MeanAbsoluteError, losses.Huber)},
    losses.LogCosh: one_distance(losses.LogCosh),
}
"""By class, what draws a configuration, valid or not."""


def _reaches(model: lm.Model) -> bool:
    """Whether padding leaves anything of what a transposed convolution spreads: the rest is its bias alone."""
    image = np.ones((1, *model.input_specs[0].shape[1:]), "float32")
    outputs = []
    for value in (1.0, 2.0):
        for name, array in model.parameters.items():
            model.parameters[name] = np.full_like(array, value if name.endswith("kernel") else 0.5)
        outputs.append(model.predict(image))
    return not np.array_equal(*outputs)


def configuration(rng: np.random.Generator, kind: type) -> Specimen:
    """A random valid configuration of a layer or loss, now and then frozen."""
    draw = Draw(rng)
    while True:
        try:
            subject, *specs = GENERATORS[kind](draw)
            if isinstance(subject, lm.Layer):
                subject = subject.frozen() if draw.chance(0.1) else subject
                nodes = [lm.Input(x.shape[1:], x.dtype) for x in specs]
                model = lm.Model(nodes, subject(*nodes))
        except (lm.ArgumentError, lm.GraphError):
            continue
        if kind is ll.Conv2DTranspose and not _reaches(model):
            continue
        if getattr(getattr(subject, "layer", subject), "truncate", None) is None:
            return Specimen(subject, tuple(specs))
        return Specimen(subject, tuple(specs), gradient="surrogate", reason="truncate cuts the gradient between chunks")
