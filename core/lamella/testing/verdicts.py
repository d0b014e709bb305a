"""What the laws say of a specimen: each law runs its checks, and those that fail become a verdict."""

from __future__ import annotations

import dataclasses
import re
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from lamella.errors import ArgumentError, GraphError, LamellaError
from lamella.protocol.specimen import Specimen
from lamella.testing.case import Case
from lamella.testing.checks import Checks, FailedCheck
from lamella.testing.comparison import Broken, Fault, Skipped
from lamella.testing.diagnosis.causes import IMPURE, WIDENED, cause_of
from lamella.testing.diagnosis.shrinking import fault_of
from lamella.testing.laws import laws_of
from lamella.testing.laws.metrics import MetricCase
from lamella.testing.laws.optimizers import OptimizerCase
from lamella.testing.laws.purity import widened
from lamella.testing.laws.writes import reason_for_impurity
from lamella.testing.report import Verdict
from lamella.testing.subjects import kind_of, with_inputs

__all__ = ["verdicts_of"]

SIZES = (4, 8, 6, 3, 2, 1)
INPUTS = {"activations": 1, "losses": 2, "metrics": 2, "optimizers": 0}  # layers have any number
Law = Callable[[Any], str]
Describe = Callable[[FailedCheck], Fault]


def verdicts_of(specimen: Specimen, seed: int) -> tuple[Verdict, ...]:
    """One verdict for each law of the specimen's kind.

    Raises:
        ArgumentError: if there are no laws for such things, or the specimen has another number of inputs than they.
        GraphError: if a layer can't be built on these inputs.
    """
    kind = kind_of(specimen.subject)
    laws = laws_of(kind)
    if not laws:
        raise ArgumentError(
            f"{specimen.subject!r}: expected a layer, a loss, an activation, a metric or an optimizer; there are no "
            f"laws for a {type(specimen.subject).__name__}"
        )
    if len(specimen.inputs) != INPUTS.get(kind, len(specimen.inputs)):
        expected = {0: "no inputs", 1: "one input", 2: "a prediction and a target"}[INPUTS[kind]]
        raise ArgumentError(f"Specimen: inputs: {kind} have {expected}, got {len(specimen.inputs)} specs")
    if kind in ("optimizers", "metrics"):
        case: Checks = OptimizerCase(specimen, seed) if kind == "optimizers" else MetricCase(specimen, seed)
        return tuple(_verdict(name, law, case, partial(fault_of, case)) for name, law in laws.items())
    return _verdicts_of_layer(laws, Case(specimen, seed))


def _verdict(name: str, law: Law, case: Checks, describe: Describe) -> Verdict:
    case.failed.clear()
    detail = ""
    try:
        detail = law(case)
    except Skipped as reason:
        if not case.failed:
            return Verdict(name, "skipped", str(reason))
    except Exception as error:  # the code of others may raise anything; the other laws still have their say
        case.failed.append(FailedCheck(error, law, ()))
    if not case.failed:
        return Verdict(name, "holds", detail)
    faults: dict[Any, Fault] = {}  # one for each array that is wrong, and for each other message
    for failure in case.failed:
        known = failure.error.fault.subject if isinstance(failure.error, Broken) else ""
        key = (failure.check, known) if known else _without_numbers(str(failure.error))
        if key not in faults:
            faults[key] = describe(failure)
    first, *others = faults.values()
    more = f" (and {len(others)} more)" if others else ""
    return Verdict(name, "broken", f"{first.message}{more}", (first, *others))


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "", text)


def _verdicts_of_layer(laws: dict[str, Law], case: Case) -> tuple[Verdict, ...]:
    """Those of what runs in a model; a fault that would break every law is told under the one where it belongs."""
    _build(case)
    case = _sized(case)
    failed, fault = _does_not_run(case)
    if failed:
        others = f"the layer does not run: see {failed}"
        return tuple(
            Verdict(name, "broken", fault.message, (fault,)) if name == failed else Verdict(name, "skipped", others)
            for name in laws
        )
    impure, wide = reason_for_impurity(case), widened(case)

    def describe(failure: FailedCheck) -> Fault:
        fault = fault_of(case, failure)
        told = _without_numbers(fault.message) == _without_numbers(wide)  # the report says so once
        if WIDENED.search(fault.message) and wide and not fault.subject and not told:
            return dataclasses.replace(fault, cause="float32 does not stay float32: see purity")
        return fault

    def verdict(name: str, law: Law) -> Verdict:
        if name == "purity":
            return _verdict(name, law, case, partial(fault_of, case))
        if not impure:
            return _verdict(name, law, case, describe)
        found = _verdict(name, law, case, lambda failure: Fault(str(failure.error), cause=impure))
        first = found.faults[:1]  # it can only tell that results are no longer what they were
        return dataclasses.replace(found, detail=first[0].message, faults=first) if first else found

    return tuple(verdict(name, law) for name, law in laws.items())


def _build(case: Case) -> None:
    """A layer that can't be built is an error of its own, not a broken law."""
    try:
        case.model()
    except Exception as error:  # the layer's own code may raise anything
        origin = error.__cause__ or error
        what = repr(case.specimen.subject)
        if isinstance(error, GraphError) and "no output depends on input" in str(error):
            raise GraphError(
                f"{what}: expand leaves one of its {len(case.specs)} inputs out: no output depends "
                "on it. Use every input, or take fewer"
            ) from error
        frames = [frame.name for frame in traceback.extract_tb(origin.__traceback__)]
        method = next((name for name in ("build", "expand") if name in frames), "")
        if isinstance(origin, LamellaError) or not method:
            raise  # it says where, or is none of the layer's methods
        where = with_inputs(case.specimen)
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
