"""How the core's primitives are written in ONNX; the others' kernels stand beside their primitives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lamella import primitives

__all__ = ["register"]

Kernel = Callable[..., Any]


@functools.cache
def register() -> None:
    """Give the core's primitives their ONNX kernels, once; kernels that somebody else has given them stay."""
    for primitive, kernel in _kernels():
        primitive.kernels.setdefault("onnx", kernel)


def _kernels() -> list[tuple[primitives.Primitive, Kernel]]:
    return [
        (primitives.relu, _operator(primitives.relu, "Relu", ("float32", "float64", "int8", "int32"))),
        # right to 6e-8, and 0 below -18: of a gate's small values no digit is
        (primitives.sigmoid, _operator(primitives.sigmoid, "Sigmoid", is_stable=False)),
        (primitives.softmax, _operator(primitives.softmax, "Softmax")),
        (primitives.softplus, _operator(primitives.softplus, "Softplus", ("float32",))),
        (primitives.erf, _operator(primitives.erf, "Erf", ("float32",))),
        (primitives.pad, _pad),
        (primitives.take_rows, _take_rows),
        (primitives.add_rows, _add_rows),
        (primitives.scan, _scan),
    ]


def _operator(
    primitive: primitives.Primitive,
    operator: str,
    dtypes: Sequence[str] = ("float32", "float64"),
    *,
    is_stable: bool = True,
) -> Kernel:
    """One native operator, where onnxruntime has it for the dtype and it rounds well enough; else the reference."""

    def kernel(xp: Any, x: Any, **attributes: Any) -> Any:
        if x.dtype.name not in dtypes or (xp.stable and not is_stable):
            return primitive.reference(xp, x, **attributes)
        return xp.node(operator, x, shape=x.shape, dtype=x.dtype, **attributes)

    return kernel


def _pad(xp: Any, x: Any, widths: Sequence[tuple[int, int]], *, value: float = 0.0) -> Any:
    if not any(before or after for before, after in widths):
        return x
    shape = tuple(size + before + after for size, (before, after) in zip(x.shape, widths, strict=True))
    pads = np.array([*(before for before, _ in widths), *(after for _, after in widths)], "int64")
    return xp.node("Pad", x, pads, np.array(value, x.dtype) if value else None, shape=shape, dtype=x.dtype)


def _take_rows(xp: Any, table: Any, indices: Any) -> Any:
    return xp.take(table, primitives.not_from_the_end(xp, indices), axis=0)


def _add_rows(xp: Any, rows: Any, indices: Any, size: int) -> Any:
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


def _scan(
    xp: Any,
    body: Callable[..., tuple[Any, Any]],
    states: Sequence[Any],
    xs: Sequence[Any],
    *,
    consts: Sequence[Any] = (),
    reverse: bool = False,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return xp._scan(body, [xp.asarray(state) for state in states], list(xs), consts, reverse)  # type: ignore[no-any-return]
