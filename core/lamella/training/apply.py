"""Steps along gradients that users computed, in training loops of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lamella import elsewhere
from lamella.arguments import knows
from lamella.engine.changes import Change
from lamella.engine.gradients import Gradients
from lamella.engine.interruption import Interruption
from lamella.errors import ArgumentError, DataError, NonFiniteError, did_you_mean, shown
from lamella.graph.plan import Plan
from lamella.network import Network
from lamella.protocol.inputs import as_array
from lamella.regularization import Constraint, Penalty
from lamella.training.mistakes import warn_of_restart
from lamella.training.rules import Rules
from lamella.training.step import Update
from lamella.training.task import AnyOptimizer, given_bounds, optimizer_of

__all__ = ["apply_gradients"]

Array = np.ndarray[Any, Any]


@knows(elsewhere.FIT)
def apply_gradients(
    model: Network,
    gradients: Mapping[str, Any],
    optimizer: AnyOptimizer,
    *,
    clip_value: float | None = None,
    clip_norm: float | None = None,
    penalties: Mapping[str, Penalty] | None = None,
    constraints: Mapping[str, Constraint] | None = None,
) -> None:
    """Take one step of an optimizer along gradients by parameter name, such as those of ``model.gradients``.

    Steps of equal optimizers go on from each other, and from those of `fit` and `train_on_batch`. Parameters that are
    not named stay as they are, and miss the step. The other arguments are those of `fit`. The state of layers, such as
    running means, stays as it is.

    Raises:
        ArgumentError: no gradients, or one of a parameter that the model has not, or that is frozen.
        DataError: a gradient of another shape than its parameter.
        NonFiniteError: a gradient that is NaN or infinite.
        BusyError: another thread is training the model.

    Whatever is raised, the model is left as it was.

    >>> import numpy as np
    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> model = lm.Sequential([Dense(1)], input_shape=2)
    >>> x, y = np.ones((4, 2)), np.zeros((4, 1))
    >>> before, gradients, _ = model.gradients(x, y, loss="mean_squared_error")
    >>> model.apply_gradients(gradients, lm.optimizers.SGD(0.1))
    >>> model.evaluate(x, y, loss="mean_squared_error")["loss"] < before
    True
    """
    optimizer = optimizer_of(model, optimizer)
    arrays = _checked(model, gradients)
    bounds = given_bounds(clip_value=clip_value, clip_norm=clip_norm, penalties=penalties, constraints=constraints)
    with Interruption() as interruption, Change(model, "apply_gradients"):
        warn_of_restart(model, optimizer)
        update = _prepared(model, frozenset(arrays), bounds)
        device, buffer = model.device, update.gradients.storage
        for name, array in arrays.items():
            buffer.part(name)[...] = device.storable(device.asarray(array))
        with np.errstate(all="ignore"):
            model.values = update(model.values, optimizer)
    interruption.check()


def _checked(model: Network, gradients: Any) -> dict[str, Array]:
    """Gradients as arrays of the model's dtype."""
    if not isinstance(gradients, Mapping) or not gradients:
        raise ArgumentError(
            f"apply_gradients: gradients: expected a dict of arrays by parameter name, as model.gradients gives, got "
            f"{shown(gradients)}"
        )
    declared = model.values.parameters.layout.declarations
    learned = Plan(model.graph, model.frozen_layers, wants_dx=False, training=True).parameters
    arrays = {}
    for name, gradient in gradients.items():
        where = f"apply_gradients: gradients[{name!r}]"
        if name not in declared:
            hint = did_you_mean(name, declared) if isinstance(name, str) else ""
            raise ArgumentError(f"apply_gradients: the model has no parameter {shown(name)}.{hint}")
        if name not in learned:
            raise ArgumentError(f"apply_gradients: {name!r} is frozen; model.unfreeze({name.rpartition('.')[0]!r})")
        array = as_array(gradient, f"{where}: expected numbers")
        if array.shape != declared[name].shape or array.dtype.kind not in "fiub":
            raise DataError(
                f"{where}: expected numbers of shape {declared[name].shape}, got {array.dtype} {array.shape}"
            )
        with np.errstate(over="ignore"):
            arrays[name] = array.astype(model.dtype, copy=False)
        if not np.isfinite(arrays[name]).all():
            raise NonFiniteError(f"{where}: it is not finite; nothing was changed. Lower the learning rate")
    return arrays


def _prepared(model: Network, names: frozenset[str], bounds: Mapping[str, Any]) -> Update:
    """The update of the call before, if this one is of the same parameters and rules; else a new one."""
    rules = [(name, list(own.items()) if isinstance(own, Mapping) else own) for name, own in bounds.items()]
    of = names, rules, model.device, model.frozen_layers
    known = model._prepared_update
    if known is None or known[0] != of:
        gradients = Gradients(model.values.parameters.empty_like(), names)
        known = model._prepared_update = of, Update(model.device, gradients, Rules(model, **bounds))
    update: Update = known[1]
    return update
