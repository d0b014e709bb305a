"""Specimens: the examples of itself that a plugin carries, from which its tests and documentation are generated."""

from __future__ import annotations

import dataclasses
from typing import Any

from lamella.errors import ArgumentError
from lamella.protocol import ArraySpec

__all__ = ["Specimen"]


@dataclasses.dataclass(frozen=True)
class Specimen:
    """One example: a layer with the specs of its inputs, or a loss with those of prediction and target.

    A plugin returns a list of them from the hook ``lamella_specimens``.

    Arguments:
        subject: a layer or a loss.
        inputs: the `ArraySpec` of each input; for a loss, of the prediction and the target.
        operators: the ONNX operators that the exported layer must consist of, in any order, for example
            ``("Conv",)``; None where it does not matter.
        docs: the address of what the layer implements: a paper or an ONNX operator page.
        gradient: ``"exact"``, or ``"surrogate"`` where the backward pass is deliberately not the derivative
            (truncation, straight-through); then ``reason`` says why, and the gradient check is skipped visibly.
        reason: see ``gradient``.
        refuses: pairs of input specs and words that the error for them must contain.
    """

    subject: Any
    inputs: tuple[ArraySpec, ...]
    operators: tuple[str, ...] | None = None
    docs: str = ""
    gradient: str = "exact"
    reason: str = ""
    refuses: tuple[tuple[tuple[ArraySpec, ...], str], ...] = ()

    def __post_init__(self) -> None:
        if self.gradient not in ("exact", "surrogate"):
            raise ArgumentError(f"Specimen: gradient: expected 'exact' or 'surrogate', got {self.gradient!r}")
        if self.gradient == "surrogate" and not self.reason:
            raise ArgumentError("Specimen: gradient='surrogate' needs a reason")
        inputs = (self.inputs,) if isinstance(self.inputs, ArraySpec) else tuple(self.inputs)
        for spec in inputs:
            if not isinstance(spec, ArraySpec) or spec.shape[:1] != ("N",):
                raise ArgumentError(
                    f"inputs: expected specs such as lamella.ArraySpec(('N', 4)), the batch axis first, got {spec!r}"
                )
        object.__setattr__(self, "inputs", inputs)
