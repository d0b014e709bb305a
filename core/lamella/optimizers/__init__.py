"""Optimizers: how a parameter moves along its gradient.

Formulas and defaults are those of PyTorch 2, but for the learning rate of `SGD`, 0.01 as in Keras, and for `Lion`,
which PyTorch does not have.

Every ``learning_rate`` is a number or a `lamella.schedules.Schedule`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamella import elsewhere
from lamella.hookspecs import hookimpl
from lamella.optimizers.adam import Adam, Adamax, AdamW, Nadam
from lamella.optimizers.around import ExponentialMovingAverage, GradientAccumulation, LearningRateMultipliers
from lamella.optimizers.in_place import WRITERS as WRITERS
from lamella.optimizers.in_place import writer_of as writer_of
from lamella.optimizers.momentum import SGD, Lion
from lamella.optimizers.optimizer import OPTIMIZERS as OPTIMIZERS
from lamella.optimizers.optimizer import Optimizer
from lamella.optimizers.squares import Adadelta, Adagrad, RMSprop
from lamella.protocol.specimen import Specimen

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ExponentialMovingAverage",
    "GradientAccumulation",
    "LearningRateMultipliers",
    "Lion",
    "Nadam",
    "Optimizer",
    "RMSprop",
]


@hookimpl
def lamella_optimizers() -> dict[str, type]:
    return {
        "sgd": SGD,
        "adam": Adam,
        "adamw": AdamW,
        "nadam": Nadam,
        "adamax": Adamax,
        "lion": Lion,
        "rmsprop": RMSprop,
        "adagrad": Adagrad,
        "adadelta": Adadelta,
        "gradient_accumulation": GradientAccumulation,
        "exponential_moving_average": ExponentialMovingAverage,
        "learning_rate_multipliers": LearningRateMultipliers,
    }


@hookimpl
def lamella_specimens() -> list[Specimen]:
    keras = "https://keras.io/api/optimizers/"
    return [
        Specimen(GradientAccumulation("adam", 2), (), docs=keras),
        Specimen(ExponentialMovingAverage("adam"), (), docs=keras),
        Specimen(LearningRateMultipliers("adam", {"*.bias": 2.0}), (), docs="https://arxiv.org/abs/1801.06146"),
    ]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise elsewhere.missing(__name__, name, elsewhere.instead(elsewhere.OPTIMIZERS, name))


def __dir__() -> list[str]:
    return __all__
