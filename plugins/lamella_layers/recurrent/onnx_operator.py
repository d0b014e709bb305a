"""The native ONNX operators RNN, LSTM and GRU: a whole recurrence as one node."""

from __future__ import annotations

from typing import Any

import numpy as np

from lamella_layers.recurrent.recurrent import Recurrent, Sequences, States, clipped_lengths, recurrence

__all__: list[str] = []


@recurrence.kernel("onnx")
def _(xp: Any, layer: Recurrent, params: Any, given: Sequences) -> tuple[Any, States]:
    """The native operator: https://onnx.ai/onnx/operators/. Onnxruntime has it for float32."""
    x, _, initial = given
    if x.dtype != xp.float32:
        return recurrence.reference(xp, layer, params, given)  # type: ignore[no-any-return]
    lengths = None if given.lengths is None else clipped_lengths(xp, given)
    rows, steps, units = x.shape[0], x.shape[1], layer.units
    order = [layer.gates.index(gate) * units + k for gate in layer.onnx_gates for k in range(units)]

    def ordered(array: Any) -> Any:
        """The last axis in ONNX's order of the gates."""
        return array if layer.gates == layer.onnx_gates else xp.take(array, xp.constant(np.array(order)), axis=-1)

    # (features, gates) -> (1, gates, features), for one direction
    kernel, recurrent = (xp.expand_dims(ordered(array).T, axis=0) for array in (params.kernel, params.recurrent_kernel))
    biases = None
    if layer.use_bias:
        second = ordered(params.recurrent_bias) if layer.has_two_biases else xp.zeros((len(order),), dtype=x.dtype)
        biases = xp.expand_dims(xp.concat([ordered(params.bias), second]), axis=0)
    state = (1, rows, units)
    y, *last = xp.node(
        layer.operator,
        xp.permute_dims(x, (1, 0, 2)),
        kernel,
        recurrent,
        biases,
        None if lengths is None else xp.astype(lengths, xp.int32),
        *(xp.expand_dims(s, axis=0) for s in initial),
        shape=[(steps, 1, rows, units), *(state for _ in layer.states)],
        dtype=[x.dtype] * (1 + len(layer.states)),
        hidden_size=units,
        direction="reverse" if layer.reverse else "forward",
        **layer.onnx_attributes(),
    )
    # (T, 1, N, units) -> (N, T, units)
    y = xp.permute_dims(xp.squeeze(y, axis=1), (1, 0, 2)) if layer.return_sequences else None
    last = [xp.squeeze(s, axis=0) for s in last]
    if lengths is not None and initial:  # onnxruntime makes the last state of a sequence without steps 0
        some = lengths[:, None] > 0
        last = [xp.where(some, after, before) for after, before in zip(last, initial, strict=True)]
    return y, tuple(last)
