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
from lamella.training.diagnosis import explain_non_finite
from lamella.training.rules import Rules
from lamella_onnx.backend.sessions import Sessions
from lamella_onnx.runtime import ParityError
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
    trace_training,
)
from lamella_onnx.validity import in_one_line

__all__ = ["GraphStep"]

Array = np.ndarray[Any, Any]


class _Traced(NamedTuple):
    """A step that was traced, for one rule of an optimizer and one form of targets."""

    optimizer: Optimizer
    missed: dict[str, int]
    targets: tuple[Any, ...]  # dtype and shape of a row
    inputs: tuple[Entry, ...]
    sessions: Sessions


class GraphStep:
    """The training steps of one network with one task, called as `lamella.training.step.TrainStep` is.

    Attributes:
        losses, rules: what the step does; objects that replace them are equal to them.
        blas: a context that the caller holds during a step.
    """

    def __init__(self, network: Network, plan: Plan, losses: Sequence[Loss | None], rules: Rules) -> None:
        self._network, self.plan, self.losses, self.rules = weakref.ref(network), plan, losses, rules
        self.blas = contextlib.nullcontext()
        self._names = frozenset(plan.parameters)
        self._state = tuple(moving_state(network))
        self._asked = [FINITE, *(f"{name}.loss" for name, loss in self._each(network) if loss is not None)]
        self._asked += network.output_names
        self._traced: list[_Traced] = []
        self._bound: list[tuple[tuple[Any, ...], Any]] = []  # bindings, with the buffers that they are of

    def _each(self, network: Network) -> zip[tuple[str, Loss | None]]:
        return zip(network.output_names, self.losses, strict=True)

    def __call__(
        self, batch: Batch, values: Values, optimizer: Optimizer, *, begins: bool = False
    ) -> tuple[StepResult, Values]:
        """Take one step, or raise; where training ``begins``, losses examine the predictions."""
        network = self._network()
        assert network is not None
        move = values.move(optimizer, self._names, self._state)
        traced = self._fitting(network, batch, move)
        session = traced.sessions.get()
        binding = self._binding(session, traced, values, move)
        for name, array in self._feeds(network, batch, values, move).items():
            binding.bind_cpu_input(name, array)
        for name in self._asked:  # anew, where it keeps those of the step before, of other sizes perhaps
            binding.bind_output(name)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise ParityError(
                f"onnxruntime {onnxruntime.__version__} can't run the training step: {in_one_line(error)}"
            ) from error
        finite, *rest = [value.numpy() for value in binding.get_outputs()[: len(self._asked)]]
        given = iter(rest)
        losses = tuple(0.0 if loss is None else float(next(given)) for loss in self.losses)
        predictions = tuple(given)
        if not finite or not math.isfinite(sum(losses)):
            raise explain_non_finite(network, self.plan, values, self.losses, batch, sum(losses))
        if begins:
            for (name, loss), prediction in zip(self._each(network), predictions, strict=True):
                if loss is not None:
                    with naming(name, network.output_names):
                        loss.examine(prediction)
        return StepResult(losses, predictions, {}, (), {}), move.after

    def _fitting(self, network: Network, batch: Batch, move: Move) -> _Traced:
        """The step of these targets and this optimizer, traced if there is none yet."""
        before = move.before
        missed = {name: count for name, count in before.missed.items() if name in self._names}
        targets = tuple(None if y is None else (y.dtype.name, y.shape[1:]) for y in batch.targets)
        for known in self._traced:
            same = known.optimizer is before.optimizer or before.fits(known.optimizer)
            if same and known.missed == missed and known.targets == targets:
                return known
        specs = [
            None if y is None else ArraySpec(axes_of(spec, y.shape), y.dtype.name)
            for spec, y in zip(network.output_specs, batch.targets, strict=True)
        ]
        trace = trace_training(network, self.losses, before.optimizer, self.rules, specs, missed=missed, as_stored=True)
        content = trace.proto(without=(LOSS, PENALTY, f"{STEP}.new", f"{T}.new")).SerializeToString()
        found = _Traced(before.optimizer, missed, targets, trace.inputs, Sessions(content))
        self._traced = [*self._traced[-1:], found]
        self._bound = []
        return found

    def _feeds(self, network: Network, batch: Batch, values: Values, move: Move) -> dict[str, Array]:
        """What changes from step to step: the batch, the learning rate and the counters."""
        feeds = {name: np.ascontiguousarray(x) for name, x in zip(network.input_names, batch.inputs, strict=True)}
        for (name, loss), target, weights in zip(self._each(network), batch.targets, batch.weights, strict=True):
            if loss is not None:
                feeds[f"{name}.target"] = np.ascontiguousarray(target).reshape(target.shape)
                feeds[f"{name}.weight"] = weights
        feeds[LEARNING_RATE] = np.array(move.rate, network.dtype)
        feeds[SEED] = np.array([network.seed & 0xFFFFFFFF, network.seed >> 32], "uint32")
        feeds[STEP] = np.array(values.step & 0xFFFFFFFF, "uint32")
        feeds[T] = np.array(move.before.t, "int32")
        return feeds

    def _binding(self, session: onnxruntime.InferenceSession, traced: _Traced, values: Values, move: Move) -> Any:
        """The binding that reads the arrays of some values and writes those of the next."""
        slots, new_slots = move.before.slots, move.after.optimizer.slots if move.after.optimizer else {}
        of = session, values.parameters, values.state, slots, move.after.parameters, move.after.state, new_slots
        for known, binding in self._bound:
            if all(map(operator.is_, known, of)):
                return binding
        binding = session.io_binding()
        for name in self._asked:  # whose values stand first
            binding.bind_output(name)
        layout = values.parameters.layout
        given = {**values.parameters.stored(), **values.state.stored()}
        given |= {
            f"{name}.{slot}": array for slot, flat in slots.items() for name, array in layout.stored(flat).items()
        }
        new = {**move.after.parameters.stored(), **move.after.state.stored()}
        new |= {
            f"{name}.{slot}": array for slot, flat in new_slots.items() for name, array in layout.stored(flat).items()
        }
        moving = {*self._names, *self._state}
        for entry in traced.inputs:
            if entry.role not in ("parameter", "state", "slot"):
                continue
            binding.bind_ortvalue_input(entry.name, _wrapped(given[entry.name]))
            if entry.role == "slot" or entry.name in moving:
                binding.bind_ortvalue_output(f"{entry.name}.new", _wrapped(new[entry.name]))
        self._bound = [*self._bound[-1:], (of, binding)]
        return binding


def _slots(layout: Layout, slots: Mapping[str, Array]) -> dict[str, Array]:
    """The slots of each parameter by their names in the graph."""
    return {f"{name}.{slot}": array for slot, flat in slots.items() for name, array in layout.stored(flat).items()}


def _wrapped(array: Array) -> Any:
    """A value of onnxruntime that is the array itself."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
