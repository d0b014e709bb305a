"""lamella: a small neural-network engine in which every layer is a plugin and every model becomes verified ONNX.

>>> import lamella as lm
>>> from lamella_layers import Dense
>>> model = lm.Sequential([Dense(8, activation="relu"), Dense(3)], input_shape=(4,))
>>> model.output_specs
(ArraySpec(('N', 3), 'float32'),)
"""

import typing as _typing  # what has an underscore is nothing that editors offer

from lamella import (
    backends,
    callbacks,
    datasets,
    initializers,
    losses,
    metrics,
    optimizers,
    primitives,
    regularization,
    schedules,
    testing,
)
from lamella import commands as _commands  # noqa: F401  declares what plugins may give
from lamella import elsewhere as _elsewhere
from lamella.activations import ActivationFunction
from lamella.callbacks import Callback, StopTraining
from lamella.engine.threads import set_threads
from lamella.errors import (
    ArgumentError,
    DataError,
    GraphError,
    LamellaError,
    LayerError,
    MistakeWarning,
    NonFiniteError,
    RegistryError,
    VersionWarning,
)
from lamella.files.inspection import inspect
from lamella.hookspecs import hookimpl
from lamella.model import Model, Sequential, from_config, load
from lamella.primitives import primitive, scan
from lamella.protocol import ArraySpec, Configured, Context, Declare, Input, Layer, Node
from lamella.protocol.layer import layer
from lamella.registry import layers, register
from lamella.registry import where_is as _where_is
from lamella.training.history import History
from lamella.training.task import Task
from lamella.version import __version__

__all__ = [
    "ActivationFunction",
    "ArgumentError",
    "ArraySpec",
    "Callback",
    "Configured",
    "Context",
    "DataError",
    "Declare",
    "GraphError",
    "History",
    "Input",
    "LamellaError",
    "Layer",
    "LayerError",
    "MistakeWarning",
    "Model",
    "Node",
    "NonFiniteError",
    "RegistryError",
    "Sequential",
    "StopTraining",
    "Task",
    "VersionWarning",
    "__version__",
    "backends",
    "callbacks",
    "datasets",
    "from_config",
    "hookimpl",
    "initializers",
    "inspect",
    "layer",
    "layers",
    "load",
    "losses",
    "metrics",
    "optimizers",
    "primitive",
    "primitives",
    "register",
    "regularization",
    "scan",
    "schedules",
    "set_threads",
    "testing",
]


if not _typing.TYPE_CHECKING:

    def __getattr__(name: str) -> _typing.Any:
        fix = _elsewhere.hint(_elsewhere.PACKAGE, name)
        raise _elsewhere.missing(__name__, name, f"{_where_is(name)}{fix and '.'}{fix}")


def __dir__() -> list[str]:
    return __all__
