"""Every pluggy hook of lamella: the reference for the authors of plugins.

A plugin is a module, or any object, with functions of these names marked ``@lamella.hookimpl``, named by an entry
point in the group ``lamella``::

    [project.entry-points.lamella]
    swish = "my_package.swish"

Each hook takes nothing and returns a dict from names to objects. Names are lower case with underscores; every name is
also known as ``"distribution:name"``. A name that lamella itself gives means lamella's, whatever else is installed;
what a plugin gives by that name is found by its full name only, and ``lamella check`` tells its author. A name that two
other distributions give has to be said in full. What is wrong in a result, or a hook that fails, is told and left out;
the rest stays. Hooks are called when a model is assembled or exported, never while it trains.

``lamella new-plugin NAME`` writes a package with hooks; ``docs/write-a-layer.md`` tells how to write what they give.
"""

from __future__ import annotations

from typing import Any

import pluggy

__all__ = ["KINDS", "PROJECT", "hookimpl", "hookspec"]

PROJECT = "lamella"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def lamella_layers() -> dict[str, type]:
    """Layers: subclasses of `lamella.Layer`."""
    return {}


@hookspec
def lamella_activations() -> dict[str, Any]:
    """Activations: `lamella.ActivationFunction` objects, a pair of pure functions."""
    return {}


@hookspec
def lamella_losses() -> dict[str, type]:
    """Losses: subclasses of `lamella.losses.Loss`."""
    return {}


@hookspec
def lamella_optimizers() -> dict[str, type]:
    """Optimizers: subclasses of `lamella.optimizers.Optimizer`."""
    return {}


@hookspec
def lamella_schedules() -> dict[str, type]:
    """Learning-rate schedules: subclasses of `lamella.schedules.Schedule`."""
    return {}


@hookspec
def lamella_initializers() -> dict[str, Any]:
    """Initializers: functions ``(rng, shape, fan_in, fan_out) -> array``, or subclasses of
    `lamella.initializers.Initializer`."""
    return {}


@hookspec
def lamella_metrics() -> dict[str, type]:
    """Metrics: subclasses of `lamella.metrics.Metric`."""
    return {}


@hookspec
def lamella_backends() -> dict[str, type]:
    """Backends: subclasses of `lamella.backends.Backend`, made when a model first runs there."""
    return {}


@hookspec
def lamella_commands() -> dict[str, Any]:
    """Commands of the command line: `lamella.cli.Command` objects."""
    return {}


@hookspec
def lamella_laws() -> dict[str, Any]:
    """Laws beyond those of `lamella.testing.laws` that every layer must obey: functions ``(case) -> detail``."""
    return {}


@hookspec
def lamella_specimens() -> list[Any]:
    """Specimens: a list of `lamella.testing.Specimen`, at least one for each layer, loss and activation of the plugin.

    ``lamella check`` and ``pytest --lamella`` examine them; what has none fails there.
    """
    return []


KINDS: tuple[str, ...] = (
    "layers",
    "activations",
    "losses",
    "optimizers",
    "schedules",
    "initializers",
    "metrics",
    "backends",
    "commands",
    "laws",
)
"""What hooks give by name, each through ``lamella_<kind>``."""
