"""What users write, held against mypy and pyright by `test_types.py`; `main` runs as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np

import lamella as lm
import lamella_onnx
from lamella.datasets import digits
from lamella_layers import (
    LSTM,
    Activation,
    Add,
    BatchNormalization,
    Bidirectional,
    Concatenate,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    GlobalAveragePooling2D,
    MaxPooling2D,
    Normalization,
    Reshape,
)

Array = np.ndarray[Any, Any]


def words() -> None:
    """Configurations are of their own class, and so are their copies."""
    assert_type(Dense(3), Dense)
    assert_type(Dense(3).units, int)
    assert_type(Dense(3).named("head").frozen(), Dense)
    assert_type(Dense(3).replace(units=4), Dense)
    assert_type(lm.optimizers.Adam(0.1), lm.optimizers.Adam)
    assert_type(lm.losses.Huber(), lm.losses.Huber)
    assert_type(lm.metrics.TopKAccuracy(3), lm.metrics.TopKAccuracy)
    assert_type(lm.schedules.Cosine(0.1, steps=10), lm.schedules.Cosine)
    assert_type(lm.regularization.L2(1e-4), lm.regularization.L2)
    assert_type(lm.callbacks.EarlyStopping("loss").best, float | None)
    assert_type(lm.layer("dense", units=3), lm.Layer)
    assert_type(lm.layer("dense", units=3).named("head")(lm.Input(4)), lm.Node)
    assert_type(LSTM(3)(lm.Input((5, 4))), Any)  # a node, or with return_state=True a tuple


def residual(x: lm.Node, filters: int) -> lm.Node:
    """A function that joins layers; each gives a node."""
    y = Conv2D(filters, (3, 3), padding="same", activation="relu")(x)
    assert_type(y, lm.Node)
    y = BatchNormalization()(y)
    x = x if x.shape[1] == filters else Conv2D(filters, 1)(x)
    return Add()(x, Dropout(0.1)(y, name="thinned"))


def branches() -> lm.Model:
    """Several inputs and outputs, and a model as a layer."""
    image, word = lm.Input((1, 8, 8), name="image"), lm.Input(("T",), "int64", name="word", low=0, high=9)
    pooled = GlobalAveragePooling2D()(residual(MaxPooling2D(2, strides=(2, 2))(image), 4))
    read = LSTM(3, return_sequences=False)(Embedding(9, 4)(word))
    both = Bidirectional(LSTM(3, return_sequences=False), merge_mode="sum")(Embedding(9, 4)(word))
    joined = Concatenate()(pooled, read, both)
    encoder = lm.Sequential([Dense(4), Activation("tanh")], input_shape=10, seed=1)
    return lm.Model([image, word], (encoder(joined), Dense(1).named("size")(joined)), dtype="float64")


class GoodEnough(lm.Callback):
    def __init__(self, limit: float) -> None:
        self.limit = limit

    def on_train_begin(self, model: lm.Model, epochs: int, batches: int | None) -> None:
        print(model.epochs, epochs, batches)

    def on_batch_end(self, model: lm.Model, rows: int, logs: Mapping[str, float]) -> None:
        print(model.step, rows, logs["loss"])

    def on_epoch_end(self, model: lm.Model, epoch: int, logs: dict[str, float]) -> None:
        if logs["loss"] < self.limit:
            raise lm.StopTraining("good enough")


def batches(images: Array, labels: Array) -> Iterator[tuple[Array, Array]]:
    for start in range(0, len(images), 50):
        yield images[start : start + 50], labels[start : start + 50]


def main(folder: Path) -> None:
    words()
    images, labels = digits()
    images, labels = images[:100] / 16, labels[:100]
    layers = [Normalization(axis=None).adapted(images), Reshape((8, 8, 1)), Flatten(), Dense(10)]
    model = lm.Sequential(layers, input_shape=images.shape[1:], seed=3)
    assert_type(model, lm.Sequential)
    history = model.fit(
        images,
        labels,
        loss="softmax_cross_entropy",
        optimizer=lm.optimizers.Adam(lm.schedules.Cosine(0.01, steps=20)),
        metrics=["accuracy", lm.metrics.TopKAccuracy(3)],
        epochs=2,
        validation_data=(images, labels),
        callbacks=[GoodEnough(0.01), lm.callbacks.EarlyStopping("val_loss", patience=2)],
        penalties={"*.kernel": lm.regularization.L2(1e-4)},
        class_weight={0: 2.0},
        progress=False,
    )
    assert_type(history, lm.History)
    last: float = history["loss"][-1]
    assert_type(model.history, lm.History | None)
    task: lm.Task = {"loss": lm.losses.SoftmaxCrossEntropy, "metrics": "accuracy"}
    model.fit(images, labels, **task, optimizer="adam", progress=False)
    last = model.evaluate(images, labels, **task)["loss"]
    task = lm.Task(loss="softmax_cross_entropy", metrics=["accuracy", lm.metrics.TopKAccuracy(3)])
    last = model.evaluate(images, labels, **task)["loss"]
    last = model.evaluate(images, labels, **lm.Task(loss="softmax_cross_entropy"))["loss"]
    print(last)
    model.fit(batches(images, labels), loss="softmax_cross_entropy", optimizer="sgd", progress=False)
    loss, gradients, dx = model.gradients(images, labels, loss="softmax_cross_entropy")
    assert_type(loss, float)
    assert_type(gradients, dict[str, Any])
    print(dx.shape)
    assert_type(model.predict(images), Array)
    assert_type(model.parameters["dense_1.kernel"], Array)
    assert_type(model.layers["dense_1"], lm.Layer)
    model.parameters["dense_1.bias"] = np.zeros(10)
    assert_type(model.copy(dtype="float64").freeze("dense_*").unfreeze(), lm.Sequential)

    several = branches()
    small, size = several.predict({"image": images, "word": np.ones((100, 5), "int64")})
    print(small.shape, size.shape)
    several.evaluate(
        (images, np.ones((100, 5), "int64")),
        (small, size),
        loss={"sequential_1": None, "size": lm.losses.Weighted("huber", 0.1)},
        metrics={"size": ["mean_absolute_error"]},
    )

    model.save(folder / "digits.lamella")
    assert_type(lm.load(folder / "digits.lamella"), lm.Model)
    report = lamella_onnx.export(model, folder / "digits.onnx", samples=images, append=Activation("softmax"))
    assert_type(report, lamella_onnx.ParityReport)
    assert_type(lamella_onnx.verify(folder / "digits.onnx").agrees, bool)
    lamella_onnx.export_training_step(model, folder / "step", loss="softmax_cross_entropy", optimizer="adam")
    assert_type(lamella_onnx.TrainingSession(folder / "step").step(images, labels), float)


def mistakes(model: lm.Sequential, x: Array) -> None:
    """Each line is an error for both checkers: one that is none any more is an error, too."""
    Dense("3")  # type: ignore[arg-type]
    Dense()  # type: ignore[call-arg]
    Dense(3, unit=3)  # type: ignore[call-arg]
    print(Dense(3).unit)  # type: ignore[attr-defined]
    Dense(3)(x)  # type: ignore[call-overload]
    lm.optimizers.Adam(rate=0.1)  # type: ignore[call-arg]
    lm.Sequential([Dense], input_shape=3)  # type: ignore[list-item]
    model.fit(x, x, loss=3, optimizer="adam")  # type: ignore[arg-type]
    model.fit(x, x, loss="huber", optimizer=0.1)  # type: ignore[arg-type]
    model.fit(x, x, loss="huber", optimizer="adam", epoch=3)  # type: ignore[call-arg]
    model.fit(x, x, optimizer="adam")  # type: ignore[call-arg]
    lm.Task(loss=3)  # type: ignore[typeddict-item]
    lm.Task(metrics="accuracy")  # type: ignore[typeddict-item]
    lm.Task(loss="huber", optimizer="adam")  # type: ignore[typeddict-unknown-key]
    model.gradients(x, x, **lm.Task(loss="huber", metrics="mae"))  # type: ignore[misc]
    model.layers["dense_1"] = Dense(3)  # type: ignore[index]
    model.predicts(x)  # type: ignore[attr-defined]
    lm.Sequentiel([Dense(3)], input_shape=3)  # type: ignore[attr-defined]
    lm.testing.check_layers(Dense(3))  # type: ignore[attr-defined]
    lamella_onnx.export("digits.onnx", model)  # type: ignore[arg-type]
