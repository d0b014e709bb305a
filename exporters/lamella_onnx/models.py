"""Models run by the tracer: the inference graph, and one whole training step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from lamella.backends import Backend, get_backend
from lamella.engine.passes import Pass, Request, Watcher
from lamella.engine.rounds import run_alone
from lamella.graph.operations import Operation
from lamella.graph.plan import Plan
from lamella.network import Network
from lamella.protocol.declare import ArrayDeclaration
from lamella_onnx.runtime import DEFAULT_OPSET
from lamella_onnx.tracer import Graph, Traced, TraceError, new_graph, same_shape, write

__all__ = [
    "Naming",
    "Stored",
    "Trace",
    "TracerBackend",
    "layer_outputs",
    "trace_model",
    "trace_step",
    "whole_batch",
]

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
    model: Network,
    opset: int = DEFAULT_OPSET,
    names: Sequence[str] | None = None,
    *,
    given: Collection[str] = (),
    as_stored: bool = False,
    stable: bool = False,
) -> Trace:
    """Run a model's layers forward, in inference mode, and write down what they do.

    Arguments:
        model: the model.
        opset: the operator set to write.
        names: those of the outputs, if not the model's.
        given: the arrays, by name, that are inputs of the graph; it carries the others.
        as_stored: arrays that are inputs come with their axes in the order that they have in memory.
        stable: write primitives out where the operator that stands for them rounds worse.
    """
    graph = new_graph(opset, stable=stable)
    inputs = _inputs(graph, model)
    stored = Stored(graph.xp, model.graph.arrays if as_stored else {})
    arrays = {}
    for name in (*model.parameters, *model.state):
        if name in given:
            shape = stored.shape(name, model.graph.arrays[name].shape)
            arrays[name] = stored.seen(name, graph.input(name, shape, model.dtype))
        else:
            arrays[name] = graph.initializer(name, model.values.numpy(name))
    watcher = Naming(graph, model)
    one = Pass(_inference(model), TracerBackend(graph), inputs[0].shape[0], arrays, watcher=watcher)
    with watcher.errors():
        outputs = run_alone(one.forward(inputs), whole_batch)
    named = dict(zip(names or model.output_names, outputs, strict=True))
    return Trace(graph, named, watcher.layers, {one.name: one.label for one in model.graph.operations})


def _inference(model: Network) -> Plan:
    every = frozenset(operation.prefix for operation in model.graph.operations)
    return Plan(model.graph, every, wants_dx=False, training=False)


def layer_outputs(model: Network, inputs: Arrays) -> dict[str, Arrays]:
    """Return what each layer gives in inference, by its name, in NumPy."""
    arrays = {**model.parameters, **model.state}
    given = [x.astype(spec.dtype) for x, spec in zip(inputs, model.input_specs, strict=True)]
    watcher = _Keeping()
    one = Pass(_inference(model), get_backend("numpy"), len(given[0]), arrays, watcher=watcher)
    with np.errstate(all="ignore"):
        run_alone(one.forward(given), whole_batch)
    return watcher.layers


class _Keeping(Watcher):
    """Keeps what each layer gives."""

    def __init__(self) -> None:
        self.layers: dict[str, Arrays] = {}

    def after(self, operation: Operation, method: str, arrays: tuple[Any, ...]) -> None:
        self.layers[operation.name] = arrays


def trace_step(
    model: Network,
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
    inputs = _inputs(graph, model)
    gradients = {
        value: graph.input(f"{name}.incoming", spec.shape, spec.dtype)
        for value, name, spec in zip(model.graph.outputs, model.output_names, model.output_specs, strict=True)
        if spec.is_float
    }
    arrays = {
        name: graph.input(name, array.shape, str(array.dtype))
        for name, array in (*model.parameters.items(), *model.state.items())
    }
    seed: Any = graph.input("training.seed", (2,), "uint32")  # with a dot, unlike any input of a model
    key = (seed[0], seed[1], graph.input("training.step", (), "uint32"))
    plan = Plan(model.graph, model.frozen_layers, wants_dx=wants_dx, training=training)
    watcher = Naming(graph, model)
    one = Pass(plan, TracerBackend(graph), inputs[0].shape[0], arrays, recording=True, watcher=watcher)
    with watcher.errors():
        outputs = run_alone(one.forward(inputs, key), whole_batch)
        updates = {f"{name}.new": array for name, array in one.updates().items()}
        run_alone(one.backward(gradients), whole_batch)
    results = dict(zip(model.output_names, outputs, strict=True))
    for value, name in zip(model.graph.inputs, model.input_names, strict=True):
        if value in gradients:
            results[f"{name}.gradient"] = gradients[value]
    results |= {f"{name}.gradient": array for name, array in one.collected.items()}
    return write(graph, results | updates)


def _inputs(graph: Graph, model: Network) -> list[Traced]:
    specs = zip(model.input_names, model.input_specs, strict=True)
    return [graph.input(name, spec.shape, spec.dtype) for name, spec in specs]


class TracerBackend(Backend):
    """The backend on which layers write down what they do."""

    name = "onnx"
    views_are_live = True
    writes_in_place = uses_threads = False
    knows_shapes = False  # sizes have names; `Naming` checks outputs itself

    def __init__(self, graph: Graph) -> None:
        self.xp: Any = graph.xp

    def dtype(self, name: str) -> Any:
        return getattr(self.xp, name)

    def settled(self, array: Any) -> Any:
        return array

    def zeros(self, size: int, dtype: str) -> Any:
        return self.xp.zeros((size,), dtype=self.dtype(dtype))

    def view(self, storage: Any) -> Any:
        return storage

    def storable(self, array: Any) -> Any:
        return array

    def asarray(self, array: Any) -> Any:
        return self.xp.asarray(array)

    def weighted_sum(self, values: Any, weights: Any) -> Any:
        return self.xp.sum(values * weights)

    def asnumpy(self, array: Any) -> Any:
        raise TraceError(f"{array!r} has no value while a model is traced")


class Stored:
    """Between the order of axes that layers see and the one in memory, for arrays whose declaration says so."""

    def __init__(self, xp: Any, declarations: Mapping[str, ArrayDeclaration]) -> None:
        self._xp = xp
        self._memory = {
            name: one.memory for name, one in declarations.items() if one.memory != tuple(range(len(one.shape)))
        }

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in memory."""
        return tuple(shape[axis] for axis in self._memory[name]) if name in self._memory else shape

    def seen(self, name: str, array: Any) -> Any:
        """An array from memory, as layers see it."""
        if name not in self._memory:
            return array
        memory = self._memory[name]
        return self._xp.permute_dims(array, tuple(map(memory.index, range(len(memory)))))

    def kept(self, name: str, array: Any) -> Any:
        """An array of a layer as it stands in memory."""
        return self._xp.permute_dims(array, self._memory[name]) if name in self._memory else array


