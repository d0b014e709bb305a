"""Models as ONNX files that onnxruntime has already agreed with.

>>> import lamella as lm
>>> import lamella_onnx
>>> from lamella_layers import Dense
>>> model = lm.Sequential([Dense(3)], input_shape=(4,))
>>> path = getfixture("tmp_path") / "model.onnx"
>>> lamella_onnx.export(model, path).agrees, lamella_onnx.verify(path).agrees
(True, True)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lamella_onnx.dim import TraceError
    from lamella_onnx.exporter import export
    from lamella_onnx.parity import ParityError, ParityReport
    from lamella_onnx.proof import verify

__all__ = ["ParityError", "ParityReport", "TraceError", "export", "verify"]

_HOMES = {
    "ParityError": "parity",
    "ParityReport": "parity",
    "TraceError": "dim",
    "export": "exporter",
    "verify": "proof",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
