"""The models that are served: for one the server is nearly all of the time, for the other the model is.

Their weights are drawn, not trained: how fast a network is does not depend on what it has learned.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

import lamella as lm
import lamella_onnx
from lamella_layers import Activation, Add, BatchNormalization, Conv2D, Dense, Flatten, GlobalAveragePooling2D


def digits() -> lm.Model:
    """Two convolutions and two dense layers on 28 x 28 pixels."""
    x = image = lm.Input((1, 28, 28), name="image")
    for filters in (8, 16):
        x = Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    return lm.Model(image, Dense(10)(Dense(64, activation="relu")(Flatten()(x))))


def resnet() -> lm.Model:
    """A stem, six residual blocks and one dense layer on 64 x 64 pixels in three colours."""
    image = lm.Input((3, 64, 64), name="image")
    x = _normalized(image, 64, strides=2)
    for filters, strides in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        y = _normalized(Activation("relu")(_normalized(x, filters, strides=strides)), filters)
        same = strides == 1 and x.shape[1] == filters
        x = Activation("relu")(Add()(y, x if same else _normalized(x, filters, 1, strides)))
    return lm.Model(image, Dense(10)(GlobalAveragePooling2D()(x)))


def _normalized(x: lm.Node, filters: int, kernel_size: int = 3, strides: int = 1) -> lm.Node:
    return BatchNormalization()(Conv2D(filters, kernel_size, strides=strides, padding="same", use_bias=False)(x))


MODELS = {"digits": digits, "resnet": resnet}


def export(name: str, folder: Path) -> Path:
    """Write a model as an ONNX file, unless it is there."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lamella_onnx.export(MODELS[name](), path, append=Activation("softmax"))
    return path


def rows(session: onnxruntime.InferenceSession, count: int, seed: int = 0) -> np.ndarray:
    """Images as a camera gives them: bytes, as floats between 0 and 1."""
    shape = session.get_inputs()[0].shape[1:]
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype("float32") / 255
