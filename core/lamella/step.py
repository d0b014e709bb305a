"""One training step: gradients of a batch, checked, and then everything that moves, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.data import naming
from lamella.engine import Batch, Gradients, Plan, StepResult, cut, run_step, slice_rows
from lamella.errors import LayerError, NonFiniteError
from lamella.interruption import held
from lamella.losses import Loss
from lamella.optimizers import Optimizer
from lamella.regularization import Regularization
from lamella.schedules import learning_rate_at
from lamella.threads import run_lanes, thread_count

if TYPE_CHECKING:
    from lamella.graph import Leaf
    from lamella.model import Model

__all__ = ["OptimizerState", "compute_step", "take_step"]

PIECE = 1 << 15  # numbers of the flat buffers that an optimizer updates at a time, to stay in a core's cache


class OptimizerState:
    """What an optimizer remembers between steps: how many there were, and its slots, flat as the parameters are.

    Attributes:
        t: the number of steps so far.
        slots: the optimizer's arrays.
        scale: what every learning rate is multiplied with; callbacks change it.
        began: how many steps were taken before the first with this learning rate, from where its schedule counts.
        moved: the pieces of the flat buffers that the step in progress has moved, for `take_back`.
    """

    def __init__(self, optimizer: Optimizer, model: Model) -> None:
        self.optimizer = optimizer
        self.backend = model.device
        self.t = 0
        self.scale = 1.0
        self.began = 0
        self.slots: dict[str, Any] = {}
        for name, value in optimizer.slots.items():
            self.slots[name] = model.storage.empty_like().flat
            self.slots[name][...] = value
        self._before: dict[str, Any] = {}  # slots as they were before the last step
        self.moved: list[slice] = []

    def fits(self, optimizer: Optimizer) -> bool:
        """Whether steps of an optimizer go on from here: it may differ in its learning rate only."""
        own, other = self.optimizer.config(), optimizer.config()
        return type(self.optimizer) is type(optimizer) and own | {"learning_rate": 0} == other | {"learning_rate": 0}

    def go_on_with(self, optimizer: Optimizer) -> None:
        """Take the next steps with an optimizer that fits; another learning rate starts anew, unscaled."""
        if optimizer.learning_rate != self.optimizer.learning_rate:
            self.scale, self.began = 1.0, self.t
        self.optimizer = optimizer

    def learning_rate(self, t: int) -> float:
        """Return the learning rate of step ``t``, such as ``state.t`` for the last step."""
        return self.scale * learning_rate_at(self.optimizer.learning_rate, t - self.began)

    def as_numpy(self) -> tuple[Optimizer, dict[str, Any], dict[str, Any]]:
        """Return the optimizer, the numbers beside it by name, and the slots as NumPy."""
        slots = {name: np.array(self.backend.asnumpy(slot)) for name, slot in self.slots.items()}
        return self.optimizer, {"t": self.t, "began": self.began, "scale": self.scale}, slots

    @classmethod
    def from_numpy(
        cls, model: Model, optimizer: Optimizer, progress: Mapping[str, Any], slots: Mapping[str, Any]
    ) -> OptimizerState:
        """Return the state that `as_numpy` described, for a model of the same parameters."""
        state = cls(optimizer, model)
        state.t, state.began, state.scale = progress["t"], progress["began"], progress["scale"]
        for name, values in slots.items():
            state.slots[name][...] = model.device.storable(model.device.asarray(values.astype(model.dtype)))
        return state

    def copy(self, model: Model) -> OptimizerState:
        """Return the same state for a model of the same parameters, in its dtype and on its backend."""
        return self.from_numpy(model, *self.as_numpy())

    def apply(self, model: Model, gradients: Gradients) -> None:
        """Move parameters and slots one step; the gradients' buffer takes the old parameters, for `take_back`.

        On NumPy, buffers that a cache does not hold are updated piece by piece, over threads.

        Raises:
            LayerError: the optimizer gives something else than new values of the old shapes and dtypes. By then some
                pieces may have moved.
        """
        storage, rate = model.storage, self.learning_rate(self.t + 1)
        for name in self.slots:
            if name not in self._before:
                self._before[name] = storage.empty_like().flat
        pieces = list(storage.runs(gradients.names))
        if model.backend == "numpy" and sum(run.stop - run.start for run in pieces) > PIECE:
            pieces = [slice(k, min(k + PIECE, run.stop)) for run in pieces for k in range(run.start, run.stop, PIECE)]
        count = max(1, min(thread_count(), len(pieces))) if model.backend == "numpy" else 1
        errors: list[BaseException] = []

        def lane(first: int) -> None:
            try:
                for piece in pieces[len(pieces) * first // count : len(pieces) * (first + 1) // count]:
                    self._update(model, gradients, piece, rate)
            except BaseException as error:
                errors.append(error)

        run_lanes([partial(lane, first) for first in range(count)])
        if errors:
            raise errors[0]
        self.t += 1

    def _update(self, model: Model, gradients: Gradients, piece: slice, rate: float) -> None:
        """Update a piece of the flat buffers: compute everything, keep what is there, then write."""
        storage, backend = model.storage, model.device
        slots = {name: backend.view(slot[piece]) for name, slot in self.slots.items()}
        p, g = backend.view(storage.flat[piece]), backend.view(gradients.storage.flat[piece])
        with np.errstate(all="ignore"):
            given = self.optimizer.update(backend.xp, p, g, slots, rate, self.t + 1)
        new, new_slots = self._checked(given, p)
        values = {name: _own(backend.storable(value)) for name, value in new_slots.items()}
        new = _own(backend.storable(new))
        gradients.storage.flat[piece] = storage.flat[piece]
        for name, slot in self.slots.items():
            self._before[name][piece] = slot[piece]
        self.moved.append(piece)
        storage.flat[piece] = new
        for name, value in values.items():
            self.slots[name][piece] = value

    def take_back(self, model: Model, gradients: Gradients) -> None:
        """Undo what `apply` has moved."""
        for piece in self.moved:
            model.storage.flat[piece] = gradients.storage.flat[piece]
            for name, slot in self.slots.items():
                slot[piece] = self._before[name][piece]

    def _checked(self, given: Any, p: Any) -> tuple[Any, dict[str, Any]]:
        """What an optimizer's update returned, if it is a new parameter and every slot, each like ``p``."""
        where = f"{self.optimizer!r}.update"
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)):
            raise LayerError(f"{where}: expected the new parameter and a dict of slots, got {type(given).__name__}")
        new, slots = given
        if set(slots) != set(self.slots):
            names = [", ".join(map(str, some)) or "none" for some in (self.slots, slots)]
            raise LayerError(f"{where}: expected new values of its slots, {names[0]}; got {names[1]}")
        for name, value in {"the parameter": new, **slots}.items():
            if getattr(value, "shape", None) != p.shape or value.dtype != p.dtype:
                got = f"{value.dtype} {value.shape}" if hasattr(value, "shape") else type(value).__name__
                raise LayerError(f"{where}: expected {name} as {p.dtype} {tuple(p.shape)}, got {got}; be elementwise")
        return new, dict(slots)


