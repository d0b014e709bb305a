"""``ctx.xp`` of a traced layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lamella.backends.namespace import DTYPE_NAMES, NAMESPACE, missing_name

__all__ = ["OnnxNamespace"]


class OnnxNamespace:
    """Exactly the names in `lamella.backends.NAMESPACE`, and a few that ONNX kernels use.

    Attributes:
        node: ``node(operator, *inputs, shape=, dtype=, **attributes)``, with lists for shape and dtype where the
            operator has several outputs.
        constant: ``constant(numpy_array)``.
        opset: the operator set that the graph is written in.
        stable: whether a kernel shall call its primitive's reference in place of an operator that rounds worse.
    """

    backend = "onnx"
    kernels = ("onnx",)

    def __init__(
        self,
        *,
        opset: int,
        stable: bool,
        node: Callable[..., Any],
        constant: Callable[..., Any],
        call: Callable[..., Any],
        scan: Callable[..., Any],
    ) -> None:
        self.opset = opset
        self.stable = stable
        self.node = node
        self.constant = constant
        self._scan = scan
        self.xp = self  # primitives take a context or a namespace
        for name in NAMESPACE:
            setattr(self, name, np.dtype(name) if name in DTYPE_NAMES else functools.partial(call, name))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(missing_name(name))

    def __repr__(self) -> str:
        return "<array functions of the 'onnx' backend>"
