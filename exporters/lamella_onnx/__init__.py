"""Models as ONNX files that onnxruntime has already agreed with.

>>> import lamella as lm
>>> import lamella_onnx
>>> from lamella_layers import Dense
>>> model = lm.Sequential([Dense(3)], input_shape=(4,))
>>> lamella_onnx.export(model, "model.onnx").agrees, lamella_onnx.verify("model.onnx").agrees
(True, True)
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lamella.elsewhere import missing
from lamella.errors import did_you_mean

if TYPE_CHECKING:
    from lamella_onnx.exporter import export
    from lamella_onnx.parity import ParityReport
    from lamella_onnx.proof import verify
    from lamella_onnx.runtime import ParityError
    from lamella_onnx.tracer.dims import TraceError
    from lamella_onnx.training.export import export_training_step
    from lamella_onnx.training.session import TrainingSession

# From 1.29 on, onnxruntime reports what it loads to its makers, unless it is told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "ParityError",
    "ParityReport",
    "TraceError",
    "TrainingSession",
    "export",
    "export_training_step",
    "verify",
]

_HOMES = {
    "ParityError": "runtime",
    "ParityReport": "parity",
    "TraceError": "tracer.dims",
    "TrainingSession": "training.session",
    "export": "exporter",
    "export_training_step": "training.export",
    "verify": "proof",
}


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            close = did_you_mean(name, __all__)
            raise missing(__name__, name, f"{close and '.'}{close}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