def compute_step(
    model: Model,
    plan: Plan,
    losses: tuple[Loss | None, ...],
    batch: Batch,
    observe: Any = None,
    *,
    kept: list[Gradients] | None = None,
) -> tuple[StepResult, Gradients]:
    """Run one step on a whole batch, with gradients in new buffers or kept ones; nothing in the model changes.

    Observed, it is one slice, so that every leaf is seen once on its way forward and once on its way back.
    """
    rows = batch.inputs[0].shape[0]
    sliced = model.backend == "numpy" and observe is None  # a GPU wants the whole batch at once
    threads = thread_count() if sliced else 1
    sizes = slice_rows(model.program, rows, threads) if sliced else [rows]
    buffers = [] if kept is None else kept
    while len(buffers) < min(threads, len(sizes)):
        buffers.append(Gradients(model.storage.empty_like()))
    buffers = buffers[: min(threads, len(sizes))]
    where = {"seed": model.seed, "step": model.step}
    slices = cut(batch, sizes)
    result = run_step(plan, model.device, model.arrays(), slices, losses, buffers, **where, observe=observe)
    return result, buffers[0]


def take_step(
    model: Model,
    plan: Plan,
    losses: tuple[Loss | None, ...],
    optimizer: Optimizer,
    rules: Regularization,
    batch: Batch,
    *,
    begins: bool = False,
) -> StepResult:
    """Take one step, or raise and change nothing; where training ``begins``, losses examine the predictions."""
    result, gradients = compute_step(model, plan, losses, batch, kept=model.gradient_buffers)
    if not math.isfinite(result.loss) or not _are_finite(model, gradients):
        raise _explain_non_finite(model, plan, losses, batch, result.loss)
    for loss, prediction, name in zip(losses, result.predictions, model.output_names, strict=True):
        if begins and loss is not None:
            with naming(name, model.output_names):
                loss.examine(model.device.asnumpy(prediction))
    for name, value in result.updates.items():
        if not _is_finite(model, value):
            raise NonFiniteError(
                f"step {model.step}: the new value of {name} is not finite; nothing of this "
                "step was kept. Rescale the data"
            )
    if rules.shapes_gradients:
        with np.errstate(all="ignore"):
            rules.shape(model, gradients)
        if not _are_finite(model, gradients):
            name = next(name for name, value in gradients.items() if not _is_finite(model, value))
            raise NonFiniteError(
                f"step {model.step}: a penalty makes the gradient of {name} not finite; nothing of this step was kept"
            )
    # a prediction may be a view of a parameter that is about to move
    result = result._replace(predictions=tuple(map(_own, result.predictions)))
    _commit(model, optimizer, gradients, rules, result.updates)
    return result


