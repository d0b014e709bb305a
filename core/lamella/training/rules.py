"""What a step does by name to gradients and parameters: penalties, clipping, constraints.

Penalties come first and add to loss and gradients; then gradients are clipped; then the optimizer takes its step; last,
constraints put parameters back into bounds. Patterns are those of shells, as in ``model.freeze``.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from lamella.arguments import number
from lamella.engine.arrays import Storage
from lamella.engine.gradients import Gradients
from lamella.engine.values import Values
from lamella.errors import ArgumentError, NonFiniteError, did_you_mean, shown
from lamella.network import Network
from lamella.regularization import Constraint, Penalty

__all__ = ["Rules"]


class Rules:
    """The penalties, clips and constraints of one training, matched to the parameters of a network.

    Only parameters that learn take part; what matches several patterns gets the rules of all of them, in their order.

    Raises:
        ArgumentError: a pattern that matches no parameter, or a rule that is none or does not fit.
    """

    def __init__(
        self,
        network: Network,
        *,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        penalties: Mapping[str, Penalty] | None = None,
        constraints: Mapping[str, Constraint] | None = None,
    ) -> None:
        self.clip_value = None if clip_value is None else number(clip_value, "clip_value", above=0.0)
        self.clip_norm = None if clip_norm is None else number(clip_norm, "clip_norm", above=0.0)
        self.penalties: list[tuple[str, Penalty]] = _matched(network, "penalties", penalties, Penalty)
        self.constraints: list[tuple[str, Constraint]] = _matched(network, "constraints", constraints, Constraint)
        self.clips = self.clip_value is not None or self.clip_norm is not None
        self.shapes_gradients = self.clips or bool(self.penalties)  # whether `shape` has anything to do
        self._declared = network.values.parameters.layout.declarations
        xp, views = network.device.xp, network.values.parameters.views()
        for name, penalty in self.penalties:
            _try(f"penalties: {penalty!r}.gradient", name, partial(penalty.gradient, xp), views[name])
        for name, constraint in self.constraints:
            _try(f"constraints: {constraint!r}", name, partial(self._bound, constraint, xp, name), views[name])

    def penalty(self, values: Values) -> float:
        """Return what parameters add to the loss.

        Raises:
            NonFiniteError: a penalty that is NaN or infinite.
        """
        if not self.penalties:
            return 0.0
        total, xp = 0.0, values.parameters.backend.xp
        for name, penalty in self.penalties:
            with np.errstate(all="ignore"):
                value = float(penalty.value(xp, values.parameters.views()[name]))
            if not math.isfinite(value):
                raise NonFiniteError(f"step {values.step}: {penalty!r} of {name} is {value}; lower the learning rate")
            total += value
        return total

    def shape(self, parameters: Storage, gradients: Gradients) -> None:
        """Add the gradients of penalties, then clip."""
        _add_penalties(self.penalties, parameters, gradients)
        if self.clip_value is not None:
            _clip_by_value(gradients, self.clip_value)
        if self.clip_norm is not None:
            _clip_by_norm(gradients, self.clip_norm)

    def penalty_of(self, xp: Any, parameters: Mapping[str, Any]) -> Any:
        """Return what parameters add to the loss, as an array without axes; None without penalties."""
        values = [penalty.value(xp, parameters[name]) for name, penalty in self.penalties]
        return sum(values[1:], values[0]) if values else None

    def shaped(self, xp: Any, parameters: Mapping[str, Any], gradients: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `shape` makes of gradients, as new arrays; for arrays that nothing can be written into."""
        new = dict(gradients)
        for name, penalty in self.penalties:
            if name in new:
                new[name] = new[name] + penalty.gradient(xp, parameters[name])
        if self.clip_value is not None:
            new = {name: xp.clip(g, -self.clip_value, self.clip_value) for name, g in new.items()}
        if self.clip_norm is not None and new:
            wide = [xp.astype(g, xp.float64) for g in new.values()]
            norm = xp.sqrt(sum(xp.sum(g * g) for g in wide))
            factor = self.clip_norm / xp.maximum(norm, xp.full_like(norm, self.clip_norm))
            new = {name: g * xp.astype(factor, g.dtype) for name, g in new.items()}
        return new

    def bounds(self, names: Iterable[str]) -> list[str]:
        """Return those of some parameters that have constraints."""
        own = {name for name, _ in self.constraints}
        return [name for name in names if name in own]

    def bounded(self, xp: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `constrain` makes of parameters, as new arrays."""
        new = dict(parameters)
        for name, constraint in self.constraints:
            if name in new:
                bound = self._bound(constraint, xp, name, new[name])
                _check(f"constraints: {constraint!r}", name, bound, new[name])
                new[name] = bound
        return new

    def _bound(self, constraint: Constraint, xp: Any, name: str, own: Any) -> Any:
        return constraint.bound(xp, own, self._declared[name])

    def constrain(self, parameters: Storage) -> None:
        """Put parameters back into their bounds."""
        backend = parameters.backend
        for name, constraint in self.constraints:
            own = parameters.views()[name]
            bound = self._bound(constraint, backend.xp, name, own)
            _check(f"constraints: {constraint!r}", name, bound, own)
            parameters.part(name)[...] = backend.storable(bound)


def _add_penalties(penalties: Iterable[tuple[str, Penalty]], parameters: Storage, gradients: Gradients) -> None:
    """Add the gradients of penalties to those of the loss."""
    for name, penalty in penalties:
        if name in gradients:
            own = penalty.gradient(parameters.backend.xp, parameters.views()[name])
            gradients.storage.part(name)[...] += parameters.backend.storable(own)


def _clip_by_value(gradients: Gradients, limit: float) -> None:
    """Hold every entry between ``-limit`` and ``limit``."""
    for part in _parts(gradients):
        part.clip(-limit, limit, out=part)


def _clip_by_norm(gradients: Gradients, limit: float) -> None:
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
    return (gradients.storage.flat[run] for run in gradients.runs)


def _matched(network: Network, what: str, rules: Any, kind: type) -> list[tuple[str, Any]]:
    """Each parameter that learns with each rule whose pattern it matches."""
    if rules is None:
        return []
    if not isinstance(rules, Mapping):
        raise ArgumentError(f"{what}: expected a dict such as {{'*.kernel': {kind.__name__}}}, got {shown(rules)}")
    known = list(network.values.parameters.layout.declarations)
    frozen = network.graph.parameters_of(network.frozen_layers)
    found = []
    for pattern, rule in rules.items():
        if not isinstance(rule, kind):
            hint = f"; did you mean {rule.__name__}(...)?" if isinstance(rule, type) else ""
            raise ArgumentError(f"{what}: {shown(pattern)}: expected a {kind.__name__}, got {shown(rule)}{hint}")
        names = fnmatch.filter(known, pattern) if isinstance(pattern, str) else []
        if not names:
            raise ArgumentError(
                f"{what}: no parameter is called {shown(pattern)}; there are {', '.join(known)}."
                f"{did_you_mean(pattern, known) if isinstance(pattern, str) else ''}"
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
