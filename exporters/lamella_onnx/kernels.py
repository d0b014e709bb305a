"""How the core's primitives are written in ONNX; the others' kernels stand beside their primitives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lamella import primitives

__all__: list[str] = []


def _operator(primitive: primitives.Primitive, operator: str, dtypes: Sequence[str] = ("float32", "float64")) -> None:
    """One native operator, where onnxruntime has it for the dtype; else the reference."""

    @primitive.kernel("onnx")
    def _(xp: Any, x: Any, **attributes: Any) -> Any:
        if x.dtype.name not in dtypes:
            return primitive.reference(xp, x, **attributes)
        return xp.node(operator, x, shape=x.shape, dtype=x.dtype, **attributes)


_operator(primitives.relu, "Relu", ("float32", "float64", "int8", "int32"))
_operator(primitives.sigmoid, "Sigmoid")
_operator(primitives.softmax, "Softmax")
_operator(primitives.softplus, "Softplus", ("float32",))
_operator(primitives.erf, "Erf", ("float32",))


@primitives.pad.kernel("onnx")
def _(xp: Any, x: Any, widths: Sequence[tuple[int, int]], *, value: float = 0.0) -> Any:
    if not any(before or after for before, after in widths):
        return x
    shape = tuple(size + before + after for size, (before, after) in zip(x.shape, widths, strict=True))
    pads = np.array([*(before for before, _ in widths), *(after for _, after in widths)], "int64")
    return xp.node("Pad", x, pads, np.array(value, x.dtype) if value else None, shape=shape, dtype=x.dtype)


@primitives.take_rows.kernel("onnx")
def _(xp: Any, table: Any, indices: Any) -> Any:
    return xp.take(table, indices, axis=0)


@primitives.add_rows.kernel("onnx")
def _(xp: Any, rows: Any, indices: Any, size: int) -> Any:
    """ScatterElements: onnxruntime's ScatterND loses additions where two threads meet at one index."""
    inner = rows.shape[len(indices.shape) :]
    flat = xp.reshape(rows, (-1, *inner))
    places = xp.reshape(xp.astype(indices, xp.int64), (flat.shape[0], *(1 for _ in inner)))
    return xp.node(
        "ScatterElements",
        xp.zeros((size, *inner), dtype=rows.dtype),
        xp.broadcast_to(places, flat.shape),
        flat,
        shape=(size, *inner),
        dtype=rows.dtype,
        axis=0,
        reduction="add",
    )


@primitives.scan.kernel("onnx")
def _(
    xp: Any,
    body: Callable[..., tuple[Any, Any]],
    states: Sequence[Any],
    xs: Sequence[Any],
    *,
    consts: Sequence[Any] = (),
    reverse: bool = False,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return xp._graph.scan(body, [xp.asarray(state) for state in states], list(xs), consts, reverse)  # type: ignore[no-any-return]