class Naming(Watcher):
    """Names nodes and values after the layers that make them, and checks outputs against what ``build`` said.

    Attributes:
        layers: what each layer gives, by its name.
        drawn: what layers drew, in order.
    """

    def __init__(self, graph: Graph, model: Network) -> None:
        self.graph = graph
        self.specs = model.graph.specs
        self.layers: dict[str, tuple[Traced, ...]] = {}
        self.drawn: list[Traced] = []
        self._running: Operation | None = None

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Say in which layer something can't be traced."""
        try:
            yield
        except TraceError as error:
            if self._running is None:
                raise
            raise TraceError(f"{self._running.label}: {error}") from error
        finally:
            self.graph.current_layer = ""

    def before(self, operation: Operation, method: str) -> None:
        self.graph.current_layer, self._running = operation.name, operation

    def drew(self, values: Any) -> None:
        self.drawn.append(values)

    def after(self, operation: Operation, method: str, arrays: tuple[Any, ...]) -> None:
        self.graph.current_layer, self._running = "", None
        if method == "backward_pass":
            return
        for value, output in zip(operation.outputs, arrays, strict=True):
            spec = self.specs[value]
            if not isinstance(output, Traced):
                raise TraceError(f"{operation.label}.forward_pass returned {output!r}, which is no array of ctx.xp")
            if not same_shape(output.shape, self.graph.shape(spec.shape)) or output.dtype != spec.dtype:
                got = f"({', '.join(map(str, output.shape))}) {output.dtype}"
                raise TraceError(f"{operation.label}: build said {spec}, forward_pass gives {got}")
        self.layers[operation.name] = arrays
        self.graph.entitle(operation.name, arrays)


def whole_batch(request: Request) -> Any:
    """What a layer yields is the total: there is one slice, which is the whole batch."""
    return request.partial
