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


def explain_data(network: Network, batch: Batch) -> str:
    """Return which input or target of a batch is not finite; an empty string where all are."""
    for name, value in zip(network.input_names, batch.inputs, strict=True):
        if not is_finite(network.device, value):
            return f"Input {name!r} holds values that are not finite; clean the data"
    for name, value in zip(network.output_names, batch.targets, strict=True):
        if value is not None and not is_finite(network.device, value):
            return f"The target of {name!r} holds values that are not finite; clean the data"
    return ""


def explain_non_finite(
    network: Network, plan: Plan, values: Values, losses: Sequence[Loss | None], batch: Batch, loss: float
) -> NonFiniteError:
    """Return the error for a step whose loss or gradients are not finite."""
    device = network.device
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    where = f"step {values.step}: {what}; nothing of this step was kept. "
    if of_data := explain_data(network, batch):
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
