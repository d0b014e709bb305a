"""Trains many small models and writes down the bits of every loss, weight, slot and prediction.

Equal settings give equal bits, from one version to the next too. Run it with both versions on one machine (products of
matrices differ between processors), the first of them before a change:

    python benchmarks/bits.py --write before.json
    python benchmarks/bits.py --compare before.json
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import lamella as lm
from lamella import optimizers, schedules
from lamella.regularization import L1, L2, MaxNorm
from lamella_layers import (
    GRU,
    LSTM,
    RNN,
    Activation,
    Add,
    AveragePooling2D,
    BatchNormalization,
    Bidirectional,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePooling2D,
    GroupNormalization,
    LayerNormalization,
    MaxPooling2D,
    MultiHeadAttention,
    SpatialDropout2D,
    UpSampling2D,
)


def digest(arrays: Any) -> str:
    """A short hash of dtype, shape and bytes of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def mlp(**options: Any) -> lm.Model:
    layers = [Dense(32, activation="relu"), Dropout(0.2), Dense(32, activation="tanh"), Dense(5)]
    return lm.Sequential(layers, input_shape=12, **options)


def cnn(**options: Any) -> lm.Model:
    layers = [
        *(Conv2D(8, 3, padding="same", use_bias=False), BatchNormalization(), Activation("relu"), MaxPooling2D(2)),
        *(DepthwiseConv2D(3), Conv2D(16, 1), SpatialDropout2D(0.1), AveragePooling2D(2), Flatten(), Dense(5)),
    ]
    return lm.Sequential(layers, input_shape=(3, 14, 14), **options)


def wide(**options: Any) -> lm.Model:
    layers = [Dense(700, activation="gelu"), LayerNormalization(), Dense(300, activation="elu"), Dense(5)]
    return lm.Sequential(layers, input_shape=150, **options)


def residual(**options: Any) -> lm.Model:
    x = lm.Input((4, 12, 12))
    y = Conv2D(8, 3, padding="same")(x)
    z = GroupNormalization(2)(Conv2D(8, 3, padding="same", activation="relu")(y))
    up = Conv2DTranspose(4, 3, strides=2)(UpSampling2D(2)(Add()(y, z)))
    return lm.Model(x, (Dense(5).named("head")(GlobalAveragePooling2D()(up)), Dense(2)(Flatten()(z))), **options)


def recurrent(**options: Any) -> lm.Model:
    layers = [RNN(12), Bidirectional(LSTM(10)), GRU(9, return_sequences=False), Dense(5)]
    return lm.Sequential(layers, input_shape=(11, 6), **options)


def letters(**options: Any) -> lm.Model:
    x = lm.Input((9,), "int64", low=0, high=30)
    y = Embedding(30, 16)(x)
    z = LayerNormalization()(Add()(y, MultiHeadAttention(2, 8, dropout=0.1)(y, y, y)))
    return lm.Model(x, Dense(5)(Flatten()(z)), **options)


def cases() -> Iterator[tuple[str, lm.Model, Any, Any, dict[str, Any]]]:
    """Names, models, data and arguments of fit."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 5, 150)
    classes: dict[str, Any] = {"loss": "softmax_cross_entropy"}
    rows = rng.standard_normal((150, 12))
    images = rng.standard_normal((150, 3, 14, 14))
    rules: list[Any] = [
        optimizers.SGD(0.05),
        optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        optimizers.Adam(schedules.Cosine(0.01, steps=40, warm_up=5)),
        optimizers.AdamW(0.01, weight_decay=0.1),
        optimizers.RMSprop(0.005, momentum=0.5, centered=True),
        optimizers.Adagrad(0.05),
        optimizers.Adadelta(),
    ]
    for rule, (size, dtype) in itertools.product(rules, ((1, "float32"), (32, "float32"), (64, "float64"))):
        count = 40 if size == 1 else 150
        options = classes | {"optimizer": rule, "batch_size": size, "metrics": ["accuracy"]}
        yield f"mlp {rule!r} {size} {dtype}", mlp(dtype=dtype, seed=3), rows[:count], labels[:count], options
    bounds = {"penalties": {"*.kernel": L2(1e-3), "*.bias": L1(1e-3)}, "constraints": {"dense_1.kernel": MaxNorm(0.7)}}
    for extra in (bounds, {"clip_norm": 0.1}, {"clip_value": 0.01}, {"sample_weight": rng.uniform(0, 2, 150)}):
        yield f"mlp {list(extra)}", mlp(), rows, labels, classes | {"optimizer": "adam"} | extra
    frozen = mlp()
    frozen.freeze("dense_2")
    yield "mlp frozen", frozen, rows, labels, classes | {"optimizer": "adam", "class_weight": {0: 2.0}}
    values = rng.standard_normal((150, 150))
    for size in (1, 48, 150):
        options = classes | {"optimizer": "adam", "batch_size": size}
        count = 8 if size == 1 else 150
        yield f"wide {size}", wide(), values[:count], labels[:count], options
        yield f"cnn {size}", cnn(), images[:count], labels[:count], options
        yield f"cnn sgd {size}", cnn(seed=2**40), images[:count], labels[:count], options | {"optimizer": "sgd"}
    both = {"head": "softmax_cross_entropy", "dense_1": "mean_squared_error"}
    targets = {"head": labels, "dense_1": rng.standard_normal((150, 2))}
    maps = rng.standard_normal((150, 4, 12, 12))
    yield "residual", residual(), maps, targets, {"loss": both, "optimizer": "adam", "batch_size": 50}
    series = rng.standard_normal((150, 11, 6))
    for size in (7, 150):
        yield f"recurrent {size}", recurrent(), series, labels, classes | {"optimizer": "adam", "batch_size": size}
    words = rng.integers(0, 30, (150, 9))
    yield "letters", letters(), words, labels, classes | {"optimizer": "adam", "batch_size": 50}


def record() -> dict[str, list[Any]]:
    """What every case gives, on one thread and on two."""
    found: dict[str, list[Any]] = {}
    for threads in (1, 2):
        lm.set_threads(threads)
        for name, model, x, y, options in cases():
            loss, gradients, _ = model.gradients(x, y, loss=options["loss"])
            history = model.fit(x, y, epochs=2, validation_data=(x, y), progress=False, **options)
            state = model.optimizer_state
            outputs = model.predict(x)
            found[f"{threads} threads, {name}"] = [
                *(float(loss).hex(), digest(gradients.values())),
                *([float(value).hex() for value in values] for values in history.history.values()),
                *(digest(model.parameters.values()), digest(model.state.values())),
                digest([np.asarray(slot) for slot in state.slots.values()] if state else []),
                digest(outputs if isinstance(outputs, tuple) else [outputs]),
            ]
    lm.set_threads(None)
    return found


def main() -> int:
    """Write down, or compare with what was written down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--write", metavar="FILE", type=Path, help="where to write")
    asked.add_argument("--compare", metavar="FILE", type=Path, help="what to compare with")
    arguments = parser.parse_args()
    found = record()
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=1))
        return 0
    before = json.loads(arguments.compare.read_text())
    odd = [name for name in before if found.get(name) != before[name]]
    print("\n".join([*odd, f"{len(before) - len(odd)} of {len(before)} cases have equal bits"]))
    return 1 if odd else 0


if __name__ == "__main__":
    sys.exit(main())
