"""Runs the laws on a layer or a loss and reports on each."""

from __future__ import annotations

import dataclasses
import itertools
import re
import traceback
from collections.abc import Callable
from typing import Any

from lamella import registry
from lamella.errors import ArgumentError, GraphError, LamellaError
from lamella.losses import Loss
from lamella.protocol import ArraySpec, Layer
from lamella.testing.case import Case, Finding
from lamella.testing.comparison import Broken, Fault, Skipped
from lamella.testing.laws import LAWS, outputs_stay, steady, untouched, widened
from lamella.testing.report import ConformanceError, ConformanceReport, Verdict
from lamella.testing.shrinking import WIDENED, cause_of, fault_of
from lamella.testing.specimen import Specimen

__all__ = ["ConformanceError", "ConformanceReport", "Verdict", "check_layer", "check_loss", "check_specimen", "laws"]

IMPURE = (
    "the object is configuration and frozen",
    "ctx.update outside training",
    "ctx.uniform is for",
    "are never written to",
)
"""Words of errors of the engine that tell of what a pure layer does not do."""


def laws() -> dict[str, Callable[[Case], str]]:
    """Return every law by name, in the order of reports; those of plugins stand after ``backends``."""
    own_last = sorted(registry.entries("laws"), key=lambda entry: entry.plugin.is_own)  # no plugin replaces those
    given = {entry.name: entry.object for entry in own_last}
    names = list(LAWS)
    place = names.index("backends") + 1
    return {name: LAWS.get(name) or given[name] for name in (*names[:place], *given, *names[place:])}


def check_layer(layer: Layer, *input_specs: ArraySpec, seed: int = 0) -> ConformanceReport:
    """Examine a layer, registered or not, on inputs of the given specs.

    The laws: the backward pass is the derivative of the forward pass; passes are pure and accurate; any slicing of
    the batch gives the same; all backends agree; from the exporter, the layer means the same in ONNX; copies, and what
    comes back from files, are equal; and ``build`` predicts shapes and dtypes.

    Floats are drawn around zero, up to 1e3 in size. A layer that takes fewer numbers is given a spec that says so: for
    a logarithm, ``ArraySpec(("N", 4), low=0.1, high=100.0)``.

    Raises:
        ConformanceError: naming every law that is broken, and everything that breaks it.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> report = lm.testing.check_layer(Dense(3), lm.ArraySpec(("N", 4)))
    >>> [verdict.law for verdict in report.verdicts]
    ['gradient', 'purity', 'slicing', 'backends', 'onnx', 'round trip', 'shapes']
    """
    if not isinstance(layer, Layer):
        raise ArgumentError(f"check_layer: expected a layer, got {_got(layer)}")
    return check_specimen(Specimen(layer, input_specs), seed=seed)


def check_loss(loss: Loss, prediction: ArraySpec, target: ArraySpec, *, seed: int = 0) -> ConformanceReport:
    """Examine a loss as a layer of two inputs of which only the prediction has a gradient."""
    if not isinstance(loss, Loss):
        raise ArgumentError(f"check_loss: expected a loss, got {_got(loss)}")
    return check_specimen(Specimen(loss, (prediction, target)), seed=seed)


def _got(value: Any) -> str:
    return f"the class {value.__name__}; did you mean {value.__name__}()?" if isinstance(value, type) else repr(value)


def check_specimen(specimen: Specimen, *, seed: int = 0) -> ConformanceReport:
    """Examine what a specimen shows, with everything that it declares.

    Raises:
        GraphError: if the layer can't be built on these inputs.
        ConformanceError: naming every law that is broken, and everything that breaks it.
    """
    case = Case(specimen, seed)
    _build(case)
    case = _sized(case)
    failed, fault = _does_not_run(case)
    impure = "" if failed else _impurity(case)
    wide = "" if failed else widened(case)
    verdicts = []
    for name, law in laws().items():
        if name == failed:
            verdicts.append(Verdict(name, "broken", fault.message, (fault,)))
        elif failed:
            verdicts.append(Verdict(name, "skipped", f"the layer does not run: see {failed}"))
        else:
            verdicts.append(_verdict(name, law, case, impure, wide))
    subject = f"{specimen.subject!r} on {', '.join(map(str, specimen.inputs))}"
    report = ConformanceReport(subject, tuple(verdicts), seed)
    if not report.conforms:
        raise ConformanceError(report)
    return report


