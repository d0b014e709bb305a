"""Runs the laws on a layer or a loss and reports on each."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from lamella import registry
from lamella.errors import ArgumentError, LayerError
from lamella.losses import Loss
from lamella.protocol import ArraySpec, Layer
from lamella.testing.case import Case
from lamella.testing.laws import LAWS, Broken, Skipped
from lamella.testing.specimen import Specimen

__all__ = ["ConformanceError", "ConformanceReport", "Verdict", "check_layer", "check_loss", "check_specimen"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one law says of a layer."""

    law: str
    outcome: Literal["holds", "broken", "skipped"]
    detail: str


@dataclasses.dataclass(frozen=True, repr=False)
class ConformanceReport:
    """What every law says of a layer; prints as a table."""

    subject: str
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        width = max(len(verdict.law) for verdict in self.verdicts)
        lines = [f"  {v.outcome:<7}  {v.law:<{width}}  {v.detail}" for v in self.verdicts]
        return "\n".join([self.subject, *lines])

    __repr__ = __str__


class ConformanceError(AssertionError):
    """A layer breaks one law or more; the message names every one. ``report`` holds all verdicts."""

    def __init__(self, report: ConformanceReport) -> None:
        self.report = report
        broken = [verdict for verdict in report.verdicts if verdict.outcome == "broken"]
        lines = [f"  {verdict.law}: {verdict.detail}" for verdict in broken]
        what = f"breaks {len(broken)} of {len(report.verdicts)} laws"
        if broken[0].law == "runs":
            what, lines = "fails, so no law was examined", [f"  {broken[0].detail}"]
        super().__init__("\n".join([f"{report.subject} {what}", *lines]))


def check_layer(layer: Layer, *input_specs: ArraySpec, seed: int = 0) -> ConformanceReport:
    """Examine a layer, registered or not, on inputs of the given specs.

    The laws: the backward pass is the derivative of the forward pass; passes are pure and accurate; any slicing of
    the batch gives the same; all backends agree; and, from the exporter, the layer means the same in ONNX.

    Floats are drawn around zero, up to 1e3 in size. A layer that takes fewer numbers is given a spec that says so: for
    a logarithm, ``ArraySpec(("N", 4), low=0.1, high=100.0)``.

    Raises:
        ConformanceError: naming every law that is broken.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> report = lm.testing.check_layer(Dense(3), lm.ArraySpec(("N", 4)))
    >>> [verdict.law for verdict in report.verdicts]
    ['gradient', 'purity', 'slicing', 'backends', 'onnx']
    """
    if not isinstance(layer, Layer):
        raise ArgumentError(f"check_layer: expected a layer, got {layer!r}")
    return check_specimen(Specimen(layer, input_specs), seed=seed)


def check_loss(loss: Loss, prediction: ArraySpec, target: ArraySpec, *, seed: int = 0) -> ConformanceReport:
    """Examine a loss as a layer of two inputs of which only the prediction has a gradient."""
    if not isinstance(loss, Loss):
        raise ArgumentError(f"check_loss: expected a loss, got {loss!r}")
    return check_specimen(Specimen(loss, (prediction, target)), seed=seed)


def check_specimen(specimen: Specimen, *, seed: int = 0) -> ConformanceReport:
    """Examine what a specimen shows, with everything that it declares.

    Raises:
        ConformanceError: naming every law that is broken.
    """
    laws: dict[str, Any] = {**LAWS, **{entry.name: entry.object for entry in registry.entries("laws")}}
    case = Case(specimen, seed)
    case.model()  # a layer that can't be built is an error of its own, not a broken law
    subject = f"{specimen.subject!r} on {', '.join(map(str, specimen.inputs))}"
    try:
        inputs = case.draw(3)
        case.step("float64", inputs, case.cotangents(inputs))
    except LayerError as error:
        raise ConformanceError(ConformanceReport(subject, (Verdict("runs", "broken", str(error)),))) from error
    verdicts = []
    for name, law in laws.items():
        try:
            verdicts.append(Verdict(name, "holds", law(case)))
        except Skipped as reason:
            verdicts.append(Verdict(name, "skipped", str(reason)))
        except Broken as fault:
            verdicts.append(Verdict(name, "broken", str(fault)))
        except Exception as error:  # the layer's own code may raise anything; the other laws still have their say
            verdicts.append(Verdict(name, "broken", f"{type(error).__name__}: {error}"))
    report = ConformanceReport(subject, tuple(verdicts))
    if any(verdict.outcome == "broken" for verdict in verdicts):
        raise ConformanceError(report)
    return report
