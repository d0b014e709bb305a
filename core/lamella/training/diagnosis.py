"""Where the first value that is not finite arises, found by running the same step once more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella.backends import Backend
from lamella.engine.gradients import Gradients
from lamella.engine.passes import Batch, Watcher
from lamella.engine.rounds import Slices
from lamella.engine.values import Values
from lamella.errors import NonFiniteError
from lamella.graph.operations import Operation
from lamella.graph.plan import Plan
from lamella.losses import Loss
from lamella.network import Network

__all__ = ["are_finite", "explain_data", "explain_non_finite", "is_finite"]


def is_finite(device: Backend, array: Any) -> bool:
    """Whether every entry of an array is finite."""
    values = device.asnumpy(array)
    if values.dtype.kind != "f" or not values.size:
        return True
    return math.isfinite(values.max()) and math.isfinite(values.min())  # a NaN anywhere is both


def are_finite(device: Backend, arrays: Sequence[Any]) -> bool:
    """Whether every entry of all arrays is finite."""
    return all(is_finite(device, array) for array in arrays)


class _First(Watcher):
    """Notes the first operation that gives values that are not finite."""

    def __init__(self, device: Backend) -> None:
        self.device = device
        self.found: tuple[Operation, str] | None = None

    def after(self, operation: Operation, method: str, arrays: tuple[Any, ...]) -> None:
        if self.found is None and not are_finite(self.device, arrays):
            self.found = operation, method


def explain_data(network: Network, inputs: Sequence[Any], targets: Sequence[Any], of: str = "") -> str:
    """Return which input or target is not finite, and where; an empty string where all are. ``of`` whose rows."""
    named = [(f"Input {name!r}", value) for name, value in zip(network.input_names, inputs, strict=True)]
    named += [(f"The target of {name!r}", value) for name, value in zip(network.output_names, targets, strict=True)]
    for what, value in named:
        if value is not None and not is_finite(network.device, value):
            return (
                f"{what} holds values that are not finite: {_where(network.device.asnumpy(value), of)}; clean the data"
            )
    return ""


def _where(array: np.ndarray[Any, Any], of: str) -> str:
    """How many entries are not finite, and which is the first."""
    wrong = ~np.isfinite(array)
    first = tuple(map(int, np.unravel_index(int(np.argmax(wrong)), array.shape)))
    place = f"row {first[0]}"
    if array[0].size > 1:
        place += f", column {first[1]}" if array.ndim == 2 else f", at index {first}"
    count = int(np.count_nonzero(wrong))
    return f"{array[first]} in {place}{of}{f', the first of {count}' if count > 1 else ''}"


def explain_non_finite(
    network: Network,
    plan: Plan,
    values: Values,
    losses: Sequence[Loss | None],
    batch: Batch,
    loss: float,
    of_data: str = "",
) -> NonFiniteError:
    """Return the error for a step whose loss or gradients are not finite; ``of_data`` is what the data have of that."""
    device = network.device
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    where = f"step {values.step}: {what}; nothing of this step was kept. "
    if of_data:
        return NonFiniteError(f"{where}{of_data}")
    for name, array in (*network.parameters.items(), *network.state.items()):
        if not np.isfinite(array).all():
            return NonFiniteError(
                f"{where}{name} is not finite since an earlier step: the update overflowed; lower the learning rate"
            )
    watcher = _First(device)
    buffers = [Gradients(values.parameters.empty_like(), plan.parameters)]
    slices = Slices(plan, device, [slice(0, batch.inputs[0].shape[0])], buffers=buffers, watcher=watcher)
    slices.step(values, batch, losses, network.seed)
    if watcher.found is not None:
        operation, method = watcher.found
        backward = method == "backward_pass"
        if math.isfinite(loss) == backward:
            phase = ", in its backward pass" if backward else ""
            return NonFiniteError(f"{where}The first layer with values that are not finite is {operation.label}{phase}")
    names = ", ".join(repr(one) for one in losses if one is not None)
    return NonFiniteError(
        f"{where}Every layer's output is finite; the loss {names} overflows on these predictions. Lower the learning "
        "rate, or rescale the targets"
    )