SIZES = (4, 8, 6, 3, 2, 1)

IMPURITIES = {
    untouched: "the layer writes into what it is given",
    outputs_stay: "the layer writes into what it has returned",
    steady: "equal calls give different results",
}


def _impurity(case: Case) -> str:
    """Why other laws can only tell that results are not what they were, if that is so."""
    for probe, training in itertools.product(IMPURITIES, (True, False)):
        case.examine(probe, training)
    found = [finding for finding in case.findings if isinstance(finding.error, Broken)]
    return f"{IMPURITIES[found[0].probe]}: see purity" if found else ""


def _build(case: Case) -> None:
    """A layer that can't be built is an error of its own, not a broken law."""
    try:
        case.model()
    except Exception as error:  # the layer's own code may raise anything
        origin = error.__cause__ or error
        if isinstance(error, GraphError) and "no output depends on input" in str(error):
            raise GraphError(
                f"{case.specimen.subject!r}: expand leaves one of its {len(case.specs)} inputs out: no output depends "
                "on it. Use every input, or take fewer"
            ) from error
        frames = [frame.name for frame in traceback.extract_tb(origin.__traceback__)]
        method = next((name for name in ("build", "expand") if name in frames), "")
        if isinstance(origin, LamellaError) or not method:
            raise  # it says where, or is none of the layer's methods
        where = f"{case.specimen.subject!r} on {', '.join(map(str, case.specimen.inputs))}"
        raise GraphError(f"{where}: {method} failed: {type(origin).__name__}: {origin}") from error


def _sized(case: Case) -> Case:
    """The case, at other sizes of axes known by name if the layer takes those only: even ones, say, or small ones."""
    for sizes in (case.sizes, *(dict.fromkeys(case.sizes, size) for size in SIZES)):
        candidate = case.like(sizes=sizes)
        try:
            inputs = candidate.draw(2)
            candidate.step("float64", inputs, candidate.cotangents(inputs))
        except LamellaError:
            continue
        except Exception:  # no refusal, but a fault, which a law will tell
            return case
        return candidate
    return case


def _does_not_run(case: Case) -> tuple[str, Fault]:
    """The law to which it belongs that a step fails, if it does, and the failure."""
    try:
        inputs = case.draw(3)
        case.step("float64", inputs, case.cotangents(inputs))
    except Exception as error:  # the layer's own code may raise anything
        text = str(error)
        cause = cause_of(text)
        if "it returned" in text and text.count("float32") == 1:  # the model is of float64 here
            cause = "build says float32, whatever the model's dtype is; say declare.dtype, or x.replace(...)"
        fault = Fault(text, cause=cause)
        if any(words in text for words in IMPURE):
            return "purity", fault
        return ("gradient" if "backward_pass" in text else "shapes"), fault
    return "", Fault("")


def _verdict(name: str, law: Callable[[Case], str], case: Case, impure: str, wide: str) -> Verdict:
    """What a law says; ``impure`` why it can't be trusted, ``wide`` the error of a float32 model that gets float64."""
    case.findings.clear()
    detail = ""
    try:
        detail = law(case)
    except Skipped as reason:
        if not case.findings:
            return Verdict(name, "skipped", str(reason))
    except Exception as error:  # the layer's own code may raise anything; the other laws still have their say
        case.findings.append(Finding(error, law, ()))
    if not case.findings:
        return Verdict(name, "holds", detail)
    if name != "purity" and impure:
        text = str(case.findings[0].error)
        return Verdict(name, "broken", text, (Fault(text, cause=impure),))
    faults: dict[Any, Fault] = {}  # one for each array that is wrong, and for each other message
    for finding in case.findings:
        known = finding.error.fault.subject if isinstance(finding.error, Broken) else ""
        key = (finding.probe, known) if known else _without_numbers(str(finding.error))
        if key not in faults:
            fault = fault_of(case, finding)
            told = _without_numbers(fault.message) == _without_numbers(wide)  # the report says so once
            if name != "purity" and WIDENED.search(fault.message) and wide and not fault.subject and not told:
                fault = dataclasses.replace(fault, cause="float32 does not stay float32: see purity")
            faults[key] = fault
    first, *others = faults.values()
    more = f" (and {len(others)} more)" if others else ""
    return Verdict(name, "broken", f"{first.message}{more}", (first, *others))


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "", text)
