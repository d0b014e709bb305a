"""The tracer: arrays that stand for values of an ONNX graph, and the graph that grows as functions are called on them.

A `Traced` array is either a constant, still held in NumPy, or the name of a value in the graph. Both may be held
smaller than their shape says, where they would only be repeated: ``zeros((N, 3))`` is one 0 until something other than
an elementwise operator needs all of it. What layer code may do with the arrays stands in `functions`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lamella.backends import NAMESPACE
from lamella_onnx.dim import Dim, Size, TraceError, broadcast, same_shape

__all__ = ["Graph", "Traced"]

_OPERATORS = {
    "add": operator.add,
    "divide": operator.truediv,
    "equal": operator.eq,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "less": operator.lt,
    "less_equal": operator.le,
    "matmul": operator.matmul,
    "multiply": operator.mul,
    "not_equal": operator.ne,
    "power": operator.pow,
    "subtract": operator.sub,
}
_LARGEST_REPEATED = 1024  # constants of more elements are repeated by the graph, not in the file
_INLINE = 4  # constants of up to so many elements carry their values in their names


class Traced:
    """An array of a traced graph: shape and dtype, operators and slicing, but no value.

    >>> graph = Graph(21)
    >>> x = graph.input("x", ("N", 4), "float32")
    >>> (2.0 * x + 1.0)[:, ::2].shape
    (N, 2)
    """

    __slots__ = ("dtype", "graph", "held", "layer", "shape", "source")
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        graph: Graph,
        source: np.ndarray[Any, Any] | str,
        shape: Iterable[Size],
        dtype: Any,
        held: Iterable[Size] | None = None,
    ) -> None:
        self.graph = graph
        self.source = source
        self.shape = tuple(shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.held = self.shape if held is None else tuple(held)
        self.layer = graph.current_layer

    @property
    def ndim(self) -> int:
        """How many axes the array has."""
        return len(self.shape)

    @property
    def constant(self) -> np.ndarray[Any, Any] | None:
        """The value, if it is known and of known size."""
        known = isinstance(self.source, np.ndarray) and not any(isinstance(size, Dim) for size in self.shape)
        return np.broadcast_to(self.source, self.shape) if known else None  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"<{'constant' if isinstance(self.source, np.ndarray) else 'traced'} array {self.shape} {self.dtype}>"

    def _no_value(self, *_: Any, **__: Any) -> NoReturn:
        raise TraceError(
            f"the value of {self!r} is not known when a model is exported, so it can't become a number or a NumPy "
            "array, decide an 'if' or be looped over; use xp.where, lamella.scan and the functions of ctx.xp"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Any:
        """NumPy arrays leave operators to us; its functions can't work here."""
        if method == "__call__" and ufunc.__name__ in _OPERATORS and len(inputs) == 2:
            left, right = (x if isinstance(x, Traced) else self.graph.constant(x) for x in inputs)
            return _OPERATORS[ufunc.__name__](left, right)
        raise TraceError(f"numpy.{ufunc.__name__} was called on {self!r}; use ctx.xp.{ufunc.__name__}")

    def __getattr__(self, name: str) -> Any:
        hint = f"; use ctx.xp.{name}(x, ...)" if name in NAMESPACE else ""
        raise AttributeError(f"arrays of ctx.xp have no {name!r}{hint}")

    __bool__ = __int__ = __float__ = __index__ = __iter__ = __len__ = __array__ = __contains__ = _no_value


