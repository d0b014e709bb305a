"""Whether a model has values and results that an exported file can be held to: NaN agrees with any NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella import Model, NonFiniteError
from lamella_onnx.models import Trace, layer_outputs
from lamella_onnx.parity import Evidence

__all__ = ["need_finite_results", "need_finite_values"]

Array = np.ndarray[Any, Any]


def need_finite_values(model: Model) -> None:
    """Raise unless all parameters are finite, and no state is NaN."""
    for name, array in (*model.parameters.items(), *model.state.items()):
        wrong = ~np.isfinite(array) if name in model.parameters else np.isnan(array)
        if wrong.any():
            place = [int(at[0]) for at in np.nonzero(wrong)]
            raise NonFiniteError(
                f"export: {name} has {wrong.sum():,} of {wrong.size:,} values that are not finite; at {place} stands "
                f"{array[tuple(place)]}. Nothing is written. Likely fix: train again with a lower learning rate, or "
                "load an older file"
            )


def need_finite_results(
    model: Model, trace: Trace, names: Sequence[str], evidence: Sequence[Evidence], samples: Evidence | None
) -> None:
    """Raise unless each output is finite somewhere, and for all samples that are finite themselves."""
    for place, name in enumerate(names):
        if samples is not None:
            given, got = _finite_rows(samples.inputs), _finite_rows([samples.e32[place]])
            if len(given) == len(got) and (given & ~got).any():
                row = int(np.argmax(given & ~got))
                raise NonFiniteError(
                    f"export: output {name!r} has NaN or infinity for sample {row}, whose inputs are finite"
                    f"{_cause(model, trace, samples)}. Nothing is written"
                )
        results = [batch.e32[place] for batch in evidence]
        if any(one.size for one in results) and not any(np.isfinite(one).any() for one in results):
            raise NonFiniteError(
                f"export: output {name!r} is nowhere finite, on any batch{_cause(model, trace, evidence[0])}. "
                "Nothing is written. Likely fix: export(..., samples=...) with data that the model is made for"
            )


def _finite_rows(arrays: Sequence[Array]) -> Array:
    """For each row, whether it is finite in all arrays."""
    rows: Array = np.ones(len(arrays[0]), "bool")
    for array in arrays:
        rows &= np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return rows


def _cause(model: Model, trace: Trace, batch: Evidence) -> str:
    """Which layer makes what is not finite."""
    for name, arrays in layer_outputs(model, batch.inputs).items():
        if not all(np.isfinite(array).all() for array in arrays):
            return f"; {trace.labels[name]} is the first layer to give such"
    return ""
