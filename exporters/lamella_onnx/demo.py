"""``lamella demo``: train on handwritten digits, export the model to ONNX with its proof, and draw what came out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lamella as lm
from lamella.cli import Command
from lamella.cli.shell import program, python
from lamella.datasets import digits
from lamella.terminal import Terminal

__all__ = ["DEMO", "network", "run", "stratified_split", "with_moved_copies"]

EPOCHS, BATCH = 12, 64


def network(seed: int = 0) -> lm.Model:
    """Return a small convolutional network for 8x8 images and ten classes, untrained."""
    layers = [
        lm.layer("conv2d", filters=16, kernel_size=3, padding="same", activation="relu"),
        lm.layer("conv2d", filters=32, kernel_size=3, padding="same", activation="relu"),
        lm.layer("max_pooling2d"),
        lm.layer("dropout", rate=0.25),
        lm.layer("flatten"),
        lm.layer("dense", units=64, activation="relu"),
        lm.layer("dropout", rate=0.25),
        lm.layer("dense", units=10),
    ]
    return lm.Sequential(layers, input_shape=(1, 8, 8), seed=seed)


def stratified_split(labels: Any, *shares: float, seed: int) -> tuple[Any, ...]:
    """Return the rows of a part for each share, and before them all other rows: drawn at random within each class."""
    draw = np.random.default_rng(seed)
    parts: list[list[Any]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        rows = draw.permutation(np.flatnonzero(labels == label))
        ends = [round(share * len(rows)) for share in np.cumsum(shares)]
        *held_out, rest = np.split(rows, ends)
        for part, some in zip(parts, (rest, *held_out), strict=True):
            part.append(some)
    return tuple(np.sort(np.concatenate(part)) for part in parts)


def with_moved_copies(images: Any, labels: Any) -> tuple[Any, Any]:
    """Return the images, then the same ones moved by a pixel up, down, left and right, with their labels."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    moved = [padded[:, :, i : i + 8, j : j + 8] for i, j in ((1, 1), (2, 1), (0, 1), (1, 2), (1, 0))]
    return np.concatenate(moved), np.tile(labels, len(moved))


