"""One training step, prepared once: gradients of a batch, checked, and the values that follow.

A step changes nothing that it is given. It returns new values, which the caller puts in the place of the old ones.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from lamella.backends import Backend
from lamella.engine.arrays import Storage
from lamella.engine.gradients import Gradients
from lamella.engine.passes import Batch, StepResult
from lamella.engine.rounds import Slices
from lamella.engine.threads import run_tasks, thread_count
from lamella.engine.values import Move, Values
from lamella.errors import BusyError, LayerError, NonFiniteError
from lamella.graph.plan import Plan
from lamella.graph.slicing import cut
from lamella.losses import Loss
from lamella.network import Network
from lamella.optimizers import Optimizer, writer_of
from lamella.optimizers.optimizer import Rule, rules_of
from lamella.protocol.inputs import naming
from lamella.training.data import Data
from lamella.training.diagnosis import are_finite, explain_data, explain_non_finite, is_finite
from lamella.training.rules import Rules

__all__ = ["TrainStep", "TrainSteps", "Update", "checked_update", "prepared"]

_KEPT = 4  # batch sizes for which steps are kept
PIECE = 1 << 15  # entries that a thread updates at a time, or up to 8 times as many: they stay in a shared cache
THREADED = 1 << 21  # entries times passes over them from which on threads pay in an update


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

    def take(
        self, batch: Batch, rows: int, optimizer: Optimizer, *, begins: bool, data: Data | None = None
    ) -> StepResult:
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
            result, moved = step(batch, values, optimizer, begins=begins, data=data)
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
        self, batch: Batch, values: Values, optimizer: Optimizer, *, begins: bool = False, data: Data | None = None
    ) -> tuple[StepResult, Values]:
        """Take one step, or raise; where training ``begins``, losses examine the predictions.

        Errors tell the row of ``data``, arrays that the batch is from, and of the batch where there are none.
        """
        with np.errstate(all="ignore"):
            return self._step(batch, values, optimizer, begins, data)

    def _step(
        self, batch: Batch, values: Values, optimizer: Optimizer, begins: bool, data: Data | None
    ) -> tuple[StepResult, Values]:
        result = self._slices.step(values, batch, self.losses, self.network.seed)
        loss = sum(result.losses)
        finite = math.isfinite(loss) and self._update.are_finite()
        of_data = "" if finite else self._explain_data(batch, data)
        if begins and not of_data:
            self._examine(result)
        if not finite:
            raise explain_non_finite(self.network, self.plan, values, self.losses, batch, loss, of_data)
        if result.updates:
            self._check_updates(values, result.updates)
        if any(getattr(one, "base", None) is not None for one in result.predictions):
            # it may be a view of a parameter whose buffer is written over later
            result = result._replace(predictions=tuple(map(_own, result.predictions)))
        return result, self._update(values, optimizer, result.updates)

    def _explain_data(self, batch: Batch, data: Data | None) -> str:
        """What is not finite in the data; in the batch, where they have no arrays, or are too large for its dtype."""
        found = "" if data is None else explain_data(self.network, data.inputs, data.prepared)
        return found or explain_data(self.network, batch.inputs, batch.targets, " of the batch")

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


class _Piece(NamedTuple):
    """A piece of the flat buffers: the rule that moves it, what the rule reads, and where its results go."""

    rule: Rule
    write: Callable[..., None] | None  # the rule's update in place; None where there is its formula alone
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
                write=_writer(device, rule.optimizer),
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


def _writer(device: Backend, optimizer: Optimizer) -> Callable[..., None] | None:
    if not device.writes_in_place:
        return None
    own: Callable[..., None] | None = device.writers.get(type(optimizer).update)
    return own or writer_of(optimizer)


def _update(device: Backend, piece: _Piece, rate: float, t: int) -> None:
    """Write what an optimizer makes of one piece; it counts the steps in which the parameters took part."""
    optimizer, factor = piece.rule
    rate, t = rate * factor, t - piece.missed
    if piece.write is not None:
        piece.write(optimizer, piece.p, piece.g, piece.slots, rate, t, piece.new_p, piece.new_slots, piece.work)
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
