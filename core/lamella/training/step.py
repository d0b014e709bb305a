"""One training step, prepared once: gradients of a batch, checked, and the values that follow.

A step changes nothing that it is given. It returns new values, which the caller puts in the place of the old ones.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
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
from lamella.optimizers import WRITERS, Optimizer
from lamella.protocol.inputs import naming
from lamella.training.diagnosis import are_finite, explain_non_finite, is_finite
from lamella.training.rules import Rules

__all__ = ["TrainStep", "TrainSteps", "checked_update", "prepared"]

PIECE = 1 << 15  # entries that a thread updates at a time, or up to 8 times as many: they stay in a shared cache
THREADED = 1 << 21  # entries times passes over them from which on threads pay in an update
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


class _Piece(NamedTuple):
    """A piece of the flat buffers: what an optimizer reads, and where its results go."""

    p: Any
    g: Any
    slots: dict[str, Any]
    new_p: Any
    new_slots: dict[str, Any]
    work: Any  # for the optimizer to compute in
    missed: int  # in how many steps the parameters took no part


class TrainStep:
    """A step on batches of so many rows."""

    def __init__(
        self, network: Network, plan: Plan, slices: Slices, losses: Sequence[Loss | None], rules: Rules
    ) -> None:
        self._network, self.plan, self.losses, self.rules = weakref.ref(network), plan, losses, rules
        self._device = network.device
        self._slices, self._gradients, self.blas = slices, slices.gradients, slices.blas
        self._parts = [slices.gradients.storage.flat[run] for run in slices.gradients.runs]
        self._threads = thread_count() if network.device.uses_threads else 1
        self._known: list[tuple[tuple[Any, ...], list[int], list[_Piece]]] = []  # with what they are of
        self._updated: tuple[str, ...] = ()

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
        if not math.isfinite(loss) or not self._are_finite():
            raise explain_non_finite(self.network, self.plan, values, self.losses, batch, loss)
        if begins:
            self._examine(result)
        if result.updates:
            self._check_updates(values, result.updates)
        if self.rules.shapes_gradients:
            self._shape_gradients(values)
        if any(getattr(one, "base", None) is not None for one in result.predictions):
            # it may be a view of a parameter whose buffer is written over later
            result = result._replace(predictions=tuple(map(_own, result.predictions)))
        if result.updates.keys() != set(self._updated):
            self._updated = tuple(result.updates)
        move = values.move(optimizer, self._gradients.names, self._updated)
        self._apply(values, move)
        if self.rules.constraints:
            self.rules.constrain(move.after.parameters)
        for name, value in result.updates.items():
            move.after.state.part(name)[...] = self._device.storable(value)
        return result, move.after

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

    def _shape_gradients(self, values: Values) -> None:
        self.rules.shape(values.parameters, self._gradients)
        if not self._are_finite():
            given = self._gradients.items()
            name = next(name for name, value in given if not is_finite(self._device, value))
            raise NonFiniteError(
                f"step {values.step}: a penalty makes the gradient of {name} not finite; nothing of this step was kept"
            )

    def _are_finite(self) -> bool:
        """Whether every gradient is finite: the sum of squares tells, unless it overflows."""
        if all(math.isfinite(part.dot(part)) for part in self._parts):
            return True
        return are_finite(self._device, self._parts)

    def _apply(self, values: Values, move: Move) -> None:
        """Let the optimizer write new parameters and slots. Large buffers go piece by piece, over threads."""
        device, optimizer, rate = self._device, move.before.optimizer, move.rate
        pieces, t = self._pieces(values, move), move.before.t + 1
        count = max(1, min(self._threads, len(pieces)))
        if count == 1:
            for piece in pieces:
                _update(optimizer, device, piece, rate, t)
            return
        errors: list[BaseException] = []

        def task(some: Sequence[_Piece]) -> None:
            try:
                with np.errstate(all="ignore"):
                    for piece in some:
                        _update(optimizer, device, piece, rate, t)
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
        new_slots = move.after.optimizer.slots
        buffers = parameters, target, slots, new_slots
        counts = [move.before.missed.get(name, 0) for name in self._gradients] if move.before.missed else []
        for known, of, pieces in self._known:
            if all(map(operator.is_, known, buffers)) and of == counts:
                return pieces
        runs, device = [(run, 0) for run in self._gradients.runs], self._device
        if any(counts):  # parameters that missed equally many steps go together
            pairs = list(zip(self._gradients, counts, strict=True))
            alike = {count: {name for name, own in pairs if own == count} for count in set(counts)}
            runs = [(run, count) for count, names in alike.items() for run in parameters.layout.runs(names)]
        entries, passes = sum(run.stop - run.start for run, _ in runs), 2 + 5 * len(slots)
        by_itself = type(move.after.optimizer.optimizer).update in device.writers
        if device.uses_threads and entries * passes >= THREADED and not by_itself:
            size = min(max(PIECE, -(-entries // self._threads)), 8 * PIECE)
            runs = [
                (slice(k, min(k + size, run.stop)), count)
                for run, count in runs
                for k in range(run.start, run.stop, size)
            ]
        pieces = [
            _Piece(
                p=device.view(parameters.flat[run]),
                g=device.view(self._gradients.storage.flat[run]),
                slots={name: device.view(slot[run]) for name, slot in slots.items()},
                new_p=target.flat[run],
                new_slots={name: slot[run] for name, slot in new_slots.items()},
                work=np.empty(run.stop - run.start if device.writes_in_place else 0, parameters.dtype),
                missed=count,
            )
            for run, count in runs
        ]
        if device.views_are_live:
            self._known = [*self._known[-1:], (buffers, counts, pieces)]
        return pieces


def _update(optimizer: Optimizer, device: Backend, piece: _Piece, rate: float, t: int) -> None:
    """Write what an optimizer makes of one piece; it counts the steps in which the parameters took part."""
    t -= piece.missed
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


def _own(value: Any) -> Any:
    """An array that nothing written later can change: a copy, if it is a view of another."""
    return value if getattr(value, "base", None) is None else value.copy()
