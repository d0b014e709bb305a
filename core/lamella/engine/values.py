"""All that training moves, as one value: parameters, state of layers, optimizer slots, and counters.

A step never changes the values that it starts from. It writes what comes next into the *spare* buffers, those that the
values before had, and gives them back as new `Values`; whoever holds the network then takes these in one assignment.
So a step that fails, or is interrupted, has changed nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from lamella.backends import Backend
from lamella.engine.arrays import Storage
from lamella.optimizers import Optimizer
from lamella.schedules import learning_rate_at

__all__ = ["OptimizerState", "Values"]


class OptimizerState:
    """What an optimizer remembers between steps: how many there were, and its slots, flat as the parameters are.

    Attributes:
        t: the number of steps so far.
        slots: the optimizer's arrays, by name.
        scale: what every learning rate is multiplied with; callbacks change it.
        began: how many steps were taken before the first with this learning rate, from where its schedule counts.
    """

    __slots__ = ("backend", "began", "optimizer", "scale", "slots", "t")

    def __init__(
        self,
        optimizer: Optimizer,
        backend: Backend,
        slots: dict[str, Any],
        *,
        t: int = 0,
        began: int = 0,
        scale: float = 1.0,
    ) -> None:
        self.optimizer, self.backend, self.slots = optimizer, backend, slots
        self.t, self.began, self.scale = t, began, scale

    @classmethod
    def start(cls, optimizer: Optimizer, parameters: Storage) -> OptimizerState:
        """Return the state before the first step."""
        state = cls(optimizer, parameters.backend, {})
        for name, value in optimizer.slots.items():
            state.slots[name] = parameters.empty_like().flat
            state.slots[name][...] = value
        return state

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether steps of an optimizer go on from here: it may differ in its learning rate only."""
        if self.optimizer is optimizer:
            return True
        own, other = self.optimizer.config(), optimizer.config()
        return type(self.optimizer) is type(optimizer) and own | {"learning_rate": 0} == other | {"learning_rate": 0}

    def with_optimizer(self, optimizer: Optimizer) -> OptimizerState:
        """Return a state for the next steps with an optimizer that fits; another learning rate starts unscaled."""
        if self.optimizer is optimizer:
            return self
        scale, began = self.scale, self.began
        if optimizer.learning_rate != self.optimizer.learning_rate:
            scale, began = 1.0, self.t
        return OptimizerState(optimizer, self.backend, self.slots, t=self.t, began=began, scale=scale)

    def learning_rate(self, t: int) -> float:
        """Return the learning rate of step ``t``, such as ``state.t`` for the last step."""
        return self.scale * learning_rate_at(self.optimizer.learning_rate, t - self.began)

    def as_numpy(self) -> tuple[Optimizer, dict[str, Any], dict[str, Any]]:
        """Return the optimizer, the counters beside it by name, and the slots as NumPy."""
        slots = {name: np.array(self.backend.asnumpy(slot)) for name, slot in self.slots.items()}
        return self.optimizer, {"t": self.t, "began": self.began, "scale": self.scale}, slots

    @classmethod
    def from_numpy(
        cls, parameters: Storage, optimizer: Optimizer, counters: Mapping[str, Any], slots: Mapping[str, Any]
    ) -> OptimizerState:
        """Return the state that `as_numpy` described, for parameters of the same layout."""
        state, backend = cls.start(optimizer, parameters), parameters.backend
        for name, values in slots.items():
            state.slots[name][...] = backend.storable(backend.asarray(values.astype(parameters.dtype)))
        state.t, state.began, state.scale = counters["t"], counters["began"], counters["scale"]
        return state


class Values:
    """Parameters, state, optimizer slots and counters at one moment.

    Attributes:
        parameters, state: the arrays of layers.
        optimizer: what the optimizer remembers; None before the first step.
        step: how many steps were taken.
    """

    __slots__ = ("_moved", "_spare", "_versions", "optimizer", "parameters", "state", "step")

    def __init__(
        self, parameters: Storage, state: Storage, optimizer: OptimizerState | None = None, step: int = 0
    ) -> None:
        self.parameters, self.state, self.optimizer, self.step = parameters, state, optimizer, step
        self._spare: Values | None = None  # earlier values, whose buffers are written over next
        self._moved: tuple[Collection[str], Collection[str]] = ((), ())  # the names in which the spare differs
        self._versions = (parameters.version, state.version)

    def arrays(self) -> dict[str, Any]:
        """Return parameters and state by full name, as layers see them."""
        return {**self.parameters.views(), **self.state.views()}

    def spare(self, optimizer: OptimizerState, parameters: Collection[str], state: Collection[str]) -> Values:
        """Return buffers to write the next values into, which hold these values in all that will not be written.

        Arguments:
            optimizer: the state that the step goes on from.
            parameters, state: the names of the arrays that will be written, slots with their parameters.
        """
        spare = self._spare
        self._spare = None  # if the step fails, nobody knows what was written
        if spare is None or spare.optimizer is None or spare.optimizer.slots.keys() != optimizer.slots.keys():
            slots = {name: slot.copy() for name, slot in optimizer.slots.items()}
            held = OptimizerState(optimizer.optimizer, optimizer.backend, slots)
            return Values(self.parameters.copy(), self.state.copy(), held)
        same_slots = self.optimizer is not None and self.optimizer.slots is optimizer.slots
        if self._versions != (self.parameters.version, self.state.version) or not same_slots:
            self._moved = (tuple(self.parameters.layout.declarations), tuple(self.state.layout.declarations))
        pairs = [(self.parameters.flat, spare.parameters.flat)]
        pairs += [(slot, spare.optimizer.slots[name]) for name, slot in optimizer.slots.items()]
        _catch_up(pairs, self.parameters, self._moved[0], parameters)
        _catch_up([(self.state.flat, spare.state.flat)], self.state, self._moved[1], state)
        return spare

    def followed_by(
        self, spare: Values, optimizer: OptimizerState, parameters: Collection[str], state: Collection[str]
    ) -> Values:
        """Return the values after a step that wrote into the spare buffers; from then on these here are spare."""
        after = Values(spare.parameters, spare.state, optimizer, self.step + 1)
        after._spare, after._moved = self, (parameters, state)
        return after


def _catch_up(pairs: list[tuple[Any, Any]], storage: Storage, moved: Collection[str], written: Collection[str]) -> None:
    """Copy from the first to the second of each pair what moved in the last step and is not written in the next."""
    if moved is written or not moved:
        return
    if rest := set(moved).difference(written):
        for run in storage.layout.runs(rest):
            for source, target in pairs:
                target[run] = source[run]