def run(folder: Path) -> float:
    """Train, test, export and draw; leave everything in a folder and return the accuracy on the test digits."""
    from threadpoolctl import threadpool_limits

    from lamella_onnx.exporter import export

    folder.mkdir(parents=True, exist_ok=True)
    images, labels = digits()
    images /= 16  # ink from 0 to 1
    train, validate, test = stratified_split(labels, 0.1, 0.2, seed=0)
    moved, their_labels = with_moved_copies(images[train], labels[train])
    print(
        f"{len(labels)} handwritten digits: {len(train)} for training, {len(validate)} for validation, {len(test)} for "
        f"the test\nan epoch has {len(moved)}: training digits as they are, and moved up, down, left, right\n"
    )
    model = network()
    model.summary()
    print()
    task: dict[str, Any] = {"loss": "softmax_cross_entropy", "metrics": ["accuracy"]}
    falling = lm.schedules.Cosine(3e-3, steps=EPOCHS * -(-len(moved) // BATCH))  # first large steps, then fine ones
    best = lm.callbacks.EarlyStopping("val_loss", patience=EPOCHS)
    with threadpool_limits(1):  # matrices as small as these gain nothing from a second thread, and may wait for it
        fitted = model.fit(
            moved,
            their_labels,
            **task,
            optimizer=lm.optimizers.Adam(falling),
            epochs=EPOCHS,
            batch_size=BATCH,
            validation_data=(images[validate], labels[validate]),
            callbacks=[best],
            progress=True,
        )
    if fitted.interrupted:  # fit itself ends with what it has; whoever stops the demo wants no more of it
        raise KeyboardInterrupt
    history = fitted.history
    print(f"\nkept: the weights of epoch {best.best_epoch}, whose val_loss is the lowest")
    accuracy = float(model.evaluate(images[test], labels[test], **task)["accuracy"])  # their first and only use
    print(f"test accuracy: {100 * accuracy:.1f} % of {len(test)} digits, which were not used until now\n")

    model.save(folder / "digits.lamella")
    softmax = lm.layer("activation", function="softmax")  # the model ends in logits, the file in probabilities
    report = export(model, folder / "digits.onnx", samples=images[validate][:32], append=softmax)
    print("exported, and onnxruntime gives what the model gives:\n")
    Terminal().print(report.table())
    rows = np.column_stack([np.arange(len(history["loss"])) + 1, *history.values()])
    np.savetxt(folder / "history.csv", rows, "%.6g", ",", header=",".join(["epoch", *history]), comments="")
    pictures = _draw(folder, history, images[test], labels[test])
    print(_CLOSING.format(folder=folder, pictures=pictures, program=program(), python=python()), end="")
    return accuracy


_CLOSING = """
In {folder}:
  digits.onnx         images (N, 1, 8, 8) of 0 to 1 -> probabilities (N, 10)
  digits.lamella      the model, to load and to train on
  history.csv         loss and accuracy of each epoch, in training and validation
{pictures}

Check the proof again, here or elsewhere:

  {program} verify {folder}/digits.onnx

Serve it, with a page where you draw a digit:

  {python} -m pip install "lamella[serve]"
  {program} serve {folder}/digits.onnx

Or run it with NumPy and onnxruntime alone:

  import numpy, onnxruntime
  session = onnxruntime.InferenceSession("{folder}/digits.onnx")
  images = numpy.random.rand(3, 1, 8, 8).astype("float32")  # noise, 0 to 1
  (probabilities,) = session.run(None, {{"input_1": images}})
  print(probabilities.argmax(axis=1))
"""


def _draw(folder: Path, history: Mapping[str, Sequence[float]], images: Any, labels: Any) -> str:
    """Draw the learning curve and predictions by the ONNX file; return what to say about them."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "  no pictures         for them: python -m pip install matplotlib, and run this again"
    from onnxruntime import InferenceSession

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # or it tells of its caches
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        epochs = range(1, len(history[name]) + 1)
        axes.plot(epochs, history[name], color="#9aa5b1", marker=".", label="training (moved copies, dropout)")
        axes.plot(epochs, history[f"val_{name}"], color="#0b6e99", marker=".", label="validation")
        axes.set_title(name, loc="left")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.savefig(folder / "learning_curve.png", dpi=150)

    session = InferenceSession((folder / "digits.onnx").read_bytes())
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: images})
    guess = probabilities.argmax(axis=1)
    order = np.lexsort((probabilities.max(axis=1), guess == labels))  # wrong ones first, then the least certain
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    figure.suptitle("the 30 test digits that the model finds hardest, as onnxruntime reads them", x=0.01, ha="left")
    for axes, row in zip(figure.subplots(3, 10).flat, order, strict=False):
        axes.imshow(images[row, 0], cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=(), yticks=())
        axes.spines[:].set_color("#d5dbe1")
        right = guess[row] == labels[row]
        text = f"{guess[row]}  {probabilities[row].max():.0%}" if right else f"{guess[row]}, not {labels[row]}"
        axes.set_title(text, fontsize=9, color="#333333" if right else "#c0392b", weight="normal" if right else "bold")
    figure.savefig(folder / "predictions.png", dpi=150)
    return "  learning_curve.png  loss and accuracy, drawn\n  predictions.png     the digits it finds hardest"


def _configure(parser: argparse.ArgumentParser) -> None:
    where = "where to write; default: %(default)s"
    parser.add_argument("--output", metavar="DIR", type=Path, default="runs/digits", help=where)


def _run(arguments: argparse.Namespace) -> int:
    from lamella_onnx.runtime import ParityError

    try:
        run(arguments.output)
    except ParityError as error:
        print(f"lamella: {error}", file=sys.stderr)
        return 1
    return 0


DEMO = Command("train on 1797 handwritten digits, export to ONNX, prove it, draw it", _configure, _run)
