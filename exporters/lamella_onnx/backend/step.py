"""Training steps in onnxruntime."""

from __future__ import annotations

import contextlib
import math
import operator
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from lamella import ArraySpec
from lamella.engine.arrays import Layout
from lamella.engine.passes import Batch, StepResult
from lamella.engine.values import Move, Values
from lamella.graph.plan import Plan
from lamella.losses import Loss
from lamella.network import Network
from lamella.optimizers import Optimizer
from lamella.protocol.inputs import naming
from lamella.training.data import Data
from lamella.training.rules import Rules
from lamella.training.step import TrainStep, prepared
from lamella_onnx.backend.sessions import Sessions
from lamella_onnx.runtime import refusal
from lamella_onnx.training.manifest import Entry
from lamella_onnx.training.trace import (
    FINITE,
    LEARNING_RATE,
    LOSS,
    PENALTY,
    SEED,
    STEP,
    T,
    axes_of,
    moving_state,
    shows_gradients,
    trace_training,
)

__all__ = ["GraphStep"]

Array = np.ndarray[Any, Any]


class _Traced(NamedTuple):
    """A step that was traced, for one rule of an optimizer and one form of targets."""

    optimizer: Optimizer
    missed: dict[str, int]
    targets: tuple[Any, ...]  # dtype and shape of a row
    arrays: tuple[Entry, ...]  # inputs that are parameters, state and slots
    sessions: Sessions
    tells_finite: bool


class _Bound(NamedTuple):
    """A binding of one session to the buffers of a step and of the next.

    What is bound stays bound: the small arrays are read and written where they are, and a step binds its batch only.
    """

    of: tuple[Any, ...]  # what it was made for
    binding: Any
    small: dict[str, Array]  # learning rate and counters, written before a step; losses, read after it
    weights: dict[str, Array]  # what is bound as the rows' weights


