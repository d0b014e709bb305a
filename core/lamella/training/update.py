"""The update of a step: from gradients that stand in a buffer to the values after it, which are written anew."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lamella.backends import Backend
from lamella.engine.gradients import Gradients
from lamella.engine.threads import run_tasks, thread_count
from lamella.engine.values import Move, Values
from lamella.errors import LayerError, NonFiniteError
from lamella.optimizers import WRITERS, Optimizer
from lamella.optimizers.optimizer import Rule, rules_of
from lamella.training.diagnosis import are_finite, is_finite
from lamella.training.rules import Rules

__all__ = ["Update", "checked_update"]

PIECE = 1 << 15  # entries that a thread updates at a time, or up to 8 times as many: they stay in a shared cache
THREADED = 1 << 21  # entries times passes over them from which on threads pay in an update


class _Piece(NamedTuple):
    """A piece of the flat buffers: the rule that moves it, what the rule reads, and where its results go."""

    rule: Rule
    p: Any
    g: Any
    slots: dict[str, Any]
    new_p: Any
    new_slots: dict[str, Any]
    work: Any  # for the optimizer to compute in
    missed: int  # in how many steps the parameters took no part


class Update:
    """What a step does with the gradients in a buffer, prepared once.

    Attributes:
        gradients: the buffer.
        rules: penalties, clips and constraints.
    """

    def __init__(self, device: Backend, gradients: Gradients, rules: Rules) -> None:
        self.gradients, self.rules, self._device = gradients, rules, device
        self._parts = [gradients.storage.flat[run] for run in gradients.runs]
        self._threads = thread_count() if device.uses_threads else 1
        self._known: list[tuple[tuple[Any, ...], list[int], list[_Piece]]] = []  # with what they are of
        self._updated: tuple[str, ...] = ()

    def are_finite(self) -> bool:
        """Return whether every gradient is finite: the sum of squares tells, unless it overflows."""
        if all(math.isfinite(part.dot(part)) for part in self._parts):
            return True
        return are_finite(self._device, self._parts)

    def __call__(self, values: Values, optimizer: Optimizer, state: Mapping[str, Any] = MappingProxyType({})) -> Values:
        """Return the values after a step; ``state`` are new values of arrays of layers.

        Raises:
            NonFiniteError: a penalty makes a gradient not finite.
            LayerError: the optimizer gives something else than arrays like the old ones.
        """
        if self.rules.shapes_gradients:
            self._shape_gradients(values)
        if state.keys() != set(self._updated):
            self._updated = tuple(state)
        move = values.move(optimizer, self.gradients.names, self._updated)
        self._apply(values, move)
        if self.rules.constraints:
            self.rules.constrain(move.after.parameters)
        for name, value in state.items():
            move.after.state.part(name)[...] = self._device.storable(value)
        return move.after

    def _shape_gradients(self, values: Values) -> None:
        self.rules.shape(values.parameters, self.gradients)
        if not self.are_finite():
            given = self.gradients.items()
            name = next(name for name, value in given if not is_finite(self._device, value))
            raise NonFiniteError(
                f"step {values.step}: a penalty makes the gradient of {name} not finite; nothing of this step was kept"
            )

    def _apply(self, values: Values, move: Move) -> None:
        """Let the optimizer write new parameters and slots. Large buffers go piece by piece, over threads."""
        device, rate = self._device, move.rate
        pieces, t = self._pieces(values, move), move.before.t + 1
        count = max(1, min(self._threads, len(pieces)))
        if count == 1:
            for piece in pieces:
                _update(device, piece, rate, t)
            return
        errors: list[BaseException] = []

        def task(some: Sequence[_Piece]) -> None:
            try:
                with np.errstate(all="ignore"):
                    for piece in some:
                        _update(device, piece, rate, t)
            except BaseException as error:
                errors.append(error)

        shares = [pieces[len(pieces) * k // count : len(pieces) * (k + 1) // count] for k in range(count)]
        run_tasks([partial(task, share) for share in shares])
        if errors:
            raise errors[0]

    def _pieces(self, values: Values, move: Move) -> list[_Piece]:
        """The pieces of the flat buffers that are updated one by one, as kept for both sets of buffers."""
        parameters, target, slots = values.parameters, move.after.parameters, move.before.slots
        assert move.after.optimizer is not None
        new_slots, optimizer = move.after.optimizer.slots, move.before.optimizer
        buffers = parameters, target, slots, new_slots  # of steps of optimizers that differ in learning rates only
        counts = [move.before.missed.get(name, 0) for name in self.gradients] if move.before.missed else []
        for known, of, pieces in self._known:
            if all(map(operator.is_, known, buffers)) and of == counts:
                return pieces
        runs, device = [(run, Rule(optimizer), 0) for run in self.gradients.runs], self._device
        rules = rules_of(optimizer, parameters.layout.declarations)
        if rules or any(counts):  # parameters of one rule that missed equally many steps go together
            alike: dict[tuple[Rule, int], set[str]] = {}
            for name, count in zip(self.gradients, counts or [0] * len(self.gradients), strict=True):
                alike.setdefault((rules.get(name, Rule(optimizer)), count), set()).add(name)
            runs = [(run, *key) for key, names in alike.items() for run in parameters.layout.runs(names)]
        entries, passes = sum(run.stop - run.start for run, *_ in runs), 2 + 5 * len(slots)
        by_itself = all(type(rule.optimizer).update in device.writers for _, rule, _ in runs)
        if device.uses_threads and entries * passes >= THREADED and not by_itself:
            size = min(max(PIECE, -(-entries // self._threads)), 8 * PIECE)
            runs = [
                (slice(k, min(k + size, run.stop)), rule, count)
                for run, rule, count in runs
                for k in range(run.start, run.stop, size)
            ]
        pieces = [
            _Piece(
                rule=rule,
                p=device.view(parameters.flat[run]),
                g=device.view(self.gradients.storage.flat[run]),
                slots={name: device.view(slot[run]) for name, slot in slots.items()},
                new_p=target.flat[run],
                new_slots={name: slot[run] for name, slot in new_slots.items()},
                work=np.empty(run.stop - run.start if device.writes_in_place else 0, parameters.dtype),
                missed=count,
            )
            for run, rule, count in runs
        ]
        if device.views_are_live:
            self._known = [*self._known[-1:], (buffers, counts, pieces)]
        return pieces


def _update(device: Backend, piece: _Piece, rate: float, t: int) -> None:
    """Write what an optimizer makes of one piece; it counts the steps in which the parameters took part."""
    optimizer, factor = piece.rule
    rate, t = rate * factor, t - piece.missed
    update = type(optimizer).update
    writer = (device.writers.get(update) or WRITERS.get(update)) if device.writes_in_place else None
    if writer is not None:
        writer(optimizer, piece.p, piece.g, piece.slots, rate, t, piece.new_p, piece.new_slots, piece.work)
        return
    given = optimizer.update(device.xp, piece.p, piece.g, dict(piece.slots), rate, t)
    new, slots = checked_update(optimizer, piece.p, piece.slots, given)
    piece.new_p[...] = device.storable(new)
    for name, value in slots.items():
        piece.new_slots[name][...] = device.storable(value)


def checked_update(optimizer: Optimizer, p: Any, slots: Mapping[str, Any], given: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return what an optimizer's update gave, if it is a new parameter and every slot, each like the old one.

    Raises:
        LayerError: it is something else.
    """
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
        new, own = given
        if own.keys() == slots.keys() and all(
            getattr(value, "shape", None) == p.shape and value.dtype == p.dtype for value in (new, *own.values())
        ):
            return new, own
    raise _misfit(optimizer, p, slots, given)


def _misfit(optimizer: Optimizer, p: Any, old: Mapping[str, Any], given: Any) -> LayerError:
    where = f"{optimizer!r}.update"
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)):
        return LayerError(f"{where}: expected the new parameter and a dict of slots, got {type(given).__name__}")
    new, slots = given
    if set(slots) != set(old):
        names = [", ".join(map(str, some)) or "none" for some in (old, slots)]
        return LayerError(f"{where}: expected new values of its slots, {names[0]}; got {names[1]}")
    odd = {
        name: value
        for name, value in {"the parameter": new, **slots}.items()
        if getattr(value, "shape", None) != p.shape or value.dtype != p.dtype
    }
    name, value = next(iter(odd.items()))
    got = f"{value.dtype} {value.shape}" if hasattr(value, "shape") else type(value).__name__
    return LayerError(f"{where}: expected {name} as {p.dtype} {tuple(p.shape)}, got {got}; be elementwise")
