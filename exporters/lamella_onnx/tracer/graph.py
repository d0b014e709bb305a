"""The graph that grows as functions are called on its arrays."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from onnx import helper

from lamella_onnx.tracer.arrays import Traced
from lamella_onnx.tracer.dims import Dim, Size, TraceError, broadcast, same_shape
from lamella_onnx.tracer.namespace import OnnxNamespace
from lamella_onnx.tracer.table import Traceable

__all__ = ["Graph", "Node", "Scope"]

_LARGEST_REPEATED = 1024  # constants of more elements are repeated by the graph, not in the file


@dataclasses.dataclass
class Scope:
    """The nodes of the graph, or of the body of a Scan."""

    nodes: list[Node] = dataclasses.field(default_factory=list)
    inputs: list[str] = dataclasses.field(default_factory=list)
    outputs: list[str] = dataclasses.field(default_factory=list)
    made: dict[Any, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # equal nodes are written once


@dataclasses.dataclass
class Node:
    """An operator with its inputs and outputs, by the names of values, and the layer that added it."""

    operator: str
    inputs: list[str]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    layer: str
    is_size: bool = False  # a part of a size, which every layer and body can see


class Graph:
    """An ONNX graph in the making; `lamella_onnx.tracer.new_graph` makes one.

    Values have made-up names starting with ``%`` until `lamella_onnx.tracer.writer` gives them those of the layers.

    Arguments:
        opset: the operator set to write.
        functions: what `call` writes, by name.
        stable: what ``xp.stable`` tells kernels.
    """

    def __init__(self, opset: int, functions: Mapping[str, Traceable], *, stable: bool = False) -> None:
        self.opset = opset
        self.functions = functions
        self.stable = stable
        self.current_layer = ""  # the name of the layer that is being traced
        self.inputs: dict[str, Traced] = {}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}  # initializers and constants by name
        self.kinds: dict[str, tuple[tuple[Size, ...], np.dtype[Any]]] = {}  # value -> shape and dtype
        self.titles: dict[str, str] = {}  # value -> name of the layer that it is the output of
        self._scopes = [Scope()]
        self._constants: dict[Any, str] = {}
        self._origins: dict[str, tuple[str, int]] = {}  # symbol -> input and axis that have its size

    @cached_property
    def xp(self) -> Any:
        """What layers see as ``ctx.xp``."""
        return OnnxNamespace(
            opset=self.opset,
            stable=self.stable,
            node=self.node,
            constant=self.constant,
            call=self.call,
            scan=self.scan,
        )

    @property
    def nodes(self) -> list[Node]:
        """The nodes so far, outside of loops."""
        return self._scopes[0].nodes

    def call(self, name: str, /, *args: Any, **options: Any) -> Any:
        """Write a function of the namespace down, or let NumPy compute it where all arguments are known."""
        function = self.functions[name]
        given = list(_flat((*args, *options.values())))
        arrays = [x for x in given if isinstance(x, Traced)]
        small = function.elementwise
        known = not any(isinstance(x, Dim) for x in given) and all(_value(x, small) is not None for x in arrays)
        if not arrays or not known or not function.folds:
            return function.write(self, *args, **options)

        def value(x: Any) -> Any:
            if isinstance(x, tuple | list):
                return type(x)(map(value, x))
            return _value(x, small) if isinstance(x, Traced) else x

        with np.errstate(all="ignore"):
            result = np.asarray(getattr(np, name)(*map(value, args), **{key: value(x) for key, x in options.items()}))
        shape = broadcast(result.shape, *(x.shape for x in arrays)) if small else result.shape
        return Traced(self, result, shape, result.dtype, result.shape)

    # Inputs, constants, layers

    def shape(self, shape: Sequence[int | str]) -> tuple[Size, ...]:
        """Return the shape of an `ArraySpec` with its names as sizes."""
        return tuple(Dim.symbol(size) if isinstance(size, str) else size for size in shape)

    def input(self, name: str, shape: Sequence[int | str], dtype: str) -> Traced:
        """Add an input. The first to have a symbol in its shape is where the graph reads that size."""
        if name in self.inputs:
            raise TraceError(f"two inputs of the graph would be called {name!r}; give the layer or array another name")
        self.inputs[name] = Traced(self, name, self.shape(shape), dtype)
        for axis, size in enumerate(shape):
            if isinstance(size, str):
                self._origins.setdefault(size, (name, axis))
        return self.inputs[name]

    def initializer(self, name: str, array: np.ndarray[Any, Any]) -> Traced:
        """Add a named array that the file carries, if anything uses it."""
        self.arrays[name] = array
        return Traced(self, name, array.shape, array.dtype)

    def constant(self, array: Any) -> Traced:
        """Return a NumPy array as a traced one."""
        array = np.asarray(array)
        return Traced(self, array, array.shape, array.dtype)

    @contextlib.contextmanager
    def _made_by(self, layer: str) -> Iterator[None]:
        outer, self.current_layer = self.current_layer, layer
        try:
            yield
        finally:
            self.current_layer = outer

    def entitle(self, name: str, outputs: Sequence[Traced]) -> None:
        """Name a layer's outputs after it."""
        for k, output in enumerate(outputs):
            if isinstance(output.source, str) and same_shape(output.held, output.shape):
                self.titles.setdefault(output.source, name if len(outputs) == 1 else f"{name}.{k}")

    def operators(self, layer: str) -> list[str]:
        """The operators that a layer added."""
        return [node.operator for node in self.nodes if node.layer == layer]

    # Nodes

    def node(self, operator: str, *inputs: Any, shape: Any, dtype: Any, **attributes: Any) -> Any:
        """Add a node and return its output; with lists for shape and dtype, a tuple of outputs.

        Inputs are arrays, NumPy arrays, or None for an optional input left out. Attributes that are None are left out.
        """
        names = ["" if x is None else self.name_of(self._array(operator, x)) for x in inputs]
        if not isinstance(dtype, list):
            return self._emit(operator, names, [shape], [dtype], attributes)[0]
        return self._emit(operator, names, shape, dtype, attributes)

    def elementwise(self, operator: str, *arrays: Traced, dtype: Any = None, **attributes: Any) -> Traced:
        """Add a node whose inputs are broadcast together; what would only be repeated stays small."""
        held = broadcast(*(x.held for x in arrays))
        names = [self.name_of(x, whole=False) for x in arrays]
        (small,) = self._emit(operator, names, [held], [dtype or arrays[0].dtype], attributes)
        return Traced(self, small.source, broadcast(*(x.shape for x in arrays)), small.dtype, held)

    def _array(self, operator: str, x: Any) -> Traced:
        if isinstance(x, np.ndarray | np.generic):
            return self.constant(x)
        if not isinstance(x, Traced):
            raise TraceError(f"xp.node({operator!r}): expected arrays, got {x!r}; give xp.constant(numpy.array(...))")
        return x

    def _emit(
        self,
        operator: str,
        inputs: list[str],
        shapes: Sequence[Sequence[Size]],
        dtypes: Sequence[Any],
        attributes: Mapping[str, Any],
        *,
        is_size: bool = False,
    ) -> tuple[Traced, ...]:
        """Add a node, or find the layer's equal one; that of a size is put where every layer and body can see it."""
        kept = {name: value for name, value in attributes.items() if value is not None}
        layer, scope = self.current_layer, self._scopes[0 if is_size else -1]
        key = (operator, *inputs, len(shapes), repr(sorted(kept.items())), None if is_size else layer)
        outputs = next((s.made[key] for s in self._scopes if key in s.made), None)
        if outputs is None:
            outputs = tuple(self.value(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
            scope.nodes.append(Node(operator, inputs, outputs, kept, layer, is_size))
            scope.made[key] = outputs
        return tuple(Traced(self, *row) for row in zip(outputs, shapes, dtypes, strict=True))

    def value(self, shape: Sequence[Size], dtype: Any) -> str:
        """Return the name of a new value, which some node has to give."""
        name = f"%{len(self.kinds)}"
        self.kinds[name] = tuple(shape), np.dtype(dtype)
        return name

    def kind(self, name: str) -> tuple[tuple[Size, ...], np.dtype[Any]]:
        """Return shape and dtype of a value, an input or a constant."""
        if name in self.kinds:
            return self.kinds[name]
        held = self.inputs[name] if name in self.inputs else self.arrays[name]
        return held.shape, held.dtype

    def name_of(self, x: Traced, *, whole: bool = True) -> str:
        """Return the name of a value that holds an array, all of it or as small as it is held."""
        if isinstance(x.source, np.ndarray):
            value = x.constant
            if whole and value is not None and (value.size <= _LARGEST_REPEATED or x.source.shape == x.shape):
                return self._constant_name(value)
        name = x.source if isinstance(x.source, str) else self._constant_name(x.source)
        if not whole or same_shape(x.held, x.shape):
            return name
        with self._made_by(x.layer):  # not by the first that needs all of it
            (expanded,) = self._emit("Expand", [name, self.name_of(self.sizes(x.shape))], [x.shape], [x.dtype], {})
        return str(expanded.source)

    def _constant_name(self, array: np.ndarray[Any, Any]) -> str:
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"%constant{len(self._constants)}"
            self.arrays[self._constants[key]] = array
        return self._constants[key]

    # Sizes

    def sizes(self, sizes: Sequence[Size]) -> Traced:
        """Return an int64 vector of sizes, computed from the shapes of inputs where they are not known."""
        parts: list[Traced] = []
        run: list[int] = []
        for size in (*sizes, None):
            if isinstance(size, int):
                run.append(size)
                continue
            if run or not (sizes or parts):
                parts.append(self.constant(np.array(run, "int64")))
            run = []
            if size is not None:
                parts.append(self._size(size))
        return parts[0] if len(parts) == 1 else self._from_sizes("Concat", parts, len(sizes), axis=0)

    def size(self, size: Size, dtype: Any) -> Traced:
        """Return a size as a scalar."""
        if isinstance(size, int):
            return self.constant(np.array(size, dtype))
        vector = self._size(size)
        if np.dtype(dtype) != vector.dtype:
            vector = self._from_sizes(
                "Cast", [vector], 1, dtype=dtype, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            )
        return self._emit("Squeeze", [self.name_of(vector)], [()], [dtype], {}, is_size=True)[0]

    def _size(self, size: Dim) -> Traced:
        total: Traced | None = None
        for symbols, coefficient in size.terms:
            factors = [self._symbol(symbol) for symbol in symbols]
            if coefficient != 1 or not factors:
                factors.append(self.constant(np.array([coefficient])))
            term = factors[0]
            for factor in factors[1:]:
                term = self._from_sizes("Mul", [term, factor], 1)
            total = term if total is None else self._from_sizes("Add", [total, term], 1)
        assert total is not None  # a Dim has terms
        return total

    def _symbol(self, symbol: str) -> Traced:
        if symbol not in self._origins:
            raise TraceError(f"no input has an axis {symbol!r}, so its size is not known where it is needed")
        name, axis = self._origins[symbol]
        return self._from_sizes("Shape", [self.inputs[name]], 1, start=axis, end=axis + 1)

    def _from_sizes(
        self, operator: str, inputs: list[Traced], length: int, *, dtype: Any = "int64", **attributes: Any
    ) -> Traced:
        names = [self.name_of(x) for x in inputs]
        return self._emit(operator, names, [(length,)], [dtype], attributes, is_size=True)[0]

    # Loops

    def scan(
        self,
        body: Callable[..., Any],
        states: Sequence[Traced],
        xs: Sequence[Traced],
        consts: Sequence[Any],
        reverse: bool,
    ) -> tuple[tuple[Traced, ...], tuple[Traced, ...]]:
        """Trace the body once, into a Scan node. The body may use values of the graph around it."""
        inputs = [self.name_of(x) for x in (*states, *xs)]
        scope = Scope()
        self._scopes.append(scope)
        try:
            kinds = [*((x.shape, x.dtype) for x in states), *((x.shape[1:], x.dtype) for x in xs)]
            scope.inputs = [self.value(*kind) for kind in kinds]
            given = [Traced(self, name, *kind) for name, kind in zip(scope.inputs, kinds, strict=True)]
            after, ys = body(tuple(given[: len(states)]), tuple(given[len(states) :]), *consts)
            if len(after) != len(states) or not all(map(_alike, after, states)):
                raise TraceError(
                    f"scan: the body returned states {', '.join(map(repr, after))}; "
                    f"expected shapes and dtypes as they came in: {', '.join(map(repr, states))}"
                )
            for x in (*after, *ys):
                scope.outputs.append(self._made_in(scope, x))
        finally:
            self._scopes.pop()
        attributes = {
            "body": scope,
            "num_scan_inputs": len(xs),
            "scan_input_directions": [1] * len(xs) if reverse else None,
            "scan_output_directions": [1] * len(ys) if reverse and ys else None,
        }
        shapes = [*(x.shape for x in after), *((xs[0].shape[0], *y.shape) for y in ys)]
        results = self._emit("Scan", inputs, shapes, [x.dtype for x in (*after, *ys)], attributes)
        return results[: len(states)], results[len(states) :]

    def _made_in(self, scope: Scope, x: Traced) -> str:
        """A name for an output of the body: a value that one of its own nodes gives, and no other output has."""
        name = self.name_of(x)
        if name in scope.outputs or not any(name in node.outputs for node in scope.nodes):
            name = self.value(x.shape, x.dtype)
            scope.nodes.append(Node("Identity", [self.name_of(x)], (name,), {}, x.layer))
        return name


def _alike(a: Traced, b: Traced) -> bool:
    return a.dtype == b.dtype and same_shape(a.shape, b.shape)


def _value(x: Traced, small: bool) -> Any:
    """What is known of an array: as it is held, or whole."""
    return (x.source if isinstance(x.source, np.ndarray) else None) if small else x.constant


def _flat(args: Any) -> Iterator[Any]:
    for x in args:
        if isinstance(x, tuple | list):
            yield from _flat(x)
        else:
            yield x
