"""The backend ``onnxruntime``: stock onnxruntime runs what `lamella_onnx` traces, whole passes and whole steps.

Arrays are those of NumPy, in the same flat buffers as ever; onnxruntime reads parameters where they are, and writes new
ones to where the next step reads them.

- `inference`: the forward pass
- `step`: training steps
- `sessions`: graphs, loaded into onnxruntime as often as needed
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella.backends import Namespace
from lamella.backends.numpy_backend import NumPyBackend

__all__ = ["OnnxruntimeBackend"]


class OnnxruntimeBackend(NumPyBackend):
    """Models in stock onnxruntime: ``fit``, ``train_on_batch``, ``evaluate`` and ``predict`` run traced graphs.

    ``gradients`` runs layers on NumPy, as does the search for the layer at fault after a step that is not finite.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> model = lm.Sequential([Dense(3)], input_shape=(4,), backend="onnxruntime")
    >>> model.predict(np.zeros((2, 4)))
    array([[0., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """

    name = "onnxruntime"
    runs_graphs = True

    def __init__(self) -> None:
        super().__init__()
        self.xp = Namespace("onnxruntime", np, kernels=("numpy",))

    def inference(self, network: Any) -> Any:
        from lamella_onnx.backend.inference import Inference  # onnxruntime loads when a model needs it

        return Inference(network)

    def training(self, network: Any, plan: Any, losses: Any, rules: Any) -> Any:
        from lamella_onnx.backend.step import GraphStep

        return GraphStep(network, plan, losses, rules)
