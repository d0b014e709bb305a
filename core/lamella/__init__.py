"""lamella: a small neural-network engine in which every layer is a plugin and every model becomes verified ONNX.

>>> import lamella as lm
>>> from lamella_layers import Dense
>>> model = lm.Sequential([Dense(8, activation="relu"), Dense(3)], input_shape=(4,))
>>> model.output_specs
(ArraySpec(('N', 3), 'float32'),)
"""

from typing import Any

from lamella import backends, callbacks, losses, metrics, optimizers, primitives, regularization, schedules, testing
from lamella.activations import ActivationFunction
from lamella.archive import from_config, load
from lamella.callbacks import Callback, StopTraining
from lamella.configuration import Configured
from lamella.context import Context
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
from lamella.graph import Input, Node
from lamella.history import History
from lamella.hookspecs import hookimpl
from lamella.model import Model, Sequential
from lamella.primitives import primitive, scan
from lamella.protocol import ArraySpec, Declare, Layer
from lamella.registry import layer, layers
from lamella.threads import set_threads

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
    "VersionWarning",
    "__version__",
    "backends",
    "callbacks",
    "from_config",
    "hookimpl",
    "layer",
    "layers",
    "load",
    "losses",
    "metrics",
    "optimizers",
    "primitive",
    "primitives",
    "regularization",
    "scan",
    "schedules",
    "set_threads",
    "testing",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    hint = ""
    if name[:1].isupper():  # perhaps a layer, which lives with its plugin
        classes = [cls for cls in layers().values() if cls.__name__ == name]
        hint = "".join(f"; from {cls.__module__.partition('.')[0]} import {name}" for cls in classes)
    raise AttributeError(f"module 'lamella' has no attribute {name!r}{hint}")
