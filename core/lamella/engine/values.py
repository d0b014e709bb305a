"""All that training moves, as one value: parameters, state of layers, optimizer slots, and counters.

A step never changes the values that it starts from. It writes what comes next into the *spare* buffers, those that the
values before had, and gives them back as new `Values`; whoever holds the network then takes these in one assignment.
So a step that fails, or is interrupted, has changed nothing.

Other threads may read meanwhile: to predict, or to save. Who reads *holds* the values; no step writes into buffers of
values that are held, but takes new ones.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np

from lamella.backends import Backend
from lamella.engine.arrays import Storage
from lamella.optimizers import Optimizer
from lamella.schedules import learning_rate_at

__all__ = ["Holding", "OptimizerState", "Values", "assign"]


class OptimizerState:
    """What an optimizer remembers between steps: how many there were, and its slots, flat as the parameters are.

    Attributes:
        t: the number of steps so far.
        slots: the optimizer's arrays, by name.
        scale: what every learning rate is multiplied with; callbacks change it.
        began: how many steps were taken before the first with this learning rate, from where its schedule counts.
        missed: in how many of the steps a parameter took no part, since it was frozen; those that took part in all are
            left out.
    """

    __slots__ = ("backend", "began", "is_shared", "missed", "optimizer", "scale", "slots", "t")

    def __init__(
        self,
        optimizer: Optimizer,
        backend: Backend,
        slots: dict[str, Any],
        *,
        t: int = 0,
        began: int = 0,
        scale: float = 1.0,
        missed: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.optimizer, self.backend, self.slots = optimizer, backend, slots
        self.t, self.began, self.scale, self.missed = t, began, scale, missed
        self.is_shared = False  # whether somebody outside may keep it, so that its slots are never written over

    @classmethod
    def start(cls, optimizer: Optimizer, parameters: Storage) -> OptimizerState:
        """Return the state before the first step."""
        state = cls(optimizer, parameters.backend, {})
        for name, value in optimizer.slots.items():
            state.slots[name] = parameters.empty_like().flat
            state.slots[name][...] = value
        return state

    def belongs_to(self, parameters: Storage) -> bool:
        """Whether the slots are of parameters of this layout."""
        sizes = {getattr(slot, "shape", None) for slot in self.slots.values()}
        return self.backend is parameters.backend and sizes <= {parameters.flat.shape}

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether steps of an optimizer go on from here: it may differ in its learning rate only."""
        return self.optimizer is optimizer or not self.differences(optimizer)

    def differences(self, optimizer: Optimizer) -> str:
        """Return in words what keeps steps of an optimizer from going on from here."""
        if self.optimizer == optimizer:
            return ""
        if type(self.optimizer) is not type(optimizer):
            return f"{optimizer!r}, {self.optimizer!r} before"
        own, other = self.optimizer.settings(), optimizer.settings()
        names = [name for name in {**own, **other} if own.get(name) != other.get(name)]
        return ", ".join(f"{name}={other.get(name)!r}, {own.get(name)!r} before" for name in names)

    def with_optimizer(self, optimizer: Optimizer) -> OptimizerState:
        """Return a state for the next steps with an optimizer that fits; another learning rate starts unscaled."""
        if self.optimizer is optimizer:
            return self
        scale, began = self.scale, self.began
        if optimizer.learning_rate != self.optimizer.learning_rate:
            scale, began = 1.0, self.t
        return OptimizerState(
            optimizer, self.backend, self.slots, t=self.t, began=began, scale=scale, missed=self.missed
        )

    def learning_rate(self, t: int) -> float:
        """Return the learning rate of step ``t``, such as ``state.t`` for the last step."""
        rate = self.optimizer.learning_rate
        return self.scale * (rate if type(rate) is float else learning_rate_at(rate, t - self.began))

    @property
    def is_at_rest(self) -> bool:
        """Whether the next two steps have a learning rate of 0, as after the end of a schedule."""
        return self.learning_rate(self.t + 1) == self.learning_rate(self.t + 2) == 0.0

    def as_numpy(self) -> tuple[Optimizer, dict[str, Any], dict[str, Any]]:
        """Return the optimizer, the counters beside it by name, and the slots as NumPy."""
        slots = {name: np.array(self.backend.asnumpy(slot)) for name, slot in self.slots.items()}
        counters = {"t": self.t, "began": self.began, "scale": self.scale}
        return self.optimizer, counters | ({"missed": dict(self.missed)} if self.missed else {}), slots

    @classmethod
    def from_numpy(
        cls, parameters: Storage, optimizer: Optimizer, counters: Mapping[str, Any], slots: Mapping[str, Any]
    ) -> OptimizerState:
        """Return the state that `as_numpy` described, for parameters of the same layout."""
        state, backend = cls.start(optimizer, parameters), parameters.backend
        for name, values in slots.items():
            state.slots[name][...] = backend.storable(backend.asarray(values.astype(parameters.dtype)))
        state.t, state.began, state.scale = counters["t"], counters["began"], counters["scale"]
        state.missed = counters.get("missed", {})
        return state


class Move(NamedTuple):
    """One step of an optimizer: its state before, the values after, yet to be written, and the learning rate."""

    before: OptimizerState
    after: Values
    rate: float


