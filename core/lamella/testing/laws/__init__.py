"""The laws that layers, losses and activations obey, one file for each, and those of optimizers and of metrics.

A law is a function of a case. It returns a line of detail, or raises `Broken`. It runs its checks through
``case.check``, which remembers each failure and goes on, so that everything that is wrong is told at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lamella import registry
from lamella.testing.case import Case
from lamella.testing.laws.backends import backends
from lamella.testing.laws.finite import finite
from lamella.testing.laws.gradient import gradient
from lamella.testing.laws.metrics import METRIC_LAWS
from lamella.testing.laws.optimizers import OPTIMIZER_LAWS
from lamella.testing.laws.purity import purity
from lamella.testing.laws.round_trip import round_trip
from lamella.testing.laws.shapes import shapes
from lamella.testing.laws.slicing import slicing

__all__ = ["LAWS", "laws", "laws_of"]

LAWS: dict[str, Callable[[Case], str]] = {
    "gradient": gradient,
    "purity": purity,
    "finite": finite,
    "slicing": slicing,
    "backends": backends,
    "round trip": round_trip,
    "shapes": shapes,
}
"""The laws of the core by name; plugins add others through the hook ``lamella_laws``."""


def laws() -> dict[str, Callable[[Case], str]]:
    """Return every law of layers by name, in the order of reports; those of plugins stand after ``backends``."""
    own_last = sorted(registry.entries("laws"), key=lambda entry: entry.plugin.is_own)  # no plugin replaces those
    given = {entry.name: entry.object for entry in own_last}
    names = list(LAWS)
    place = names.index("backends") + 1
    return {name: LAWS.get(name) or given[name] for name in (*names[:place], *given, *names[place:])}


def laws_of(kind: str) -> dict[str, Callable[[Any], str]]:
    """Return the laws of a kind, as in ``"layers"``; none for those that nothing is known of.

    >>> list(laws_of("metrics"))
    ['purity', 'sums', 'weights', 'no rows', 'round trip']
    """
    if kind in ("layers", "losses"):
        return laws()
    if kind == "activations":  # a pair of functions has no configuration
        return {name: law for name, law in laws().items() if name != "round trip"}
    return {"optimizers": OPTIMIZER_LAWS, "metrics": METRIC_LAWS}.get(kind, {})
