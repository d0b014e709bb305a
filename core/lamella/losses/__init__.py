"""Losses: how far predictions are from targets, one number for each sample, and the gradient of their weighted mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella import elsewhere
from lamella.hookspecs import hookimpl
from lamella.losses.classes import CategoricalCrossEntropy, KLDivergence, SoftmaxCrossEntropy, SoftmaxFocalCrossEntropy
from lamella.losses.decisions import BinaryCrossEntropy, BinaryFocalCrossEntropy, Hinge
from lamella.losses.loss import LOSSES as LOSSES
from lamella.losses.loss import Loss, Weighted, class_targets, value_targets
from lamella.losses.values import CosineSimilarity, Huber, LogCosh, MeanAbsoluteError, MeanSquaredError, Poisson
from lamella.protocol.spec import ArraySpec
from lamella.protocol.specimen import Specimen

__all__ = [
    "BinaryCrossEntropy",
    "BinaryFocalCrossEntropy",
    "CategoricalCrossEntropy",
    "CosineSimilarity",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Poisson",
    "SoftmaxCrossEntropy",
    "SoftmaxFocalCrossEntropy",
    "Weighted",
    "class_targets",
    "value_targets",
]


@hookimpl
def lamella_losses() -> dict[str, type]:
    return {
        "softmax_cross_entropy": SoftmaxCrossEntropy,
        "softmax_focal_cross_entropy": SoftmaxFocalCrossEntropy,
        "categorical_cross_entropy": CategoricalCrossEntropy,
        "kl_divergence": KLDivergence,
        "binary_cross_entropy": BinaryCrossEntropy,
        "binary_focal_cross_entropy": BinaryFocalCrossEntropy,
        "hinge": Hinge,
        "mean_squared_error": MeanSquaredError,
        "mean_absolute_error": MeanAbsoluteError,
        "huber": Huber,
        "log_cosh": LogCosh,
        "poisson": Poisson,
        "cosine_similarity": CosineSimilarity,
        "weighted": Weighted,
        "bce": BinaryCrossEntropy,
        "mae": MeanAbsoluteError,
        "mse": MeanSquaredError,
    }


@hookimpl
def lamella_specimens() -> list[Specimen]:
    rows, labels = ArraySpec(("N", 5)), ArraySpec(("N",), "int64", low=0, high=5)
    steps, step_labels = ArraySpec(("N", 3, 4)), ArraySpec(("N", 3), "int64", low=0, high=4)
    padded = ArraySpec(("N", 3), "int64", low=-1, high=4)
    many, some = ArraySpec(("N", 5), "int64", low=0, high=2), ArraySpec(("N",))

    def shares(*axes: int) -> ArraySpec:
        return ArraySpec(("N", *axes), low=0.0, high=1.0)

    column = (((some, ArraySpec(("N", 1))), "Use y.reshape(-1)"),)
    wrong = (((rows, some), "Use y.astype('int64')"), ((ArraySpec(("N", 1)), labels), "binary_cross_entropy"))
    means = ArraySpec(("N", 5), low=0.1, high=100.0)
    counts = ArraySpec(("N", 5), "int64", low=0, high=9)
    softmax = "https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html"
    keras = "https://keras.io/api/losses/probabilistic_losses/#"
    binary = "https://www.tensorflow.org/api_docs/python/tf/nn/sigmoid_cross_entropy_with_logits"
    focal = "https://arxiv.org/abs/1708.02002"
    torch = "https://docs.pytorch.org/docs/stable/generated/torch.nn."
    return [
        Specimen(SoftmaxCrossEntropy(), (rows, labels), docs=softmax, refuses=wrong),
        Specimen(SoftmaxCrossEntropy(), (rows, many), docs=softmax),
        Specimen(SoftmaxCrossEntropy(), (steps, step_labels), docs=softmax),
        Specimen(SoftmaxCrossEntropy(label_smoothing=0.1), (rows, labels), docs=softmax),
        Specimen(SoftmaxCrossEntropy(label_smoothing=0.2, ignore_class=-1), (steps, padded), docs=softmax),
        Specimen(SoftmaxFocalCrossEntropy(), (rows, labels), docs=focal, refuses=wrong),
        Specimen(SoftmaxFocalCrossEntropy(0.5, label_smoothing=0.1, ignore_class=-1), (steps, padded), docs=focal),
        Specimen(CategoricalCrossEntropy(), (shares(5), labels), docs=f"{keras}categoricalcrossentropy-class",
                 refuses=wrong),
        Specimen(CategoricalCrossEntropy(label_smoothing=0.1, ignore_class=2), (shares(3, 4), step_labels),
                 docs=f"{keras}categoricalcrossentropy-class"),
        Specimen(KLDivergence(), (shares(5), shares(5)), docs=f"{keras}kldivergence-class",
                 refuses=(((some, some), "probabilities of classes on its last axis"),)),
        Specimen(BinaryCrossEntropy(), (rows, many), docs=binary, refuses=column),
        Specimen(BinaryCrossEntropy(label_smoothing=0.1), (rows, many), docs=binary),
        Specimen(BinaryCrossEntropy(from_logits=False), (shares(5), many), docs=f"{keras}binarycrossentropy-class"),
        Specimen(BinaryFocalCrossEntropy(), (rows, many), docs=focal, refuses=column),
        Specimen(BinaryFocalCrossEntropy(0.5, 0.25, label_smoothing=0.1), (steps, shares(3, 4)), docs=focal),
        Specimen(Hinge(), (rows, many), docs="https://keras.io/api/losses/hinge_losses/#hinge-class", refuses=column),
        Specimen(MeanSquaredError(), (rows, rows), docs=f"{torch}MSELoss.html", refuses=column),
        Specimen(MeanSquaredError(), (some, some), docs=f"{torch}MSELoss.html"),
        Specimen(MeanAbsoluteError(), (rows, rows), docs=f"{torch}L1Loss.html", refuses=column),
        Specimen(Huber(), (steps, steps), docs=f"{torch}HuberLoss.html", refuses=column),
        Specimen(Huber(delta=0.25), (rows, rows), docs=f"{torch}HuberLoss.html"),
        Specimen(LogCosh(), (rows, rows), docs="https://keras.io/api/losses/regression_losses/#logcosh-class",
                 refuses=column),
        Specimen(Poisson(), (means, counts), docs=f"{keras}poisson-class", refuses=column),
        Specimen(Poisson(log_input=True), (ArraySpec(("N", 3), low=-5.0, high=5.0), ArraySpec(("N", 3), low=0.0)),
                 docs=f"{torch}PoissonNLLLoss.html"),
        Specimen(CosineSimilarity(), (rows, rows), refuses=(((some, some), "vectors along its last axis"),),
                 docs="https://keras.io/api/losses/regression_losses/#cosinesimilarity-class"),
        Specimen(CosineSimilarity(), (steps, steps),
                 docs="https://keras.io/api/losses/regression_losses/#cosinesimilarity-class"),
        Specimen(Weighted("huber", 0.3), (rows, rows), docs="https://keras.io/api/models/model_training_apis/"),
    ]  # fmt: skip


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise elsewhere.missing(__name__, name, elsewhere.instead(elsewhere.LOSSES, name))


def __dir__() -> list[str]:
    return __all__
