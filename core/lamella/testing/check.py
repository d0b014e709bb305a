"""Examines a layer, a loss, an activation, an optimizer or a metric against the laws of its kind."""

from __future__ import annotations

from typing import Any

from lamella.activations import ActivationFunction
from lamella.arguments import positive
from lamella.errors import ArgumentError, shown
from lamella.losses import Loss
from lamella.metrics import Metric
from lamella.optimizers import Optimizer
from lamella.protocol import ArraySpec, Layer
from lamella.protocol.specimen import Specimen
from lamella.testing.report import ConformanceError, ConformanceReport
from lamella.testing.subjects import with_inputs
from lamella.testing.verdicts import verdicts_of

__all__ = [
    "ConformanceError",
    "ConformanceReport",
    "check_activation",
    "check_layer",
    "check_loss",
    "check_metric",
    "check_optimizer",
    "check_specimen",
]


def check_layer(layer: Layer, *input_specs: ArraySpec, seed: int = 0) -> ConformanceReport:
    """Examine a layer, registered or not, on inputs of the given specs.

    The laws: the backward pass is the derivative of the forward pass; passes are pure and accurate; results are
    finite; any slicing of the batch gives the same; all backends agree; from the exporter, the layer means the same in
    ONNX; copies, and what comes back from files, are equal; and ``build`` predicts shapes and dtypes.

    Floats are drawn around zero, up to 1e3 in size, zeros and equal values among them. A layer that takes fewer values
    is given a spec that says so: for a logarithm, ``ArraySpec(("N", 4), low=0.1, high=100.0)``.

    Raises:
        ConformanceError: naming every law that is broken, and everything that breaks it.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> report = lm.testing.check_layer(Dense(3), lm.ArraySpec(("N", 4)))
    >>> [verdict.law for verdict in report.verdicts]
    ['gradient', 'purity', 'finite', 'slicing', 'backends', 'onnx', 'round trip', 'shapes']
    """
    return check_specimen(Specimen(_of(Layer, "check_layer: expected a layer", layer), input_specs), seed=seed)


def check_loss(loss: Loss, prediction: ArraySpec, target: ArraySpec, *, seed: int = 0) -> ConformanceReport:
    """Examine a loss as a layer of two inputs of which only the prediction has a gradient.

    Raises:
        ConformanceError: naming every law that is broken, and everything that breaks it.
    """
    return check_specimen(Specimen(_of(Loss, "check_loss: expected a loss", loss), (prediction, target)), seed=seed)


def check_activation(activation: ActivationFunction, x: ArraySpec, *, seed: int = 0) -> ConformanceReport:
    """Examine an activation as a layer, along the last axis if it works along one.

    Raises:
        ConformanceError: naming every law that is broken, and everything that breaks it.

    >>> import lamella as lm
    >>> square = lm.ActivationFunction(lambda xp, x: x * x, lambda xp, x, y, dy: 2.0 * x * dy)
    >>> lm.testing.check_activation(square, lm.ArraySpec(("N", 4))).conforms
    True
    """
    subject = _of(ActivationFunction, "check_activation: expected an ActivationFunction", activation)
    return check_specimen(Specimen(subject, (x,)), seed=seed)


def check_optimizer(optimizer: Optimizer, *, seed: int = 0) -> ConformanceReport:
    """Examine an optimizer.

    The laws: parameter and slots keep shape and dtype; ``update`` is pure; each entry moves by itself, so that pieces
    of the buffer give what the whole gives; on a convex bowl it goes downhill; gradients of 0 and very small ones give
    finite values; all backends agree; and copies are equal.

    Raises:
        ConformanceError: naming every law that is broken, and everything that breaks it.

    >>> import lamella as lm
    >>> report = lm.testing.check_optimizer(lm.optimizers.Adam())
    >>> [verdict.law for verdict in report.verdicts]
    ['state', 'purity', 'elementwise', 'descent', 'finite', 'backends', 'round trip']
    """
    return check_specimen(Specimen(_of(Optimizer, "check_optimizer: expected an optimizer", optimizer), ()), seed=seed)


def check_metric(metric: Metric, prediction: ArraySpec, target: ArraySpec, *, seed: int = 0) -> ConformanceReport:
    """Examine a metric on predictions and targets of the given specs.

    The laws: predictions, targets and weights stay as they are; sums over batches add up to those of the whole;
    weights count rows; no rows have a result; and copies are equal.

    Raises:
        ConformanceError: naming every law that is broken, and everything that breaks it.

    >>> import lamella as lm
    >>> labels = lm.ArraySpec(("N",), "int64", low=0, high=3)
    >>> lm.testing.check_metric(lm.metrics.Accuracy(), lm.ArraySpec(("N", 3)), labels).conforms
    True
    """
    subject = _of(Metric, "check_metric: expected a metric", metric)
    return check_specimen(Specimen(subject, (prediction, target)), seed=seed)


def check_specimen(specimen: Specimen, *, seed: int = 0) -> ConformanceReport:
    """Examine what a specimen shows, with everything that it declares.

    Raises:
        ArgumentError: if there are no laws for such things.
        GraphError: if the layer can't be built on these inputs.
        ConformanceError: naming every law that is broken, and everything that breaks it.
    """
    _of(Specimen, "check_specimen: expected a Specimen", specimen)
    positive(seed, "check: seed", minimum=0)
    report = ConformanceReport(with_inputs(specimen), verdicts_of(specimen, seed), seed)
    if not report.conforms:
        raise ConformanceError(report)
    return report


def _of(kind: type, words: str, value: Any) -> Any:
    """The value, if it is of a kind."""
    if isinstance(value, kind):
        return value
    got = f"the class {value.__name__}; did you mean {value.__name__}()?" if isinstance(value, type) else shown(value)
    raise ArgumentError(f"{words}, got {got}")
