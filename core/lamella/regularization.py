"""What a training step does to gradients and parameters by name: penalties, clipping, constraints.

Penalties come first and add to loss and gradients; then gradients are clipped; then the optimizer takes its step;
last, constraints put parameters back into bounds. Patterns are those of shells, as in ``model.freeze``.

>>> import lamella as lm
>>> from lamella_layers import Dense
>>> model = lm.Sequential([Dense(1)], input_shape=2)
>>> options = {"penalties": {"*.kernel": L2(1e-4)}, "constraints": {"*.kernel": MaxNorm(0.5)}, "clip_norm": 1.0}
>>> loss = model.train_on_batch([[1, 2]], [[3]], loss="mean_squared_error", optimizer="sgd", **options)
>>> round(float(np.linalg.norm(model.parameters["dense_1.kernel"])), 4)
0.5
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.arguments import number, positive
from lamella.configuration import Configured
from lamella.errors import ArgumentError, NonFiniteError, did_you_mean

if TYPE_CHECKING:
    from lamella.engine import Gradients
    from lamella.model import Model
    from lamella.storage import Storage

__all__ = [
    "L1",
    "L2",
    "Constraint",
    "MaxNorm",
    "Penalty",
    "Regularization",
    "add_penalties",
    "clip_by_norm",
    "clip_by_value",
    "constrain",
]


class Penalty(Configured):
    """What a parameter adds to the loss, and the gradient of that, in array code of any backend.

    >>> import lamella as lm
    >>> class Around(lm.regularization.Penalty):
    ...     def __init__(self, center: float):
    ...         self.center = center
    ...     def value(self, xp, p):
    ...         return xp.sum((p - self.center) * (p - self.center))
    ...     def gradient(self, xp, p):
    ...         return 2.0 * (p - self.center)
    >>> float(Around(1.0).value(np, np.array([1.0, 3.0])))
    4.0
    """

    def value(self, xp: Any, p: Any) -> Any:
        """Return the penalty of a parameter, a number or an array without axes."""
        raise NotImplementedError(f"{type(self).__name__} defines no value")

    def gradient(self, xp: Any, p: Any) -> Any:
        """Return the gradient of ``value``, of the parameter's shape."""
        raise NotImplementedError(f"{type(self).__name__} defines no gradient")


class L1(Penalty):
    """``strength * sum(|p|)``, which draws small entries to zero; its gradient is ``strength * sign(p)``.

    Source: https://keras.io/api/layers/regularizers/

    >>> float(L1(0.5).value(np, np.array([3.0, -1.0]))), L1(0.5).gradient(np, np.array([3.0, -1.0]))
    (2.0, array([ 0.5, -0.5]))
    """

    def __init__(self, strength: float = 0.01):
        self.strength = number(strength, "strength", minimum=0.0)

    def value(self, xp: Any, p: Any) -> Any:
        return self.strength * xp.sum(xp.abs(p))

    def gradient(self, xp: Any, p: Any) -> Any:
        return self.strength * xp.sign(p)


class L2(Penalty):
    """``strength * sum(p^2)``, as in Keras; its gradient is ``2 strength p``. PyTorch's weight decay is twice that.

    Source: https://keras.io/api/layers/regularizers/

    >>> float(L2(0.5).value(np, np.array([3.0, -1.0]))), L2(0.5).gradient(np, np.array([3.0, -1.0]))
    (5.0, array([ 3., -1.]))
    """

    def __init__(self, strength: float = 0.01):
        self.strength = number(strength, "strength", minimum=0.0)

    def value(self, xp: Any, p: Any) -> Any:
        return self.strength * xp.sum(p * p)

    def gradient(self, xp: Any, p: Any) -> Any:
        return 2.0 * self.strength * p