class GraphStep:
    """The training steps of one network with one task, called as `lamella.training.step.TrainStep` is.

    Attributes:
        losses, rules: what the step does; objects that replace them are equal to them.
        blas: a context that the caller holds during a step.
    """

    def __init__(self, network: Network, plan: Plan, losses: Sequence[Loss | None], rules: Rules) -> None:
        self._network, self.plan, self.losses, self.rules = weakref.ref(network), plan, losses, rules
        self.blas = contextlib.nullcontext()
        self._names, self._state = frozenset(plan.parameters), tuple(moving_state(network))
        self._runs = network.values.parameters.layout.runs(self._names)
        self._trained = [name for name, loss in zip(network.output_names, losses, strict=True) if loss is not None]
        self._traced: list[_Traced] = []
        self._bound: list[_Bound] = []

    def __call__(
        self, batch: Batch, values: Values, optimizer: Optimizer, *, begins: bool = False, data: Data | None = None
    ) -> tuple[StepResult, Values]:
        """Take one step, or raise; where training ``begins``, losses examine the predictions."""
        network = self._network()
        assert network is not None
        move = values.move(optimizer, self._names, self._state)
        traced = self._fitting(network, batch, move)
        session = traced.sessions.get()
        bound = self._binding(session, traced, network, values, move)
        predictions = self._bind(network, batch, bound)
        small = bound.small
        small[LEARNING_RATE][...], small[STEP][...], small[T][...] = move.rate, values.step, move.before.t
        small[SEED][...] = network.seed & 0xFFFFFFFF, network.seed >> 32
        try:
            session.run_with_iobinding(bound.binding)
        except Exception as error:  # onnxruntime's own have no common base
            self._by_engine(network, batch, values, optimizer, begins, data)  # which says what is wrong with the data
            raise refusal("the training step", error) from error
        names = network.output_names
        losses = tuple([float(small[f"{name}.loss"]) if name in self._trained else 0.0 for name in names])
        if not (math.isfinite(sum(losses)) and small[FINITE] and self._are_finite(batch, move.after)):
            return self._by_engine(network, batch, values, optimizer, begins, data)
        if begins:
            for name, own, prediction in zip(names, self.losses, predictions, strict=True):
                if own is not None:
                    with naming(name, names):
                        own.examine(prediction)
        return StepResult(losses, predictions, {}, (), {}), move.after

    def _by_engine(
        self,
        network: Network,
        batch: Batch,
        values: Values,
        optimizer: Optimizer,
        begins: bool,
        data: Data | None,
    ) -> tuple[StepResult, Values]:
        """The same step by the engine, where onnxruntime's fails: it says why, or finds that only sums overflowed."""
        slices = prepared(network, self.plan, batch.inputs[0].shape[0], [])
        step = TrainStep(network, self.plan, slices, self.losses, self.rules)
        with step.blas:
            return step(batch, values, optimizer, begins=begins, data=data)

    def _are_finite(self, batch: Batch, after: Values) -> bool:
        """Whether inputs, and all that is new, are finite by the sum of squares; onnxruntime's MaxPool drops a NaN."""
        parts = [after.parameters.flat[run] for run in self._runs]
        if self._state:
            parts.append(after.state.flat)
        parts += [x.reshape(-1) for x in batch.inputs if x.dtype.kind == "f"]
        with np.errstate(all="ignore"):
            return all(math.isfinite(part.dot(part)) for part in parts)

    def _fitting(self, network: Network, batch: Batch, move: Move) -> _Traced:
        """The step of these targets and this optimizer, traced if there is none yet."""
        before = move.before
        targets = tuple([None if y is None else (y.dtype, y.shape[1:]) for y in batch.targets])
        missed = {name: count for name, count in before.missed.items() if name in self._names}
        for known in self._traced:
            same = known.optimizer is before.optimizer or before.fits(known.optimizer)
            if same and known.missed == missed and known.targets == targets:
                return known
        specs = [
            None if y is None else ArraySpec(axes_of(spec, y.shape), y.dtype.name)
            for spec, y in zip(network.output_specs, batch.targets, strict=True)
        ]
        trace = trace_training(network, self.losses, before.optimizer, self.rules, specs, missed=missed, as_stored=True)
        left_out = {LOSS, PENALTY, f"{STEP}.new", f"{T}.new"}
        if shows_gradients(before.optimizer, self.rules):  # by its new parameters
            left_out.add(FINITE)
        found = _Traced(
            before.optimizer,
            missed,
            targets,
            tuple(entry for entry in trace.inputs if entry.role in ("parameter", "state", "slot")),
            Sessions(trace.proto(without=left_out).SerializeToString()),
            FINITE not in left_out,
        )
        self._traced, self._bound = [*self._traced[-1:], found], []
        return found

    def _bind(self, network: Network, batch: Batch, bound: _Bound) -> tuple[Array, ...]:
        """Bind a batch, and new arrays for the predictions."""
        binding = bound.binding
        sizes: dict[int | str, int] = {}
        for name, spec, x in zip(network.input_names, network.input_specs, batch.inputs, strict=True):
            binding.bind_cpu_input(name, np.ascontiguousarray(x))
            sizes.update(zip(spec.shape, x.shape, strict=True))
        predictions = []
        for name, spec, target, weights in zip(
            network.output_names, network.output_specs, batch.targets, batch.weights, strict=True
        ):
            if name in self._trained:
                binding.bind_cpu_input(f"{name}.target", np.ascontiguousarray(target))
                if bound.weights.get(name) is not weights:
                    binding.bind_cpu_input(f"{name}.weight", weights)
                    bound.weights[name] = weights
            prediction = np.empty([size if isinstance(size, int) else sizes[size] for size in spec.shape], spec.dtype)
            binding.bind_ortvalue_output(name, _wrapped(prediction))
            predictions.append(prediction)
        return tuple(predictions)

    def _binding(
        self, session: onnxruntime.InferenceSession, traced: _Traced, network: Network, values: Values, move: Move
    ) -> _Bound:
        """The binding that reads the arrays of some values and writes those of the next."""
        assert move.after.optimizer is not None
        slots, new_slots = move.before.slots, move.after.optimizer.slots
        of = session, values.parameters, values.state, slots, move.after.parameters, move.after.state, new_slots
        for known in self._bound:
            if all(map(operator.is_, known.of, of)):
                return known
        binding, layout = session.io_binding(), values.parameters.layout
        given = {**values.parameters.stored(), **values.state.stored(), **_slots(layout, slots)}
        new = {**move.after.parameters.stored(), **move.after.state.stored(), **_slots(layout, new_slots)}
        moving = {*self._names, *self._state}
        for entry in traced.arrays:
            binding.bind_ortvalue_input(entry.name, _wrapped(given[entry.name]))
            if entry.role == "slot" or entry.name in moving:
                binding.bind_ortvalue_output(f"{entry.name}.new", _wrapped(new[entry.name]))
        small = {
            LEARNING_RATE: np.zeros((), network.dtype),
            SEED: np.zeros(2, "int64"),
            STEP: np.zeros((), "int64"),
            T: np.zeros((), "int64"),
        }
        for name, array in small.items():
            binding.bind_ortvalue_input(name, _wrapped(array))
        results = {f"{name}.loss": np.zeros((), network.dtype) for name in self._trained} | {
            FINITE: np.ones((), "uint8")
        }
        for name, array in results.items():
            if name != FINITE or traced.tells_finite:
                binding.bind_ortvalue_output(name, _wrapped(array))
        found = _Bound(of, binding, small | results, {})
        self._bound = [*self._bound[-1:], found]
        return found


def _slots(layout: Layout, slots: Mapping[str, Array]) -> dict[str, Array]:
    """The slots of each parameter by their names in the graph."""
    return {f"{name}.{slot}": array for slot, flat in slots.items() for name, array in layout.stored(flat).items()}


def _wrapped(array: Array) -> Any:
    """A value of onnxruntime that is the array itself."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
