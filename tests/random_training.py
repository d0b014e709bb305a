"""Random models with a random way to train each: any layer, loss, optimizer and rule, in either float type."""

from __future__ import annotations

from typing import Any

import numpy as np
from random_layers import GENERATORS, Draw, configuration

import lamella as lm
import lamella_layers as ll
from lamella import losses, optimizers, regularization, schedules

LAYERS = [kind for kind in GENERATORS if issubclass(kind, lm.Layer)]
OPSETS = (18, 19, 20, 21, 21, 21, 22, 23, 24, 25)


def training(seed: int) -> tuple[lm.Model, dict[str, Any]]:
    """A model, and the arguments of `export_training_step` for it."""
    rng = np.random.default_rng(seed)
    draw = Draw(rng)
    while (model := _model(draw, seed)) is None:
        pass
    found: list[Any] = [_loss(draw, spec) for spec in model.output_specs]
    if not any(found):
        return training(seed + 1_000_000)
    if len(found) > 1 and draw.chance(0.5):
        found = [one and losses.Weighted(one, draw.pick(0.5, 2.0)) for one in found]
    optimizer = _optimizer(draw)
    options = draw.options(
        clip_value=draw.pick(0.01, 1.0),
        clip_norm=draw.pick(0.1, 10.0),
        penalties={"*": draw.pick(regularization.L1(0.01), regularization.L2(0.1))},
        constraints={"*.kernel": regularization.MaxNorm(draw.pick(0.5, 2.0))},
    )
    options = {name: value for name, value in options.items() if draw.chance(0.4)}
    if "constraints" in options and not any(name.endswith(".kernel") for name in model.parameters):
        del options["constraints"]
    loss = found[0] if len(found) == 1 else tuple(found)
    return model, {"loss": loss, "optimizer": optimizer, "opset": draw.pick(*OPSETS), **options}


def _model(draw: Draw, seed: int) -> lm.Model | None:
    """A random configuration of a layer, between others now and then; None where these do not fit."""
    specimen = configuration(draw.rng, draw.pick(*LAYERS))
    nodes = [lm.Input(x.shape[1:], x.dtype, low=x.low, high=x.high) for x in specimen.inputs]
    before = [_before(draw, node) for node in nodes]
    dtype = "float64" if draw.chance(0.15) else "float32"
    try:
        outputs = specimen.subject(*before)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        outputs = tuple(_after(draw, node) for node in outputs)
        model = lm.Model(nodes, outputs if len(outputs) > 1 else outputs[0], seed=seed, dtype=dtype)
    except (lm.ArgumentError, lm.GraphError):
        return None
    if draw.chance(0.2) and len(model.layers) > 1:
        model.freeze(draw.pick(*model.layers))
    trained = [name for name in model.parameters if name.rpartition(".")[0] not in model.frozen_layers]
    return model if trained else None


def _before(draw: Draw, node: Any) -> Any:
    """A dense layer that keeps the shape, now and then."""
    spec = node.spec
    if spec.is_float and len(spec.shape) > 1 and isinstance(spec.shape[-1], int) and draw.chance(0.3):
        return ll.Dense(spec.shape[-1], activation=draw.pick(None, "tanh", "relu"))(node)
    return node


def _after(draw: Draw, node: Any) -> Any:
    """What has parameters after a layer, most often."""
    spec = node.spec
    if not spec.is_float or len(spec.shape) < 2:
        return node
    if len(spec.shape) == 4 and draw.chance(0.3):
        node = ll.BatchNormalization(axis=1)(node) if isinstance(spec.shape[1], int) else node
    if draw.chance(0.3):
        node = ll.Activation(draw.function())(node)
    if all(isinstance(size, int) for size in spec.shape[1:]) and draw.chance(0.4):
        node = ll.Flatten()(node)
    if isinstance(node.spec.shape[-1], int) and draw.chance(0.7):
        node = ll.Dense(draw.size(), activation=draw.pick(None, None, "sigmoid"))(node)
    return node


def _loss(draw: Draw, spec: lm.ArraySpec) -> Any:
    if not spec.is_float or draw.chance(0.1):
        return None
    choices: list[Any] = [
        "mean_squared_error", "mean_absolute_error", losses.Huber(draw.pick(0.1, 1.0)), "binary_cross_entropy",
        "log_cosh", "hinge", losses.BinaryFocalCrossEntropy(draw.pick(0.5, 2.0), label_smoothing=draw.pick(0.0, 0.1)),
    ]  # fmt: skip
    if len(spec.shape) > 1 and isinstance(spec.shape[-1], int) and spec.shape[-1] > 1:
        options = draw.options(label_smoothing=0.1, ignore_class=1)
        choices += ["softmax_cross_entropy", losses.SoftmaxCrossEntropy(**options)] * 2
        choices += [losses.SoftmaxFocalCrossEntropy(**options)]
    return draw.pick(*choices)


def _optimizer(draw: Draw) -> optimizers.Optimizer:
    around = (optimizers.GradientAccumulation, optimizers.ExponentialMovingAverage, optimizers.LearningRateMultipliers)
    every = [getattr(optimizers, name) for name in optimizers.__all__ if name not in ("Optimizer",)]
    kind = draw.pick(*(one for one in every if one not in around))
    rate = draw.pick(1e-3, 0.1, schedules.Cosine(0.1, 20), schedules.WarmUp(0.01, 5))
    options: dict[str, Any] = {"learning_rate": rate}
    if kind is optimizers.SGD:
        options |= {"momentum": draw.pick(0.0, 0.9)}
        options |= {"nesterov": bool(options["momentum"]) and draw.chance(0.5)}
    if kind is optimizers.RMSprop:
        options |= draw.options(momentum=0.9, centered=True)
    if kind in (optimizers.Adam, optimizers.AdamW):
        options |= draw.options(amsgrad=True)
    if kind in (optimizers.AdamW, optimizers.Lion):
        options |= draw.options(weight_decay=0.1, exclude_from_weight_decay="*")
    found: optimizers.Optimizer = kind(**options)
    if draw.chance(0.2):
        found = optimizers.LearningRateMultipliers(found, {"*": draw.pick(0.0, 0.1, 2.0)})
    if draw.chance(0.2):
        found = optimizers.GradientAccumulation(found, draw.pick(2, 3))
    return optimizers.ExponentialMovingAverage(found, 0.5) if draw.chance(0.2) else found