@dataclasses.dataclass
class _Scope:
    """The nodes of the graph, or of the body of a Scan."""

    nodes: list[_Node] = dataclasses.field(default_factory=list)
    inputs: list[str] = dataclasses.field(default_factory=list)
    outputs: list[str] = dataclasses.field(default_factory=list)
    made: dict[Any, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # equal nodes are written once


@dataclasses.dataclass
class _Node:
    operator: str
    inputs: list[str]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    layer: str
    is_size: bool = False  # a part of a size, which every layer and body can see


class Graph:
    """An ONNX graph in the making.

    ``xp`` is what layers see as ``ctx.xp``. Values have made-up names starting with ``%`` until `model` gives them
    those of the layers.

    >>> graph = Graph(21)
    >>> x = graph.input("x", ("N", 4), "float32")
    >>> proto = graph.model({"y": graph.xp.tanh(x) + 1.0})
    >>> [node.op_type for node in proto.graph.node]
    ['Tanh', 'Add']
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._scopes = [_Scope()]
        self.current_layer = ""  # the name of the layer that is being traced
        self._inputs: dict[str, Traced] = {}
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}  # initializers by name
        self._constants: dict[Any, str] = {}
        self._origins: dict[str, tuple[str, int]] = {}  # symbol -> input and axis that have its size
        self._kinds: dict[str, tuple[tuple[Size, ...], np.dtype[Any]]] = {}  # value -> shape and dtype
        self._titles: dict[str, str] = {}  # value -> name of the layer that it is the output of

    @cached_property
    def xp(self) -> Any:
        """The functions of `lamella.backends.NAMESPACE`, and what ONNX kernels use."""
        from lamella_onnx.functions import OnnxNamespace  # functions know the tracer

        return OnnxNamespace(self)

    # What goes in

    def shape(self, shape: Sequence[int | str]) -> tuple[Size, ...]:
        """Return the shape of an `ArraySpec` with its names as sizes."""
        return tuple(Dim.symbol(size) if isinstance(size, str) else size for size in shape)

    def input(self, name: str, shape: Sequence[int | str], dtype: str) -> Traced:
        """Add an input. The first to have a symbol in its shape is where the graph reads that size."""
        if name in self._inputs:
            raise TraceError(f"two inputs of the graph would be called {name!r}; give the layer or array another name")
        self._inputs[name] = Traced(self, name, self.shape(shape), dtype)
        for axis, size in enumerate(shape):
            if isinstance(size, str):
                self._origins.setdefault(size, (name, axis))
        return self._inputs[name]

    def initializer(self, name: str, array: np.ndarray[Any, Any]) -> Traced:
        """Add a named array that the file carries, if anything uses it."""
        self._arrays[name] = array
        return Traced(self, name, array.shape, array.dtype)

    def constant(self, array: Any) -> Traced:
        """Return a NumPy array as a traced one."""
        array = np.asarray(array)
        return Traced(self, array, array.shape, array.dtype)

    @contextlib.contextmanager
    def layer(self, name: str, label: str) -> Iterator[None]:
        """Name nodes and errors after a layer."""
        try:
            with self._made_by(name):
                yield
        except TraceError as error:
            raise TraceError(f"{label}: {error}") from error

    @contextlib.contextmanager
    def _made_by(self, layer: str) -> Iterator[None]:
        outer, self.current_layer = self.current_layer, layer
        try:
            yield
        finally:
            self.current_layer = outer

    def entitle(self, name: str, outputs: Sequence[Traced]) -> None:
        """Name the values that a layer gives after it."""
        for k, output in enumerate(outputs):
            if isinstance(output.source, str) and same_shape(output.held, output.shape):
                self._titles.setdefault(output.source, name if len(outputs) == 1 else f"{name}.{k}")

    def operators(self, layer: str) -> list[str]:
        """The operators that a layer added."""
        return [node.operator for node in self._scopes[0].nodes if node.layer == layer]

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
        key = (operator, *inputs, repr(sorted(kept.items())), None if is_size else layer)
        outputs = next((s.made[key] for s in self._scopes if key in s.made), None)
        if outputs is None:
            outputs = tuple(self._value(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
            scope.nodes.append(_Node(operator, inputs, outputs, kept, layer, is_size))
            scope.made[key] = outputs
        return tuple(Traced(self, *row) for row in zip(outputs, shapes, dtypes, strict=True))

    def _value(self, shape: Sequence[Size], dtype: Any) -> str:
        name = f"%{len(self._kinds)}"
        self._kinds[name] = tuple(shape), np.dtype(dtype)
        return name

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
            self._arrays[self._constants[key]] = array
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
        return self._from_sizes("Shape", [self._inputs[name]], 1, start=axis, end=axis + 1)

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
        """Trace the body once, into a Scan node; what it uses from outside is seen through."""
        inputs = [self.name_of(x) for x in (*states, *xs)]
        scope = _Scope()
        self._scopes.append(scope)
        try:
            kinds = [*((x.shape, x.dtype) for x in states), *((x.shape[1:], x.dtype) for x in xs)]
            scope.inputs = [self._value(*kind) for kind in kinds]
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

    def _made_in(self, scope: _Scope, x: Traced) -> str:
        """The name of a value that the body makes itself, and gives once."""
        name = self.name_of(x)
        if name in scope.outputs or not any(name in node.outputs for node in scope.nodes):
            name = self._value(x.shape, x.dtype)
            scope.nodes.append(_Node("Identity", [self.name_of(x)], (name,), {}, x.layer))
        return name

    # What comes out

    def model(self, outputs: Mapping[str, Traced], *, name: str = "model") -> onnx.ModelProto:
        """Write the graph down: the nodes that outputs need, named after layers, and the arrays that these use."""
        nodes: list[_Node] = []
        names = {name: name for name in self._inputs}
        for title, x in outputs.items():
            value = self.name_of(x)
            if value in self._arrays or value in names:
                nodes.append(_Node("Identity", [value], (title,), {}, x.layer))
                self._kinds[title] = x.shape, x.dtype
                value = title
            names[value] = title
        nodes = _needed([*self._scopes[0].nodes, *nodes], {value for value in names if value not in self._inputs})
        writer = _Writer(self, names)
        graph = helper.make_graph(
            [writer.node(node) for node in nodes],
            name,
            [_value_info(name, x.shape, x.dtype) for name, x in self._inputs.items()],
            [_value_info(title, x.shape, x.dtype) for title, x in outputs.items()],
            initializer=writer.initializers,
            value_info=writer.value_infos,
        )
        return helper.make_model(
            graph,
            producer_name="lamella",
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=helper.find_min_ir_version_for([helper.make_opsetid("", self.opset)]),
        )


def _alike(a: Traced, b: Traced) -> bool:
    return a.dtype == b.dtype and same_shape(a.shape, b.shape)


def _needed(nodes: list[_Node], values: set[str]) -> list[_Node]:
    """The nodes that some values depend on; ``values`` grows by all that they use."""
    kept: list[_Node] = []
    for node in reversed(nodes):
        if values.isdisjoint(node.outputs):
            continue
        if "body" in node.attributes:
            node, inner = _needed_loop(node, values)
            values |= inner
        values.update(node.inputs)
        kept.append(node)
    return kept[::-1]


def _needed_loop(node: _Node, values: set[str]) -> tuple[_Node, set[str]]:
    """A Scan without the sequences that nobody uses, and what its body uses."""
    body, options = node.attributes["body"], node.attributes
    states = len(body.inputs) - options["num_scan_inputs"]
    kept = [k for k, output in enumerate(node.outputs) if k < states or output in values]
    inner = {body.outputs[k] for k in kept}
    slim = _Scope(_needed(body.nodes, inner), body.inputs, [body.outputs[k] for k in kept])
    attributes = {**options, "body": slim}
    if "scan_output_directions" in options:
        attributes["scan_output_directions"] = [1] * (len(kept) - states) or None
    outputs = tuple(node.outputs[k] for k in kept)
    return dataclasses.replace(node, outputs=outputs, attributes=attributes), inner


class _Writer:
    """Turns nodes into protobuf, giving them and their values names that are used once."""

    def __init__(self, graph: Graph, names: dict[str, str]) -> None:
        self.graph = graph
        self.names = names  # value -> its name in the file
        self.initializers: list[onnx.TensorProto] = []
        self.value_infos: list[onnx.ValueInfoProto] = []
        self._values = {*names.values(), *(name for name in graph._arrays if not name.startswith("%"))}
        self._nodes: set[str] = set()
        self._outputs = set(names.values())

    def node(self, node: _Node) -> onnx.NodeProto:
        inputs = [self._input(name) for name in node.inputs]
        attributes = {
            key: self._body(value) if isinstance(value, _Scope) else value
            for key, value in node.attributes.items()
            if value is not None
        }
        path = f"{node.layer}/{node.operator}".strip("/")
        title = _unused(self._nodes, path if node.is_size else node.layer or path, path)
        outputs = [self._output(value, path) for value in node.outputs]
        return helper.make_node(node.operator, inputs, outputs, name=title, **attributes)

    def _input(self, value: str) -> str:
        if value and value not in self.names:  # an array, first used here
            array = self.graph._arrays[value]
            self.names[value] = _unused(self._values, _constant_title(array)) if value.startswith("%") else value
            self.initializers.append(
                numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), self.names[value])
            )
        return self.names.get(value, "")

    def _output(self, value: str, path: str) -> str:
        if value not in self.names:
            self.names[value] = _unused(self._values, self.graph._titles.get(value, path), path)
        shape, dtype = self.graph._kinds[value]
        if self.names[value] not in self._outputs:
            self.value_infos.append(_value_info(self.names[value], shape, dtype))
        return self.names[value]

    def _body(self, scope: _Scope) -> onnx.GraphProto:
        outer = len(self.value_infos)
        inputs = [_value_info(self._output(value, "step"), *self.graph._kinds[value]) for value in scope.inputs]
        nodes = [self.node(node) for node in scope.nodes]
        outputs = [_value_info(self.names[value], *self.graph._kinds[value]) for value in scope.outputs]
        del self.value_infos[outer:]  # those of the body are the body's own
        return helper.make_graph(nodes, "body", inputs, outputs)


def _unused(used: set[str], *wishes: str) -> str:
    """The first wish that is free, or the last with a number."""
    name = next((wish for wish in wishes if wish not in used), "")
    count = 1
    while not name or name in used:
        count += 1
        name = f"{wishes[-1]}_{count}"
    used.add(name)
    return name


def _constant_title(array: np.ndarray[Any, Any]) -> str:
    if array.size > _INLINE:
        return f"constant_{array.dtype}"
    return "_".join(
        ["constant", *(f"{value:g}" if array.dtype.kind == "f" else str(int(value)) for value in array.flat)]
    )


def _value_info(name: str, shape: Sequence[Size], dtype: Any) -> onnx.ValueInfoProto:
    dims = [str(size) if isinstance(size, Dim) else size for size in shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims)
