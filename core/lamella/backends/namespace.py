"""The array functions that layer code may use: a subset of the Python array API, the same on every backend."""

from __future__ import annotations

from typing import Any

from lamella.errors import did_you_mean

__all__ = ["DTYPE_NAMES", "NAMESPACE", "Namespace"]

DTYPE_NAMES = (
    "bool",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)

_CREATION = ("arange", "asarray", "full", "full_like", "ones", "ones_like", "zeros", "zeros_like")
_ELEMENTWISE = (
    "abs",
    "ceil",
    "clip",
    "cos",
    "cosh",
    "exp",
    "expm1",
    "floor",
    "isfinite",
    "isinf",
    "isnan",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "maximum",
    "minimum",
    "pow",
    "round",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
    "where",
)
_REDUCTIONS = ("all", "any", "argmax", "argmin", "max", "mean", "min", "prod", "sum")
_PRODUCTS = ("matmul",)
_MANIPULATION = (
    "astype",
    "broadcast_to",
    "concat",
    "expand_dims",
    "flip",
    "permute_dims",
    "reshape",
    "squeeze",
    "stack",
    "take",
    "tile",
)

NAMESPACE: tuple[str, ...] = tuple(
    sorted((*_CREATION, *_ELEMENTWISE, *_REDUCTIONS, *_PRODUCTS, *_MANIPULATION, *DTYPE_NAMES))
)
"""Every name that ``ctx.xp`` has. Beside these, arrays have ``shape``, ``dtype``, ``ndim``, ``T`` (two axes only),
operators, and slicing with ints, slices and ``None``: the last axes may be left out, and no slice reaches beyond its
axis."""


class Namespace:
    """``ctx.xp``: exactly the names in `NAMESPACE`, and ``backend``, the name of the backend.

    Its ``xp`` is itself, so that primitives take a context or a namespace alike.

    Arguments:
        backend: that name.
        module: what has the functions.
        kernels: the names by which primitives are asked for a kernel, one after the other: by default the backend's.
    """

    def __init__(self, backend: str, module: Any, *, kernels: tuple[str, ...] = ()) -> None:
        self.backend = backend
        self.kernels = kernels or (backend,)
        self.xp = self
        for name in NAMESPACE:
            setattr(self, name, getattr(module, name))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(missing_name(name))

    def __repr__(self) -> str:
        return f"<array functions of the {self.backend!r} backend>"


_OTHER_NAMES = {
    "concatenate": "concat",
    "transpose": "permute_dims",
    "power": "pow",
    "absolute": "abs",
    "add": "the operator +",
    "subtract": "the operator -",
    "multiply": "the operator *",
    "divide": "the operator /",
    "dot": "matmul or @",
    "einsum": "matmul after permute_dims",
    "erf": "lamella.primitives.erf",
    "pad": "lamella.primitives.pad",
    "random": "ctx.uniform",
    "array": "asarray",
    "amax": "max",
    "bool_": "bool",
}


def missing_name(name: str) -> str:
    """The message for a name that layer code may not use."""
    hint = f" Use {_OTHER_NAMES[name]}." if name in _OTHER_NAMES else did_you_mean(name, NAMESPACE)
    return f"xp.{name} is not among the functions that every backend has (lamella.backends.NAMESPACE).{hint}"
