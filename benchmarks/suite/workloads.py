"""What is measured: networks, batches and the arrays that every contestant starts with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CLASSES = 10
ADAM_RATE = 0.0001
MOMENTUM, EPSILON = 0.9, 1e-5  # of batch normalization, as lamella counts; the epsilon of layer normalization too

# Sizes that the networks of all frameworks are made of.
MLP = (784, 512, 256, CLASSES)
CNN = (32, 64)  # filters
CNN_HIDDEN = 128
VGG = (32, 64, 128)
VGG_HIDDEN = 256
RESNET = (16, 32, 64)
RESNET_BLOCKS = 3  # in each stage
STEM = 32  # filters of the first convolution of the separable network
SEPARABLE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1))  # width and stride of each block
TIME, FEATURES, UNITS = 64, 64, 128
WIDTH, HEADS, FEED_FORWARD, ENCODERS = 128, 4, 512, 2


class Weight(NamedTuple):
    """An array of parameters in lamella's layout, and what it is drawn from.

    ``image`` is (channels, height, width) where the rows of a dense kernel are pixels, whose order depends on the
    layout of images.
    """

    name: str
    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0
    image: tuple[int, int, int] | None = None


class Weights(list[Weight]):
    """The parameters of a network in the order of its layers. Nothing starts at zero, so that a mix-up shows."""

    def add(self, kind: str, **arrays: tuple) -> None:
        """Arrays of one layer: for each the fields of a `Weight` after its name."""
        number = 1 + len({weight.name.partition(".")[0] for weight in self if weight.name.startswith(f"{kind}_")})
        self.extend(Weight(f"{kind}_{number}.{name}", *drawn) for name, drawn in arrays.items())

    def dense(self, inputs: int, units: int, image: tuple[int, int, int] | None = None) -> None:
        kernel = (inputs, units), inputs**-0.5, 0.0, image
        self.add("dense", kernel=kernel, bias=((units,), 0.1))

    def conv(self, channels: int, filters: int, size: int = 3, *, bias: bool = False, kind: str = "conv") -> None:
        arrays: dict[str, tuple] = {"kernel": ((filters, channels, size, size), (channels * size**2) ** -0.5)}
        self.add(kind, **arrays, **({"bias": ((filters,), 0.1)} if bias else {}))

    def norm(self, channels: int, kind: str = "batch_norm") -> None:
        self.add(kind, gamma=((channels,), 0.1, 1.0), beta=((channels,), 0.1))


def mlp() -> Weights:
    weights = Weights()
    for inputs, units in itertools.pairwise(MLP):
        weights.dense(inputs, units)
    return weights


def cnn() -> Weights:
    weights, channels = Weights(), 1
    for filters in CNN:
        weights.conv(channels, filters, bias=True)
        channels = filters
    weights.dense(channels * 7 * 7, CNN_HIDDEN, (channels, 7, 7))
    weights.dense(CNN_HIDDEN, CLASSES)
    return weights


def vgg() -> Weights:
    weights, channels = Weights(), 3
    for filters in VGG:
        for _ in range(2):
            weights.conv(channels, filters)
            weights.norm(filters)
            channels = filters
    weights.dense(channels * 4 * 4, VGG_HIDDEN, (channels, 4, 4))
    weights.dense(VGG_HIDDEN, CLASSES)
    return weights


def resnet() -> Weights:
    weights, channels = Weights(), RESNET[0]
    weights.conv(3, channels)
    weights.norm(channels)
    for filters in RESNET:
        for _ in range(RESNET_BLOCKS):
            weights.conv(channels, filters)
            weights.norm(filters)
            weights.conv(filters, filters)
            weights.norm(filters)
            if channels != filters:
                weights.conv(channels, filters, 1)
                weights.norm(filters)
            channels = filters
    weights.dense(channels, CLASSES)
    return weights


def separable() -> Weights:
    weights, channels = Weights(), STEM
    weights.conv(3, channels)
    weights.norm(channels)
    for filters, _ in SEPARABLE:
        weights.conv(1, channels, kind="depthwise")
        weights.norm(channels)
        weights.conv(channels, filters, 1)
        weights.norm(filters)
        channels = filters
    weights.dense(channels, CLASSES)
    return weights


def recurrent(kind: str, gates: int) -> Callable[[], Weights]:
    def network() -> Weights:
        weights, wide = Weights(), gates * UNITS
        arrays = {"kernel": ((FEATURES, wide), FEATURES**-0.5), "recurrent_kernel": ((UNITS, wide), UNITS**-0.5)}
        biases = ("bias", "recurrent_bias") if kind == "gru" else ("bias",)
        weights.add(kind, **arrays, **dict.fromkeys(biases, ((wide,), 0.1)))
        weights.dense(UNITS, CLASSES)
        return weights

    return network


def transformer() -> Weights:
    weights = Weights()
    for _ in range(ENCODERS):
        for name in ("query", "value", "key", "output"):  # in lamella's order
            weights.add(name, kernel=((WIDTH, WIDTH), WIDTH**-0.5), bias=((WIDTH,), 0.1))
        weights.norm(WIDTH, "layer_norm")
        weights.dense(WIDTH, FEED_FORWARD)
        weights.dense(FEED_FORWARD, WIDTH)
        weights.norm(WIDTH, "layer_norm")
    weights.dense(WIDTH, CLASSES)
    return weights


class Network(NamedTuple):
    """A network: what it is, the shape of a sample, and its parameters.

    ``rate`` is the learning rate of SGD, and ``tolerance`` how far contestants may be apart in the change of a
    parameter in three steps, relative to that change. It is a hundred times what float32 costs in most networks. Many
    layers of batch normalization and relu cost more: in ResNet all frameworks are up to 2 % away from float64, and so
    are the smallest changes in the separable network.
    """

    title: str
    shape: tuple[int, ...]
    weights: Callable[[], Weights]
    rate: float = 0.01
    tolerance: float = 0.01


NETWORKS = {
    "mlp": Network(f"dense {'-'.join(map(str, MLP))}", (784,), mlp),
    "cnn": Network("two convolutions on 1x28x28", (1, 28, 28), cnn),
    "vgg": Network("VGG with batch normalization on 3x32x32", (3, 32, 32), vgg),
    "resnet": Network("ResNet-20 on 3x32x32", (3, 32, 32), resnet, rate=0.002, tolerance=0.1),
    "separable": Network("depthwise separable convolutions on 3x32x32", (3, 32, 32), separable, tolerance=0.05),
    "rnn": Network(f"RNN, {UNITS} units, {TIME} steps", (TIME, FEATURES), recurrent("rnn", 1)),
    "lstm": Network(f"LSTM, {UNITS} units, {TIME} steps", (TIME, FEATURES), recurrent("lstm", 4)),
    "gru": Network(f"GRU, {UNITS} units, {TIME} steps", (TIME, FEATURES), recurrent("gru", 3)),
    "transformer": Network(
        f"{ENCODERS} encoder layers, width {WIDTH}, {HEADS} heads, {TIME} steps", (TIME, WIDTH), transformer
    ),
}


@dataclass(frozen=True)
class Workload:
    """One row of the result: a network, a batch size, and training with an optimizer, or inference."""

    network: str
    batch: int
    optimizer: str | None = "sgd"  # None: inference

    @property
    def name(self) -> str:
        return f"{self.network}-{self.batch}" + {"sgd": "", "adam": "-adam", None: "-predict"}[self.optimizer]

    @property
    def training(self) -> bool:
        return self.optimizer is not None

    @property
    def rate(self) -> float:
        return ADAM_RATE if self.optimizer == "adam" else NETWORKS[self.network].rate

    @property
    def shape(self) -> tuple[int, ...]:
        return NETWORKS[self.network].shape

    @property
    def has_images(self) -> bool:
        return len(self.shape) == 3

    @property
    def title(self) -> str:
        task = {"sgd": "training, SGD", "adam": "training, Adam", None: "inference"}[self.optimizer]
        return f"{task}, batch {self.batch}: {NETWORKS[self.network].title}"

    def draw(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Data and initial weights, the same for every contestant."""
        rng = np.random.default_rng(seed)
        arrays = {
            "x": rng.standard_normal((self.batch, *self.shape), np.float32),
            "y": rng.integers(0, CLASSES, self.batch),
        }
        for weight in NETWORKS[self.network].weights():
            drawn = weight.mean + weight.deviation * rng.standard_normal(weight.shape, np.float32)
            arrays[weight.name] = drawn.astype(np.float32)
        return arrays


WORKLOADS = [
    *(Workload("mlp", batch) for batch in (1, 64, 256, 1024)),
    Workload("mlp", 256, "adam"),
    *(Workload("cnn", batch) for batch in (32, 128)),
    Workload("cnn", 128, "adam"),
    *(Workload(network, 64) for network in ("vgg", "resnet", "separable", "rnn", "lstm", "gru")),
    Workload("transformer", 32),
    *(Workload("mlp", batch, None) for batch in (1, 256)),
    *(Workload("cnn", batch, None) for batch in (1, 128)),
    Workload("lstm", 64, None),
]