class Constraint(Configured):
    """Bounds that a parameter is put back into after each step, in array code of any backend.

    >>> import lamella as lm
    >>> class NonNegative(lm.regularization.Constraint):
    ...     def apply(self, xp, p):
    ...         return xp.clip(p, 0.0, None)
    >>> NonNegative().apply(np, np.array([1.0, -1.0]))
    array([1., 0.])
    """

    def apply(self, xp: Any, p: Any) -> Any:
        """Return the parameter within bounds, of the same shape and dtype; write to nothing."""
        raise NotImplementedError(f"{type(self).__name__} defines no apply")


class MaxNorm(Constraint):
    """At most a given length for the weights that lead into each unit; longer ones are scaled down to it.

    Arguments:
        limit: the largest Euclidean norm, above 0.
        axis: the axes that are one unit's weights. None means axis 0 of kernels with two axes, (in, units), all but
            axis 0 of kernels with more, (filters, channels, height, width), and all of an array with one axis.

    Source: https://keras.io/api/layers/constraints/, after https://jmlr.org/papers/v15/srivastava14a.html

    >>> MaxNorm(1.0).apply(np, np.array([[3.0, 0.3], [4.0, 0.4]])).round(6)
    array([[0.6, 0.3],
           [0.8, 0.4]])
    """

    def __init__(self, limit: float = 2.0, *, axis: int | tuple[int, ...] | None = None):
        self.limit = number(limit, "limit", above=0.0)
        axes = (axis,) if isinstance(axis, int) else axis
        self.axis = None if axes is None else tuple(positive(one, "axis", minimum=0) for one in axes)

    def apply(self, xp: Any, p: Any) -> Any:
        axis = self.axis
        if axis is None:
            axis = (0,) if p.ndim < 3 else tuple(range(1, p.ndim))
        norm = xp.sqrt(xp.sum(p * p, axis=axis, keepdims=True))
        return p * (self.limit / xp.clip(norm, self.limit, None))


class Regularization:
    """The penalties, clips and constraints of one training, matched to the parameters of a model.

    Only parameters that learn take part; what matches several patterns gets the rules of all of them, in their order.

    Raises:
        ArgumentError: a pattern that matches no parameter, or a rule that is none or does not fit.
    """

    def __init__(
        self,
        model: Model,
        *,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        penalties: Mapping[str, Penalty] | None = None,
        constraints: Mapping[str, Constraint] | None = None,
    ) -> None:
        self.clip_value = None if clip_value is None else number(clip_value, "clip_value", above=0.0)
        self.clip_norm = None if clip_norm is None else number(clip_norm, "clip_norm", above=0.0)
        self.penalties: list[tuple[str, Penalty]] = _matched(model, "penalties", penalties, Penalty)
        self.constraints: list[tuple[str, Constraint]] = _matched(model, "constraints", constraints, Constraint)
        xp, views = model.device.xp, model.storage.views()
        for name, penalty in self.penalties:
            _try(f"penalties: {penalty!r}.gradient", name, partial(penalty.gradient, xp), views[name])
        for name, constraint in self.constraints:
            _try(f"constraints: {constraint!r}", name, partial(constraint.apply, xp), views[name])

    def penalty(self, model: Model) -> float:
        """Return what the parameters add to the loss as they are now.

        Raises:
            NonFiniteError: a penalty that is NaN or infinite.
        """
        total, xp = 0.0, model.device.xp
        for name, penalty in self.penalties:
            with np.errstate(all="ignore"):
                value = float(penalty.value(xp, model.storage.views()[name]))
            if not math.isfinite(value):
                raise NonFiniteError(f"step {model.step}: {penalty!r} of {name} is {value}; lower the learning rate")
            total += value
        return total

    @property
    def shapes_gradients(self) -> bool:
        """Whether `shape` has anything to do."""
        return bool(self.penalties) or self.clip_value is not None or self.clip_norm is not None

    def shape(self, model: Model, gradients: Gradients) -> None:
        """Add the gradients of penalties, then clip."""
        add_penalties(self.penalties, model.storage, gradients)
        if self.clip_value is not None:
            clip_by_value(gradients, self.clip_value)
        if self.clip_norm is not None:
            clip_by_norm(gradients, self.clip_norm)

    def constrain(self, model: Model) -> None:
        """Put the parameters back into their bounds."""
        constrain(self.constraints, model.storage)