class Values:
    """Parameters, state, optimizer slots and counters at one moment.

    Attributes:
        parameters, state: the arrays of layers.
        optimizer: what the optimizer remembers; None before the first step.
        step: how many steps were taken.
    """

    __slots__ = ("_changes", "_holders", "_moved", "_spare", "_versions", "optimizer", "parameters", "state", "step")

    def __init__(
        self, parameters: Storage, state: Storage, optimizer: OptimizerState | None = None, step: int = 0
    ) -> None:
        self.parameters, self.state, self.optimizer, self.step = parameters, state, optimizer, step
        self._spare: Values | None = None  # earlier values, whose buffers are written over next
        self._moved: tuple[Collection[str], Collection[str]] = ((), ())  # the names in which the spare differs
        self._versions = (parameters.version, state.version)
        self._holders: list[None] = []  # an entry for each; threads add and remove entries in one go
        self._changes = False  # while somebody assigns

    def arrays(self) -> dict[str, Any]:
        """Return parameters and state by full name, as layers see them."""
        return {**self.parameters.views(), **self.state.views()}

    def numpy(self, name: str) -> np.ndarray[Any, Any]:
        """Return a copy of an array by its full name."""
        return self._storage_of(name).numpy(name)

    def _storage_of(self, name: str) -> Storage:
        return self.parameters if name in self.parameters.layout.declarations else self.state

    def going_on(self, optimizer: Optimizer) -> OptimizerState:
        """Return the state from which steps of an optimizer go on: a new one unless it fits the one before."""
        before = self.optimizer
        if before is None or not before.fits(optimizer):
            before = OptimizerState.start(optimizer, self.parameters)
        return before.with_optimizer(optimizer)

    def move(self, optimizer: Optimizer, parameters: Collection[str], state: Collection[str]) -> Move:
        """Return what one step needs: from where it goes on, and the values after it, into which it writes.

        The buffers of the latter are the spare ones, which hold the values here in all that will not be written. From
        the next step on, the buffers here are spare.

        Arguments:
            optimizer: what takes the step; it restarts unless it fits the one before.
            parameters, state: the names of the arrays that will be written, slots with their parameters.

        Raises:
            ArgumentError: a schedule that gives no learning rate.
        """
        before = self.going_on(optimizer)
        t, began, scale = before.t + 1, before.began, before.scale
        rate = before.learning_rate(t)
        spare, self._spare = self._spare, None  # if the step fails, nobody knows what was written
        held = None if spare is None or spare._holders else spare.optimizer
        if spare is None or held is None or held.is_shared or held.slots.keys() != before.slots.keys():
            slots = {name: slot.copy() for name, slot in before.slots.items()}
            spare = Values(self.parameters.copy(), self.state.copy(), OptimizerState(optimizer, before.backend, slots))
        else:
            self._catch_up(spare, before, parameters, state)
        slots = spare.optimizer.slots if spare.optimizer is not None else {}
        missed = before.missed
        if len(parameters) < len(names := self.parameters.layout.declarations):
            missed = {**missed, **{name: missed.get(name, 0) + 1 for name in names if name not in parameters}}
        moved = OptimizerState(optimizer, before.backend, slots, t=t, began=began, scale=scale, missed=missed)
        after = Values(spare.parameters, spare.state, moved, self.step + 1)
        after._spare, after._moved = self, (parameters, state)
        return Move(before, after, rate)

    def _catch_up(
        self, spare: Values, optimizer: OptimizerState, parameters: Collection[str], state: Collection[str]
    ) -> None:
        """Copy to the spare buffers what differs there and is not written next."""
        same = self.optimizer is not None and self.optimizer.slots is optimizer.slots
        if not same or self._versions != (self.parameters.version, self.state.version):
            self._moved = (tuple(self.parameters.layout.declarations), tuple(self.state.layout.declarations))
        if self._moved[0] is not parameters and (rest := set(self._moved[0]).difference(parameters)):
            assert spare.optimizer is not None
            pairs = [(slot, spare.optimizer.slots[name]) for name, slot in optimizer.slots.items()]
            for run in self.parameters.layout.runs(rest):
                for source, target in [(self.parameters.flat, spare.parameters.flat), *pairs]:
                    target[run] = source[run]
        if self._moved[1] is not state and (rest := set(self._moved[1]).difference(state)):
            for run in self.state.layout.runs(rest):
                spare.state.flat[run] = self.state.flat[run]


class _Owner(Protocol):
    values: Values


def assign(owner: _Owner, arrays: Iterable[tuple[str, Any]], step: int | None = None) -> None:
    """Replace arrays by full name, all at once for others: those who hold the values keep them as they are."""
    with _lock:
        values = before = owner.values
        before._changes = True  # from here on nobody begins to hold them
        try:
            if before._holders:
                if before.optimizer is not None:
                    before.optimizer.is_shared = True
                values = Values(before.parameters.copy(), before.state.copy(), before.optimizer, before.step)
            for name, value in arrays:
                values._storage_of(name).assign(name, value)
            if step is not None:
                values.step = step
            owner.values = values
        finally:
            before._changes = False


_lock = threading.Lock()  # of who assigns

if hasattr(os, "register_at_fork"):  # no child begins in the midst of an assignment
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Holding:
    """A context that gives the values of a network, which stay as they are until it ends, whatever else goes on."""

    __slots__ = ("_owner", "_values")

    def __init__(self, owner: _Owner) -> None:
        self._owner = owner

    def __enter__(self) -> Values:
        while True:
            values = self._values = self._owner.values
            values._holders.append(None)
            if self._owner.values is values and not values._changes:
                return values
            values._holders.pop()  # somebody assigns, or steps may have begun to write
            with _lock:
                pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._values._holders.pop()