def _commit(
    model: Model, optimizer: Optimizer, gradients: Gradients, rules: Regularization, updates: Mapping[str, Any]
) -> None:
    """Move parameters, slots, statistics and counters, all or nothing; Ctrl-C waits until it is done."""
    state = model.optimizer_state
    if state is None or not state.fits(optimizer):
        state = OptimizerState(optimizer, model)
    parts = {name: model.state_storage.part(name) for name in updates}
    new = {name: _own(model.device.storable(value)) for name, value in updates.items()}
    before = dict(vars(state)), model.optimizer_state, model.step, {name: part.copy() for name, part in parts.items()}
    state.moved.clear()  # whatever fails from here on, what an earlier step has moved stays
    with held():
        try:
            state.go_on_with(optimizer)
            state.apply(model, gradients)
            rules.constrain(model)
            for name, value in new.items():
                parts[name][...] = value
            model.optimizer_state = state
            model.step += 1
        except BaseException:
            state.take_back(model, gradients)
            counters, model.optimizer_state, model.step, statistics = before
            vars(state).update(counters)
            for name, value in statistics.items():
                parts[name][...] = value
            raise


def _own(value: Any) -> Any:
    """An array that nothing written later can change: a copy, if it is a view of another."""
    return value if getattr(value, "base", None) is None else value.copy()


def _are_finite(model: Model, gradients: Gradients) -> bool:
    """Whether every gradient of a step is finite."""
    storage = gradients.storage
    return all(_is_finite(model, storage.flat[run]) for run in storage.runs(gradients.names))


def _explain_non_finite(
    model: Model, plan: Plan, losses: tuple[Loss | None, ...], batch: Batch, loss: float
) -> NonFiniteError:
    """Run the same step once more and look where the first value that is not finite arises."""
    what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
    where = f"step {model.step}: {what}; nothing of this step was kept. "
    for name, value in zip(model.input_names, batch.inputs, strict=True):
        if not _is_finite(model, value):
            return NonFiniteError(f"{where}Input {name!r} holds values that are not finite; clean the data")
    for name, value in zip(model.output_names, batch.targets, strict=True):
        if value is not None and not _is_finite(model, value):
            return NonFiniteError(f"{where}The target of {name!r} holds values that are not finite; clean the data")
    for name, array in (*model.parameters.items(), *model.state.items()):
        if not np.isfinite(array).all():
            return NonFiniteError(
                f"{where}{name} is not finite since an earlier step: the update overflowed; lower the learning rate"
            )
    found: list[tuple[str, bool]] = []
    forward: set[str] = set()

    def observe(leaf: Leaf, arrays: tuple[Any, ...]) -> None:
        on_the_way_back = leaf.name in forward
        forward.add(leaf.name)
        if not found and not all(_is_finite(model, array) for array in arrays):
            found.append((leaf.label, on_the_way_back))

    compute_step(model, plan, losses, batch, observe)
    if found and math.isfinite(loss) == found[0][1]:
        label, on_the_way_back = found[0]
        phase = ", in its backward pass" if on_the_way_back else ""
        return NonFiniteError(f"{where}The first layer with values that are not finite is {label}{phase}")
    names = ", ".join(repr(one) for one in losses if one is not None)
    return NonFiniteError(
        f"{where}Every layer's output is finite; the loss {names} overflows on these predictions. Lower the learning "
        "rate, or rescale the targets"
    )


def _is_finite(model: Model, array: Any) -> bool:
    values = model.device.asnumpy(array)
    if values.dtype.kind != "f" or not values.size:
        return True
    return math.isfinite(values.max()) and math.isfinite(values.min())  # a NaN anywhere is both