def add_penalties(penalties: Iterable[tuple[str, Penalty]], parameters: Storage, gradients: Gradients) -> None:
    """Add the gradients of penalties to those of the loss."""
    for name, penalty in penalties:
        if name in gradients:
            gradients.add(name, penalty.gradient(parameters.backend.xp, parameters.views()[name]))


def clip_by_value(gradients: Gradients, limit: float) -> None:
    """Hold every entry between ``-limit`` and ``limit``."""
    for part in _parts(gradients):
        part.clip(-limit, limit, out=part)


def clip_by_norm(gradients: Gradients, limit: float) -> None:
    """Scale all gradients down together, so that the norm of all of them is ``limit`` at most."""
    squares = 0.0
    for part in _parts(gradients):
        wide = part.astype("float64")  # squares of float32 overflow from 1e19 on
        squares += float(wide @ wide)
    norm = math.sqrt(squares)
    if norm > limit:
        for part in _parts(gradients):
            part *= limit / norm


def _parts(gradients: Gradients) -> Iterator[Any]:
    """The pieces of the flat buffer that hold gradients, to write into."""
    return (gradients.storage.flat[run] for run in gradients.storage.runs(gradients.names))


def constrain(constraints: Iterable[tuple[str, Constraint]], parameters: Storage) -> None:
    """Put parameters back into their bounds."""
    backend = parameters.backend
    for name, constraint in constraints:
        own = parameters.views()[name]
        bound = constraint.apply(backend.xp, own)
        _check(f"constraints: {constraint!r}", name, bound, own)
        parameters.part(name)[...] = backend.storable(bound)


def _matched(model: Model, what: str, rules: Any, kind: type) -> list[tuple[str, Any]]:
    """Each parameter that learns with each rule whose pattern it matches."""
    if rules is None:
        return []
    if not isinstance(rules, Mapping):
        raise ArgumentError(f"{what}: expected a dict such as {{'*.kernel': {kind.__name__}}}, got {rules!r}")
    known = list(model.storage.declarations)
    frozen = {
        array for leaf in model.program.leaves if leaf.owner in model.frozen_layers for array in leaf.params.values()
    }
    found = []
    for pattern, rule in rules.items():
        if not isinstance(rule, kind):
            hint = f"; did you mean {rule.__name__}(...)?" if isinstance(rule, type) else ""
            raise ArgumentError(f"{what}: {pattern!r}: expected a {kind.__name__}, got {rule!r}{hint}")
        names = fnmatch.filter(known, pattern) if isinstance(pattern, str) else []
        if not names:
            raise ArgumentError(
                f"{what}: no parameter is called {pattern!r}; there are {', '.join(known)}."
                f"{did_you_mean(str(pattern), known)}"
            )
        found += [(name, rule) for name in names if name not in frozen]
    return found


def _try(what: str, name: str, rule: Callable[[Any], Any], own: Any) -> None:
    """Find out early whether a rule gives an array like the parameter."""
    try:
        with np.errstate(all="ignore"):  # what is not finite is found in the step
            got = rule(own)
    except Exception as error:
        raise ArgumentError(
            f"{what} fails on {name} of {own.dtype} {tuple(own.shape)}: {type(error).__name__}: {error}"
        ) from error
    _check(what, name, got, own)


def _check(what: str, name: str, got: Any, own: Any) -> None:
    if getattr(got, "shape", None) != own.shape or got.dtype != own.dtype:
        kind = f"{got.dtype} {got.shape}" if hasattr(got, "shape") else type(got).__name__
        raise ArgumentError(f"{what} gives {kind} for {name} of {own.dtype} {tuple(own.shape)}")
