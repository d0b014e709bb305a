"""Specimens: the examples of itself that a plugin carries, from which its tests and documentation are generated."""

from __future__ import annotations

import dataclasses
from typing import Any

from lamella import registry
from lamella.activations import ActivationFunction
from lamella.arguments import choice
from lamella.errors import ArgumentError, shown
from lamella.protocol.configured import Configured
from lamella.protocol.spec import ArraySpec

__all__ = ["Specimen"]


@dataclasses.dataclass(frozen=True)
class Specimen:
    """One example of what a plugin gives, with the specs of its inputs.

    A plugin returns a list of them from the hook ``lamella_specimens``. Those of optimizers have no inputs; those of
    losses and metrics have prediction and target.

    Arguments:
        subject: a layer, a loss, an activation, a metric or an optimizer.
        inputs: the `ArraySpec` of each input.
        operators: the ONNX operators that the exported layer must consist of, in any order, for example
            ``("Conv",)``; None where it does not matter.
        docs: the address of what the layer implements: a paper or an ONNX operator page.
        gradient: ``"exact"``, or ``"surrogate"`` where the backward pass is deliberately not the derivative
            (truncation, straight-through); then ``reason`` says why, and the gradient check is skipped visibly.
        reason: see ``gradient``.
        refuses: pairs of input specs and words that the error for them must contain.
        not_finite: why results are not finite for some inputs within their range, such as "1 / 0 is infinite"; then
            the check for that is skipped visibly.

    Raises:
        ArgumentError: for what is none of these.
    """

    subject: Any
    inputs: tuple[ArraySpec, ...]
    operators: tuple[str, ...] | None = None
    docs: str = ""
    gradient: str = "exact"
    reason: str = ""
    refuses: tuple[tuple[tuple[ArraySpec, ...], str], ...] = ()
    not_finite: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.subject, type):
            name = self.subject.__name__
            raise ArgumentError(f"{_SUBJECT}, got the class {name}; did you mean {name}()?")
        if not isinstance(self.subject, Configured | ActivationFunction):
            raise ArgumentError(f"{_SUBJECT}, got {shown(self.subject)}")
        choice(self.gradient, "Specimen: gradient", ("exact", "surrogate"))
        for name, given in (("docs", self.docs), ("reason", self.reason), ("not_finite", self.not_finite)):
            if not isinstance(given, str):
                raise ArgumentError(f"Specimen: {name}: expected words, got {shown(given)}")
        if self.gradient == "surrogate" and not self.reason:
            raise ArgumentError("Specimen: gradient='surrogate' needs a reason")
        object.__setattr__(self, "inputs", _specs(self.inputs))
        if any(spec.shape[:1] != ("N",) for spec in self.inputs):
            raise ArgumentError(f"{_INPUTS}, the batch axis first, got {', '.join(map(str, self.inputs))}")
        if self.operators is not None:
            if not isinstance(self.operators, tuple | list) or not all(isinstance(one, str) for one in self.operators):
                raise ArgumentError(
                    f"Specimen: operators: expected names such as ('Conv',), got {shown(self.operators)}"
                )
            object.__setattr__(self, "operators", tuple(self.operators))
        pairs = self.refuses if isinstance(self.refuses, tuple | list) else (self.refuses,)
        object.__setattr__(self, "refuses", tuple(map(_refusal, pairs)))


SPECIMENS = registry.Kind("specimens", "lamella.testing.Specimen", of=Specimen)

_SUBJECT = "Specimen: expected a layer, a loss, an activation, a metric or an optimizer"
_INPUTS = "Specimen: inputs: expected specs such as lamella.ArraySpec(('N', 4))"


def _specs(given: Any) -> tuple[ArraySpec, ...]:
    specs = tuple(given) if isinstance(given, tuple | list) else (given,)
    for spec in specs:
        if not isinstance(spec, ArraySpec):
            raise ArgumentError(f"{_INPUTS}, got {shown(spec)}")
    return specs


def _refusal(given: Any) -> tuple[tuple[ArraySpec, ...], str]:
    if not isinstance(given, tuple | list) or len(given) != 2 or not isinstance(given[1], str):
        raise ArgumentError(
            "Specimen: refuses: expected pairs of input specs and words, such as ((image, 'expected rows'),), got "
            f"{shown(given)} in it"
        )
    return _specs(given[0]), given[1]
