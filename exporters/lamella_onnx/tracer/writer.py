"""A traced graph as an ONNX model, with names that a reader knows the layers by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lamella.version import __version__
from lamella_onnx.tracer.arrays import Traced
from lamella_onnx.tracer.dims import Dim, Size
from lamella_onnx.tracer.graph import Graph, Node, Scope

__all__ = ["write"]

_INLINE = 4  # constants of up to so many elements carry their values in their names


def write(graph: Graph, outputs: Mapping[str, Traced], *, name: str = "model") -> onnx.ModelProto:
    """Return the nodes that outputs need, named after layers, and the constants that these use."""
    writer = _Writer(graph, outputs)
    opset = helper.make_opsetid("", graph.opset)
    written = helper.make_graph(
        [writer.node(node) for node in writer.needed],
        name,
        [_value_info(name, x.shape, x.dtype) for name, x in graph.inputs.items()],
        [_value_info(title, x.shape, x.dtype) for title, x in outputs.items()],
        initializer=writer.initializers,
        value_info=writer.value_infos,
    )
    return helper.make_model(
        written,
        producer_name="lamella",
        producer_version=__version__,
        opset_imports=[opset],
        ir_version=helper.find_min_ir_version_for([opset]),
    )


def _needed(nodes: list[Node], values: set[str]) -> list[Node]:
    """The nodes that some values depend on; ``values`` grows by all that they use."""
    kept: list[Node] = []
    for node in reversed(nodes):
        if values.isdisjoint(node.outputs):
            continue
        if "body" in node.attributes:
            node, inner = _needed_loop(node, values)
            values |= inner
        values.update(node.inputs)
        kept.append(node)
    return kept[::-1]


def _needed_loop(node: Node, values: set[str]) -> tuple[Node, set[str]]:
    """A Scan without the sequences that nobody uses, and what its body uses."""
    body, options = node.attributes["body"], node.attributes
    states = len(body.inputs) - options["num_scan_inputs"]
    kept = [k for k, output in enumerate(node.outputs) if k < states or output in values]
    inner = {body.outputs[k] for k in kept}
    slim = Scope(_needed(body.nodes, inner), body.inputs, [body.outputs[k] for k in kept])
    attributes = {**options, "body": slim}
    if "scan_output_directions" in options:
        attributes["scan_output_directions"] = [1] * (len(kept) - states) or None
    outputs = tuple(node.outputs[k] for k in kept)
    return dataclasses.replace(node, outputs=outputs, attributes=attributes), inner


class _Writer:
    """Turns nodes into protobuf, giving them and their values names that are used once."""

    def __init__(self, graph: Graph, outputs: Mapping[str, Traced]) -> None:
        self.graph = graph
        self.names = {name: name for name in graph.inputs}  # value -> its name in the file
        self.initializers: list[onnx.TensorProto] = []
        self.value_infos: list[onnx.ValueInfoProto] = []
        copies: list[Node] = []
        kinds = {}
        for title, x in outputs.items():
            value = graph.name_of(x)
            if value in graph.arrays or value in self.names:  # an output has a name of its own
                copies.append(Node("Identity", [value], (title,), {}, x.layer))
                kinds[title] = x.shape, x.dtype
                value = title
            self.names[value] = title
        self.kinds = graph.kinds | kinds  # value -> shape and dtype
        self.needed = _needed([*graph.nodes, *copies], {value for value in self.names if value not in graph.inputs})
        self._values = {*self.names.values(), *(name for name in graph.arrays if not name.startswith("%"))}
        self._nodes: set[str] = set()
        self._outputs = set(self.names.values())

    def node(self, node: Node) -> onnx.NodeProto:
        inputs = [self._input(name) for name in node.inputs]
        attributes = {
            key: self._body(value) if isinstance(value, Scope) else value
            for key, value in node.attributes.items()
            if value is not None
        }
        path = f"{node.layer}/{node.operator}".strip("/")
        title = _unused(self._nodes, path if node.is_size else node.layer or path, path)
        outputs = [self._output(value, path) for value in node.outputs]
        return helper.make_node(node.operator, inputs, outputs, name=title, **attributes)

    def _input(self, value: str) -> str:
        if value and value not in self.names:  # an array, first used here
            array = self.graph.arrays[value]
            self.names[value] = _unused(self._values, _constant_title(array)) if value.startswith("%") else value
            self.initializers.append(
                numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), self.names[value])
            )
        return self.names.get(value, "")

    def _output(self, value: str, path: str) -> str:
        if value not in self.names:
            self.names[value] = _unused(self._values, self.graph.titles.get(value, path), path)
        shape, dtype = self.kinds[value]
        if self.names[value] not in self._outputs:
            self.value_infos.append(_value_info(self.names[value], shape, dtype))
        return self.names[value]

    def _body(self, scope: Scope) -> onnx.GraphProto:
        outer = len(self.value_infos)
        inputs = [_value_info(self._output(value, "step"), *self.kinds[value]) for value in scope.inputs]
        nodes = [self.node(node) for node in scope.nodes]
        outputs = [_value_info(self.names[value], *self.kinds[value]) for value in scope.outputs]
        del self.value_infos[outer:]  # those of the body are the body's own
        return helper.make_graph(nodes, "body", inputs, outputs)


def _unused(used: set[str], *wishes: str) -> str:
    """The first wish that is free, or the last with a count."""
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
