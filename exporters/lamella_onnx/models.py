"""Models run by the tracer: the inference graph, and one whole training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import onnx

from lamella import Model, engine
from lamella.backends import get_backend
from lamella.graph import Leaf
from lamella_onnx.runtime import DEFAULT_OPSET
from lamella_onnx.tracer import Graph, Traced, TraceError, new_graph, same_shape, write

__all__ = ["Trace", "layer_outputs", "trace_model", "trace_step"]

Arrays = tuple[np.ndarray[Any, Any], ...]


@dataclasses.dataclass(frozen=True)
class Trace:
    """A traced model.

    Attributes:
        graph: its graph.
        outputs: the outputs by name.
        layers: what each layer gives, by its name, in the order in which layers run.
        labels: each layer's name and class, for errors, by its name.
    """

    graph: Graph
    outputs: dict[str, Traced]
    layers: dict[str, tuple[Traced, ...]]
    labels: dict[str, str]

    @property
    def proto(self) -> onnx.ModelProto:
        """The graph as ONNX."""
        return write(self.graph, self.outputs)

    def exposed(self) -> onnx.ModelProto:
        """The graph with what each layer gives as further outputs, called ``<layer>:<number>``."""
        inner = {f"{name}:{k}": x for name, outputs in self.layers.items() for k, x in enumerate(outputs)}
        return write(self.graph, self.outputs | inner)


def trace_model(
    model: Model, opset: int = DEFAULT_OPSET, names: Sequence[str] | None = None, *, stable: bool = False
) -> Trace:
    """Run a model's layers forward, in inference mode, and write down what they do.

    Arguments:
        model: the model.
        opset: the operator set to write.
        names: those of the outputs, if not the model's.
        stable: write primitives out where the operator that stands for them rounds worse.
    """
    graph = new_graph(opset, stable=stable)
    inputs = _inputs(graph, model)
    arrays = {name: graph.initializer(name, array) for name, array in (*model.parameters.items(), *model.state.items())}
    watch = _Watch(graph, model)
    outputs = engine.infer(model.program, graph.xp, arrays, inputs, around=watch.around, observe=watch.observe)
    named = dict(zip(names or model.output_names, outputs, strict=True))
    return Trace(graph, named, watch.layers, {leaf.name: leaf.label for leaf in model.program.leaves})


def layer_outputs(model: Model, inputs: Arrays) -> dict[str, Arrays]:
    """Return what each layer gives in inference, by its name, in NumPy."""
    layers: dict[str, Arrays] = {}
    arrays = {**model.parameters, **model.state}
    given = [x.astype(spec.dtype) for x, spec in zip(inputs, model.input_specs, strict=True)]

    def keep(leaf: Leaf, outputs: Arrays) -> None:
        layers[leaf.name] = outputs

    engine.infer(model.program, get_backend("numpy").xp, arrays, given, observe=keep)
    return layers


def trace_step(
    model: Model,
    *,
    opset: int = DEFAULT_OPSET,
    training: bool = True,
    wants_dx: bool | tuple[bool, ...] = True,
    stable: bool = False,
) -> onnx.ModelProto:
    """Run a model's layers forward and backward, and write both down as one graph.

    Inputs: those of the model; ``<output>.incoming``, the gradient of each floating output; every array of the model
    by its name; ``training.seed``, uint32 of shape (2,), low word first; and ``training.step``, a uint32. Outputs:
    those of the model; ``<input>.gradient`` where asked for; ``<parameter>.gradient``, frozen layers' left out;
    ``<state>.new`` where a layer updates it.
    """
    graph = new_graph(opset, stable=stable)
    program = model.program
    inputs = _inputs(graph, model)
    gradients = {
        value: graph.input(f"{name}.incoming", spec.shape, spec.dtype)
        for value, name, spec in zip(program.outputs, model.output_names, model.output_specs, strict=True)
        if spec.is_float
    }
    arrays = {
        name: graph.input(name, array.shape, str(array.dtype))
        for name, array in (*model.parameters.items(), *model.state.items())
    }
    seed: Any = graph.input("training.seed", (2,), "uint32")  # with a dot, unlike any input of a model
    key = (seed[0], seed[1], graph.input("training.step", (), "uint32"))
    plan = engine.Plan(program, model.frozen_layers, wants_dx=wants_dx, training=training)
    watch = _Watch(graph, model)
    tape: dict[str, Any] = {}
    forward = engine.forward(
        plan, graph.xp, arrays, inputs, key=key, tape=tape, around=watch.around, observe=watch.observe
    )
    results = dict(zip(model.output_names, _whole_batch(forward), strict=True))
    updates = {f"{name}.new": array for name, array in engine.collect_updates(plan, tape).items()}
    parameters: dict[str, Any] = {}

    def add(name: str, gradient: Any) -> None:
        parameters[name] = parameters[name] + gradient if name in parameters else gradient

    _whole_batch(engine.backward(plan, graph.xp, gradients, tape, add, around=watch.around))
    for value, name in zip(program.inputs, model.input_names, strict=True):
        if value in gradients:
            results[f"{name}.gradient"] = gradients[value]
    results |= {f"{name}.gradient": array for name, array in parameters.items()}
    return write(graph, results | updates)


def _inputs(graph: Graph, model: Model) -> list[Traced]:
    specs = zip(model.input_names, model.input_specs, strict=True)
    return [graph.input(name, spec.shape, spec.dtype) for name, spec in specs]


class _Watch:
    """Names nodes and values after the layers that make them, and checks outputs against what ``build`` said."""

    def __init__(self, graph: Graph, model: Model) -> None:
        self.graph = graph
        self.specs = model.program.specs
        self.layers: dict[str, tuple[Traced, ...]] = {}

    def around(self, leaf: Leaf) -> Any:
        return self.graph.layer(leaf.name, leaf.label)

    def observe(self, leaf: Leaf, outputs: tuple[Any, ...]) -> None:
        for value, output in zip(leaf.outputs, outputs, strict=True):
            spec = self.specs[value]
            if not isinstance(output, Traced):
                raise TraceError(f"{leaf.label}.forward_pass returned {output!r}, which is no array of ctx.xp")
            if not same_shape(output.shape, self.graph.shape(spec.shape)) or output.dtype != spec.dtype:
                got = f"({', '.join(map(str, output.shape))}) {output.dtype}"
                raise TraceError(f"{leaf.label}: build said {spec}, forward_pass gives {got}")
        self.layers[leaf.name] = outputs
        self.graph.entitle(leaf.name, outputs)


def _whole_batch(coroutine: Generator[engine.Request, Any, Any]) -> Any:
    """Run a pass. The graph sees the whole batch, so each partial sum is the total."""
    answer: Any = None
    while True:
        try:
            answer = coroutine.send(answer).partial
        except StopIteration as stop:
            return stop.value
