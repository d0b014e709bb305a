"""One training step, prepared once: gradients of a batch, checked, and the values that follow.

A step changes nothing that it is given. It returns new values, which the caller puts in the place of the old ones.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lamella.engine.arrays import Storage
from lamella.engine.gradients import Gradients
from lamella.engine.passes import Batch, StepResult
from lamella.engine.rounds import Slices
from lamella.engine.threads import thread_count
from lamella.engine.values import Values
from lamella.errors import BusyError, NonFiniteError
from lamella.graph.plan import Plan
from lamella.graph.slicing import cut
from lamella.losses import Loss
from lamella.network import Network
from lamella.optimizers import Optimizer
from lamella.protocol.inputs import naming
from lamella.training.diagnosis import explain_non_finite, is_finite
from lamella.training.rules import Rules
from lamella.training.update import Update

__all__ = ["TrainStep", "TrainSteps", "prepared"]

_KEPT = 4  # batch sizes for which steps are kept


def prepared(network: Network, plan: Plan, rows: int, kept: list[Storage]) -> Slices:
    """Return the prepared passes of a batch; ``kept`` holds buffers of gradients, and gets more as they are needed."""
    rows_of, backend, blas = cut(network.graph, rows, network.device, thread_count())
    count = min(thread_count(), len(rows_of))
    while len(kept) < count:
        kept.append(network.values.parameters.empty_like())
    buffers = [Gradients(one, plan.parameters) for one in kept[:count]]
    return Slices(plan, backend, rows_of, blas=blas, buffers=buffers)


class TrainSteps:
    """The steps of one training, each prepared once, by rows, frozen layers and threads.

    They hold the network weakly, since it holds them.
    """

    def __init__(self, network: Network, losses: tuple[Loss | None, ...], bounds: Mapping[str, Any]) -> None:
        self._network, self.losses, self.device = weakref.ref(network), losses, network.device
        self._buffers: list[Storage] = []
        self._take_over(bounds)
        self.renew()

    @property
    def network(self) -> Network:
        """Whose steps they are."""
        network = self._network()
        assert network is not None
        return network

    def _take_over(self, bounds: Mapping[str, Any]) -> None:
        self.bounds: dict[str, Any] = {
            name: dict(own) if isinstance(own, Mapping) else own for name, own in bounds.items()
        }

    def serve(self, network: Network, losses: tuple[Loss | None, ...], bounds: Mapping[str, Any]) -> bool:
        """Whether these steps are those of a training with an equal task; if so, they go on with its own objects."""
        own = self._network(), self.device, self.losses, self.bounds
        if own != (network, network.device, losses, bounds) or not _same_order(self.bounds, bounds):
            return False
        self.losses = losses
        self._take_over(bounds)
        if bounds:
            self.rules = Rules(network, **self.bounds)
        for step in [*self._steps.values(), *([] if self._whole is None else [self._whole])]:
            step.losses, step.rules = losses, self.rules
        return True

    def renew(self) -> None:
        """Plan with the layers that are frozen now."""
        plan = Plan(self.network.graph, self.network.frozen_layers, wants_dx=False, training=True)
        rules = Rules(self.network, **self.bounds)
        self._steps: dict[tuple[int, int], TrainStep] = {}
        self._whole = self.device.training(self.network, plan, self.losses, rules)
        self.rules = rules
        self.plan = plan  # last: whoever looks whether it is of today finds all of the rest so

    def take(self, batch: Batch, rows: int, optimizer: Optimizer, *, begins: bool) -> StepResult:
        """Take a step; whatever is raised, the network's values stay, or are those after the whole step.

        The caller holds Ctrl-C back. A step that fails is prepared again the next time, as is one that is in use
        already.
        """
        network, key = self.network, (rows, thread_count())
        step = self._whole or self._steps.pop(key, None)
        if step is None:
            while len(self._steps) >= _KEPT:
                del self._steps[next(iter(self._steps))]
            slices = prepared(network, self.plan, rows, self._buffers)
            step = TrainStep(network, self.plan, slices, self.losses, self.rules)
        values = network.values
        with step.blas:
            result, moved = step(batch, values, optimizer, begins=begins)
        if network.values is not values:
            raise BusyError(
                f"step {values.step}: the model was changed while this step was computed, so nothing of the step was "
                "kept. Likely fix: change it, or train it further, in callbacks and not in a layer, loss or metric"
            )
        network.values = moved
        if step is not self._whole:
            self._steps[key] = step  # the one used last stands last
        return result


def _same_order(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether rules that match several parameters come in the same order."""
    return all(not isinstance(rules, Mapping) or list(rules) == list(other[name]) for name, rules in one.items())


class TrainStep:
    """A step on batches of so many rows."""

    def __init__(
        self, network: Network, plan: Plan, slices: Slices, losses: Sequence[Loss | None], rules: Rules
    ) -> None:
        self._network, self.plan, self.losses = weakref.ref(network), plan, losses
        self._device, self._slices, self.blas = network.device, slices, slices.blas
        self._update = Update(network.device, slices.gradients, rules)

    @property
    def rules(self) -> Rules:
        """Penalties, clips and constraints."""
        return self._update.rules

    @rules.setter
    def rules(self, rules: Rules) -> None:
        self._update.rules = rules

    @property
    def network(self) -> Network:
        """Whose step it is."""
        network = self._network()
        assert network is not None
        return network

    def __call__(
        self, batch: Batch, values: Values, optimizer: Optimizer, *, begins: bool = False
    ) -> tuple[StepResult, Values]:
        """Take one step, or raise; where training ``begins``, losses examine the predictions."""
        with np.errstate(all="ignore"):
            return self._step(batch, values, optimizer, begins)

    def _step(self, batch: Batch, values: Values, optimizer: Optimizer, begins: bool) -> tuple[StepResult, Values]:
        result = self._slices.step(values, batch, self.losses, self.network.seed)
        loss = sum(result.losses)
        if not math.isfinite(loss) or not self._update.are_finite():
            raise explain_non_finite(self.network, self.plan, values, self.losses, batch, loss)
        if begins:
            self._examine(result)
        if result.updates:
            self._check_updates(values, result.updates)
        if any(getattr(one, "base", None) is not None for one in result.predictions):
            # it may be a view of a parameter whose buffer is written over later
            result = result._replace(predictions=tuple(map(_own, result.predictions)))
        return result, self._update(values, optimizer, result.updates)

    def _examine(self, result: StepResult) -> None:
        names, asnumpy = self.network.output_names, self._device.asnumpy
        for loss, prediction, name in zip(self.losses, result.predictions, names, strict=True):
            if loss is not None:
                with naming(name, names):
                    loss.examine(asnumpy(prediction))

    def _check_updates(self, values: Values, updates: Mapping[str, Any]) -> None:
        for name, value in updates.items():
            if not is_finite(self._device, value):
                raise NonFiniteError(
                    f"step {values.step}: the new value of {name} is not finite; nothing of this step was kept. "
                    "Rescale the data"
                )


def _own(value: Any) -> Any:
    """An array that nothing written later can change: a copy, if it is a view of another."""
    return value if getattr(value, "base", None) is None else value.copy()
