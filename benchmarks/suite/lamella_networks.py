"""The networks in lamella."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import threadpoolctl
import workloads as w

import lamella as lm
from lamella_layers import (
    GRU,
    LSTM,
    RNN,
    Activation,
    Add,
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Flatten,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    LayerNormalization,
    MaxPooling2D,
    MultiHeadAttention,
    Permute,
)


def conv(filters: int, size: int = 3, strides: int = 1) -> list[Any]:
    """A convolution with batch normalization. PyTorch's padding: "same" pads strided windows at the end only."""
    layer = Conv2D(filters, size, strides=strides, padding=size // 2, use_bias=False)
    return [layer, BatchNormalization(w.MOMENTUM, w.EPSILON)]


def chain(x: Any, *layers: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def mlp(x: Any) -> Any:
    return chain(x, *(Dense(units, activation="relu") for units in w.MLP[1:-1]), Dense(w.CLASSES))


def cnn(x: Any) -> Any:
    for filters in w.CNN:
        x = chain(x, Conv2D(filters, 3, padding="same", activation="relu"), MaxPooling2D())
    return chain(x, Flatten(), Dense(w.CNN_HIDDEN, activation="relu"), Dense(w.CLASSES))


def vgg(x: Any) -> Any:
    for filters in w.VGG:
        x = chain(x, *conv(filters), Activation("relu"), *conv(filters), Activation("relu"), MaxPooling2D())
    return chain(x, Flatten(), Dense(w.VGG_HIDDEN, activation="relu"), Dense(w.CLASSES))


def resnet(x: Any) -> Any:
    x = chain(x, *conv(w.RESNET[0]), Activation("relu"))
    for stage, filters in enumerate(w.RESNET):
        for block in range(w.RESNET_BLOCKS):
            widens = stage > 0 and block == 0
            y = chain(x, *conv(filters, strides=1 + widens), Activation("relu"), *conv(filters))
            x = Activation("relu")(Add()(y, chain(x, *conv(filters, 1, strides=2)) if widens else x))
    return chain(x, GlobalAveragePooling2D(), Dense(w.CLASSES))


def separable(x: Any) -> Any:
    x = chain(x, *conv(w.STEM), Activation("relu"))
    for filters, strides in w.SEPARABLE:
        depthwise = DepthwiseConv2D(3, strides=strides, padding=1, use_bias=False)
        x = chain(x, depthwise, BatchNormalization(w.MOMENTUM, w.EPSILON), Activation("relu"))
        x = chain(x, *conv(filters, 1), Activation("relu"))
    return chain(x, GlobalAveragePooling2D(), Dense(w.CLASSES))


def recurrent(layer: type[lm.Layer]) -> Callable[[Any], Any]:
    return lambda x: chain(x, layer(w.UNITS, return_sequences=False), Dense(w.CLASSES))  # type: ignore[call-arg]


def transformer(x: Any) -> Any:
    for _ in range(w.ENCODERS):
        x = Add()(x, MultiHeadAttention(w.HEADS, w.WIDTH // w.HEADS)(x))
        x = LayerNormalization(epsilon=w.EPSILON)(x)
        x = Add()(x, chain(x, Dense(w.FEED_FORWARD, activation="relu"), Dense(w.WIDTH)))
        x = LayerNormalization(epsilon=w.EPSILON)(x)
    return chain(x, Permute((2, 1)), GlobalAveragePooling1D(), Dense(w.CLASSES))


NETWORKS = {
    "mlp": mlp,
    "cnn": cnn,
    "vgg": vgg,
    "resnet": resnet,
    "separable": separable,
    "rnn": recurrent(RNN),
    "lstm": recurrent(LSTM),
    "gru": recurrent(GRU),
    "transformer": transformer,
}


def describe(options: Mapping[str, Any]) -> dict[str, Any]:
    """Versions and kernels, or why it can't take part."""
    try:
        lm.Sequential([Dense(1)], input_shape=1, backend=options["backend"])
    except (ImportError, OSError, lm.LamellaError) as error:
        return {"missing": str(error)}
    blas = [f"{one['internal_api']} {one['version']} {one.get('architecture', '')}" for one in _libraries()]
    distributions = ["lamella"]
    if options["backend"] == "onednn":
        from lamella_onednn.library import WHEEL, library

        blas.append(f"oneDNN {'.'.join(map(str, library().version))}")
        distributions.append(WHEEL)
    return {
        "version": lm.__version__,
        "kernels": ", ".join(map(str.strip, blas)),
        "numpy": np.__version__,
        "distributions": distributions,
    }


def _libraries() -> list[dict[str, Any]]:
    return [one for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"]


def prepare(
    workload: w.Workload, arrays: Mapping[str, np.ndarray], threads: int, options: Mapping[str, Any]
) -> tuple[Callable[[], Any], Callable[[], list[np.ndarray]]]:
    """A function that takes a step, and one that gives all parameters and running statistics."""
    lm.set_threads(threads)
    given = lm.Input(workload.shape)
    model = lm.Model(given, NETWORKS[workload.network](given), backend=options["backend"])
    weights = [weight.name for weight in w.NETWORKS[workload.network].weights()]
    for name, weight in zip(model.parameters, weights, strict=True):
        model.parameters[name] = arrays[weight]
    x, y = arrays["x"], arrays["y"]
    loss = lm.losses.SoftmaxCrossEntropy()
    if workload.optimizer == "adam":
        optimizer: Any = lm.optimizers.Adam(workload.rate)
    else:
        optimizer = lm.optimizers.SGD(workload.rate)

    def train() -> float:
        return model.train_on_batch(x, y, loss=loss, optimizer=optimizer)

    def learned() -> list[np.ndarray]:
        return [*model.parameters.values(), *model.state.values()]

    return train if workload.training else lambda: model.predict(x), learned
