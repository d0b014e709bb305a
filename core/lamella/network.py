"""A network: a graph with its arrays, its seed, what is frozen, and the backend where it runs."""

from __future__ import annotations

import copy
import fnmatch
import os
import sys
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np

from lamella import elsewhere
from lamella.arguments import dtype_name, file_path, knows, positive, text
from lamella.backends import Backend, get_backend
from lamella.engine.arrays import ArrayMapping, Layout, Storage, draw, fitting
from lamella.engine.changes import Change
from lamella.engine.rounds import Slices
from lamella.engine.threads import thread_count
from lamella.engine.values import Holding, OptimizerState, Values, assign
from lamella.errors import ArgumentError, DataError, MistakeWarning, did_you_mean, shown
from lamella.files import archive, structure
from lamella.graph.appending import Ends, ends_of, extended, same_ends
from lamella.graph.operations import Graph, Operation, assemble
from lamella.graph.plan import Plan
from lamella.graph.slicing import cut
from lamella.optimizers.around import keeps_average
from lamella.protocol.inputs import as_inputs, converted
from lamella.protocol.layer import Layer, call
from lamella.protocol.node import Node, valid_name
from lamella.protocol.spec import FLOATS, ArraySpec

__all__ = ["Appended", "Network", "inference_of", "warn_of_mistakes"]

N = TypeVar("N", bound="Network")

_OTHERS = (".onnx", ".h5", ".hdf5", ".keras", ".pt", ".pth", ".pkl", ".pickle", ".npz")  # formats of others
_KEPT = 4  # batch sizes for which prepared passes are kept


class Network:
    """A graph with arrays of its own. `lamella.Model` adds training to it.

    Arguments:
        graph: what it computes; its seed decides the initial values.
        backend: where it runs; None for what the variable ``LAMELLA_BACKEND`` says, else NumPy.
        frozen: the prefixes of layers that training leaves alone; by default those that were made frozen, or are so in
            a model that is used as a layer.
        drawn: whether arrays get initial values; else they are 0 until they are filled.

    Attributes, which exporters and backends read:
        graph: the operations in their order, with the names and shapes of arrays.
        device: the backend where they run.
        values: parameters, state, the optimizer's state, and the step.
    """

    name: str | None = None
    trainable = True

    def __init__(
        self, graph: Graph, *, backend: str | None = None, frozen: frozenset[str] | None = None, drawn: bool = True
    ) -> None:
        self.graph = graph
        self.seed = graph.seed
        self.device: Backend = get_backend(backend)
        self._dtypes = [np.dtype(spec.dtype) for spec in graph.input_specs]
        learned = {name: declared for name, declared in graph.arrays.items() if declared.trainable}
        kept = {name: declared for name, declared in graph.arrays.items() if not declared.trainable}
        parameters, state = (Storage(Layout(some), graph.dtype, self.device) for some in (learned, kept))
        self.values = Values(parameters, state)
        self._frozen = graph.frozen_layers
        self._outer: weakref.WeakSet[Network] = weakref.WeakSet()  # networks that took this one as a layer
        self._epochs = 0
        self._history: Any = None
        self._prepared_steps: Any = None  # what training keeps from one call to the next
        self._prepared_update: Any = None  # what apply_gradients keeps
        self._prepared: dict[tuple[int, int], list[Slices]] = {}  # for prediction, by rows and threads
        self._longer: list[tuple[Ends, Network]] = []  # those with layers after the outputs that are kept
        if drawn:
            draw(self.values.parameters, self.seed)
            draw(self.values.state, self.seed)
            self._adopt_inner_models()
        self._frozen = self._frozen | graph.frozen_layers if frozen is None else frozen
        self._whole = self.device.inference(self)

    def _adopt_inner_models(self) -> None:
        """Start with the values of models that were used as layers, those that hold others last."""
        for inner in sorted(self.graph.models, key=_depth):
            source: Network = Network(inner, frozen=inner.frozen_layers) if isinstance(inner, Graph) else inner
            with source.reading() as values:
                self._take(source, values, self._shared_layers(source))
            source._outer.add(self)

    def _shared_layers(self, other: Network) -> dict[str, str]:
        """Layers with arrays that stand in both networks, the same objects: what the other calls them."""
        theirs, own = other.graph.prefixes, self.graph.prefixes
        names = {own[key]: theirs[key] for key in own.keys() & theirs.keys()}
        return {name: found for name in self._layer_arrays() if (found := _renamed(name, names))}

    def differing(self, other: Network) -> frozenset[str]:
        """Return the layers that stand in both networks, the same objects, with other values there than here."""

        _need_network(other, "differing")
        layers = self._layer_arrays()
        with self.reading() as own, other.reading() as theirs:
            return frozenset(
                name
                for name, their in self._shared_layers(other).items()
                if not all(
                    np.array_equal(own.numpy(f"{name}.{one}"), theirs.numpy(f"{their}.{one}")) for one in layers[name]
                )
            )

    def _layer_arrays(self) -> dict[str, dict[str, tuple[tuple[int, ...], bool]]]:
        """Each array's shape and whether it is a parameter, by the names of layers with arrays."""
        arrays: dict[str, dict[str, tuple[tuple[int, ...], bool]]] = {}
        for full, declared in self.graph.arrays.items():
            prefix, _, local = full.rpartition(".")
            arrays.setdefault(prefix, {})[local] = declared.shape, declared.trainable
        return arrays

    def _take(
        self, other: Network, values: Values, names: Mapping[str, str], step: int | None = None
    ) -> frozenset[str]:
        """Copy layers, by their names here and there, where all arrays agree; return which these were."""
        own, theirs = self._layer_arrays(), other._layer_arrays()
        taken = frozenset(name for name, source in names.items() if own[name] == theirs.get(source))
        found = ((f"{name}.{one}", values.numpy(f"{names[name]}.{one}")) for name in taken for one in own[name])
        with Change(self, "an assignment"):
            assign(self, found, step if taken or not own else None)
        frozen = {name for name in taken if names[name] in other._frozen}
        self._frozen = frozenset(self._frozen - taken | frozen)
        return taken

    # What it is

    @property
    def parameters(self) -> ArrayMapping:
        """The trained arrays by name, as NumPy; assign with ``model.parameters["dense_1.kernel"] = array``."""
        return ArrayMapping(self.values.parameters, self.reading, self.assign, "parameters")

    @property
    def state(self) -> ArrayMapping:
        """The arrays that layers keep beside parameters, such as running means, by name."""
        return ArrayMapping(self.values.state, self.reading, self.assign, "state")

    @property
    def step(self) -> int:
        """How many steps were taken; random numbers and the order of data follow from it."""
        return self.values.step

    @step.setter
    def step(self, step: int) -> None:
        self.assign({}, positive(step, "step", minimum=0))

    @property
    def epochs(self) -> int:
        """How many epochs were finished, in all trainings."""
        return self._epochs

    @property
    def optimizer_state(self) -> OptimizerState | None:
        """What the optimizer remembers from its steps so far; set it to None to reset it.

        It stays as it is when further steps are taken.
        """
        with self.reading() as values:
            if values.optimizer is not None:
                values.optimizer.is_shared = True
            return values.optimizer

    @optimizer_state.setter
    def optimizer_state(self, state: OptimizerState | None) -> None:
        if state is not None:
            if not isinstance(state, OptimizerState) or not state.belongs_to(self.values.parameters):
                raise ArgumentError(
                    "optimizer_state: expected None, or what optimizer_state was of a model with the same parameters "
                    f"on the same backend, got {shown(state)}"
                )
            state.is_shared = True
        with Change(self, "optimizer_state ="):
            values = copy.copy(self.values)  # others may hold these
            values.optimizer = state
            self.values = values

    @property
    def dtype(self) -> str:
        """The dtype of parameters, activations and gradients."""
        return self.graph.dtype

    @property
    def backend(self) -> str:
        """Where the model runs, such as ``"numpy"`` or ``"cupy"``."""
        return self.device.name

    @property
    def input_nodes(self) -> tuple[Node, ...]:
        """The nodes of the inputs, to make other models of the same layers."""
        return self.graph.input_nodes

    @property
    def output_nodes(self) -> tuple[Node, ...]:
        """The nodes of the outputs."""
        return self.graph.output_nodes

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return self.graph.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs: those of the layers that give them."""
        return self.graph.output_names

    @property
    def input_specs(self) -> tuple[ArraySpec, ...]:
        """Shape and dtype of each input."""
        return self.graph.input_specs

    @property
    def output_specs(self) -> tuple[ArraySpec, ...]:
        """Shape and dtype of each output."""
        return self.graph.output_specs

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers as written, composites whole, by name; models among them that were used as layers."""
        return self.graph.layers

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.graph.signature}, {len(self.values.parameters):,} parameters>"

    # What it does

    @knows(elsewhere.EVALUATE)
    def predict(
        self, x: Any, batch_size: int | None = None, *, append: Appended | Mapping[str, Appended] | None = None
    ) -> Any:
        """Return the outputs for inputs of any number of rows: a NumPy array, or a tuple for several outputs.

        On NumPy the rows run in slices small enough for the cache; ``batch_size`` bounds what a GPU, or a network that
        walks over time, holds at a time.

        ``append`` has layers run after the outputs, as `appended` would: ``predict(x, append=Activation("softmax"))``
        gives probabilities where the model ends in logits. What was prepared for layers without arrays is kept for the
        next call; others are put together anew.
        """
        if append is not None:
            return self._with(append).predict(x, batch_size)
        arrays = as_inputs(self.input_names, self.input_specs, x, large_as_given=True)
        self._warn_of_outer_training()
        rows = len(arrays[0])
        with Holding(self) as values:
            if batch_size is None or positive(batch_size, "batch_size") >= rows:
                outputs = tuple([_own(output) for output in self.infer(arrays, values)])
            else:
                parts = [
                    self.infer(tuple(array[start : start + batch_size] for array in arrays), values)
                    for start in range(0, rows, batch_size)
                ]
                outputs = tuple(np.concatenate(part, axis=0) for part in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    def _with(self, append: Appended | Mapping[str, Appended]) -> Network:
        """Return a network with layers after the outputs of this one, and its values.

        It follows when these change, and is kept for the next time, unless the layers bring arrays of their own.
        """
        ends = ends_of(self.graph, append)
        for known, longer in self._longer:
            if same_ends(known, ends):
                return longer
        graph = self._extended_graph(ends)
        if graph.arrays.keys() != self.graph.arrays.keys():
            return self._filled(Network(graph, backend=self.backend))
        longer = _Longer(graph, self)
        self._longer = [*self._longer[1 - _KEPT :], (ends, longer)]
        return longer

    def _extended_graph(self, ends: Ends) -> Graph:
        graph = extended(self.graph, ends)
        warn_of_mistakes(*(text for text in graph.warnings if text not in self.graph.warnings))
        return graph

    def _filled(self, longer: N) -> N:
        """A network that has this one's layers and others, with this one's values."""
        if self.graph.arrays:
            longer.copy_values(self)
        appended = [inner for inner in longer.graph.models if inner not in self.graph.models]
        for inner in appended:
            if isinstance(inner, Graph):  # without values
                continue
            held = any(inner in other.graph.models for other in appended if not isinstance(other, Graph))
            if not held and (differing := longer.differing(inner)):  # else values are the other's
                raise ArgumentError(
                    f"append: {inner!r} and the model share {', '.join(sorted(differing))}, one layer object, "
                    "which has other values in each. Likely fix: append copy.deepcopy(...) of it"
                )
        return longer

    def _warn_of_outer_training(self) -> None:
        """Say so where nothing was trained but copies of this network's layers in an outer one."""
        if self.step or not self._outer:
            return
        trained = [outer for outer in self._outer if outer.step]
        if any(outer.differing(self) - outer.frozen_layers for outer in trained):
            warnings.warn(
                f"{self!r} was called like a layer and has values of its own; the model around it, which was "
                "trained, has others. inner.copy_values(outer) takes these over",
                MistakeWarning,
                stacklevel=3,
            )

    def infer(self, arrays: tuple[Any, ...], values: Values) -> tuple[Any, ...]:
        """Return all outputs for checked inputs, in one batch, with values that are held."""
        rows = arrays[0].shape[0]
        if not rows:  # layers need not know of empty batches: a row stands in for them
            shapes = zip(arrays, self.input_specs, strict=True)
            stand_in = self.infer(
                tuple(np.full((1, *a.shape[1:]), _allowed(spec), a.dtype) for a, spec in shapes), values
            )
            return tuple(y[:0] for y in stand_in)
        if self._whole is not None:
            outputs: tuple[Any, ...] = self._whole.infer(values, arrays, self._bring)
            return outputs
        key = rows, thread_count()
        ready = self._prepared.get(key)
        if ready is None:
            for oldest in list(self._prepared)[: 1 - _KEPT]:
                self._prepared.pop(oldest, None)
            ready = self._prepared.setdefault(key, [])
        try:  # another thread may predict at the same time
            slices = ready.pop()
        except IndexError:
            slices = inference_of(self.graph, self.device, *key)
        outputs = slices.infer(values, arrays, self._bring)
        ready.append(slices)  # not if it failed
        return tuple([self.device.asnumpy(output) for output in outputs])

    def _bring(self, arrays: Sequence[Any]) -> list[Any]:
        """Inputs as the graph takes them, on the backend."""
        bring, dtypes = self.device.asarray, self._dtypes
        return [
            bring(converted(array, dtype) if type(array) is np.ndarray else array)
            for array, dtype in zip(arrays, dtypes, strict=True)
        ]

    # What can be changed

    def reading(self) -> Holding:
        """Return a context that gives the values of now, which stay as they are while other threads train."""
        return Holding(self)

    def assign(self, arrays: Mapping[str, Any], step: int | None = None) -> None:
        """Replace arrays by full name, checked; who reads meanwhile sees all of them, or none.

        Raises:
            ArgumentError: arrays that the model does not have, or a step that is none.
            DataError: an array of another shape, or of no numbers.
            BusyError: another thread is training the model.
        """
        if not isinstance(arrays, Mapping):
            raise ArgumentError(f"assign: arrays: expected a dict of arrays by name, got {shown(arrays)}")
        for name in arrays:
            if name not in self.graph.arrays:
                hint = did_you_mean(name, self.graph.arrays) if isinstance(name, str) else ""
                raise ArgumentError(f"assign: arrays: the model has no {shown(name)}.{hint}")
        step = None if step is None else positive(step, "assign: step", minimum=0)
        declared = self.graph.arrays
        values = {name: fitting(f"assign: arrays[{name!r}]", declared[name], own) for name, own in arrays.items()}
        with Change(self, "an assignment"):
            assign(self, values.items(), step)

    def freeze(self, pattern: str = "*", *others: str) -> Self:
        """Keep the parameters of layers whose names match, such as ``"conv2d_*"``, from training.

        Each call takes one pattern. All but the head is frozen by ``model.freeze("*").unfreeze("head")``.
        """
        with Change(self, "freeze"):
            self._frozen |= self._matching("freeze", pattern, others)
        return self

    def unfreeze(self, pattern: str = "*", *others: str) -> Self:
        """Let layers whose names match learn again; each call takes one pattern."""
        with Change(self, "unfreeze"):
            self._frozen -= self._matching("unfreeze", pattern, others)
        return self

    def _matching(self, where: str, pattern: str, others: tuple[str, ...]) -> frozenset[str]:
        if not isinstance(pattern, str) or others:
            got = (pattern, *others) if others else pattern
            several = [one for one in got if isinstance(one, str)] if isinstance(got, list | tuple | set) else []
            calls = "".join(f".{where}({one!r})" for one in several[:3]) + ("..." if len(several) > 3 else "")
            fix = f". Each call takes one: model{calls}" if several else ""
            raise ArgumentError(f"{where}: pattern: expected a name such as 'conv2d_*', got {shown(got)}{fix}")

        def names(operation: Operation) -> list[str]:
            parts = operation.prefix.split("/")
            return ["/".join(parts[: k + 1]) for k in range(len(parts))]

        found = [operation for operation in self.graph.operations if fnmatch.filter(names(operation), pattern)]
        if not found:
            known = [name for operation in self.graph.operations for name in names(operation)]
            raise ArgumentError(
                f"no layer is called {pattern!r}; there are {', '.join(dict.fromkeys(known))}."
                f"{did_you_mean(pattern, known)}"
            )
        return frozenset(operation.prefix for operation in found if operation.params or operation.state)

    @property
    def frozen_layers(self) -> frozenset[str]:
        """The names of the layers that training leaves alone."""
        return self._frozen

    def to(self, backend: str) -> Self:
        """Move the model to a backend, such as ``"numpy"`` or ``"cupy"``, and return it."""
        text(backend, "to: backend", "'numpy' or 'cupy'")
        with Change(self, "to"):
            moved = self.copy(backend=backend)
            self.device, self.values, self._whole = moved.device, moved.values, moved._whole
            self._prepared, self._longer = {}, []
        return self

    @classmethod
    def _of(cls, graph: Graph, **options: Any) -> Self:
        """A network of this class, whatever its constructor takes."""
        network = cls.__new__(cls)
        Network.__init__(network, graph, **options)
        return network

    def copy(self, *, dtype: str | None = None, backend: str | None = None) -> Self:
        """Return a model of the same layers with the same values, in another dtype or on another backend if given."""
        graph = self.graph
        if dtype is not None and (dtype := dtype_name(dtype, "copy: dtype", FLOATS)) != self.dtype:
            names = graph.given_names
            graph = assemble(
                graph.input_nodes, graph.output_nodes, dtype, seed=self.seed, kind=graph.kind, given_names=names
            )
        backend = self.backend if backend is None else backend
        return self._of(graph, backend=backend, frozen=self._frozen, drawn=False)._become(self)

    def averaged(self) -> Self:
        """Return a copy with the averages of parameters that `lm.optimizers.ExponentialMovingAverage` kept.

        What never moved, and the state of layers such as running means, is as it is here.

        Raises:
            ArgumentError: the last steps were of an optimizer that keeps no average.
        """
        with self.reading() as values:
            optimizer = values.optimizer
            if optimizer is None or not keeps_average(optimizer.optimizer):
                got = "one that took no steps" if optimizer is None else f"one that {optimizer.optimizer!r} trained"
                raise ArgumentError(
                    f"averaged: expected a model that lm.optimizers.ExponentialMovingAverage(...) trained, got {got}"
                )
            twin, layout, average = self.copy(), values.parameters.layout, optimizer.slots["average"]
            moved = [name for name in layout.declarations if optimizer.missed.get(name, 0) < optimizer.t]
            twin.assign({name: self.device.asnumpy(layout.part(average, name)) for name in moved})
        return twin

    def _become(self, other: Network) -> Self:
        """Take everything that a network of equal layers has at this moment."""
        with other.reading() as values:
            self._copy_values(other, values)
            self._frozen, self._epochs = other._frozen, other._epochs
            if values.optimizer is not None:
                self.optimizer_state = OptimizerState.from_numpy(self.values.parameters, *values.optimizer.as_numpy())
        return self

    def copy_values(self, other: Network) -> tuple[str, ...]:
        """Take another model's values, layer by layer, and its step; return the layers that found none.

        Taken are the arrays of every layer that both models have: the same object, whatever it is called here and
        there, and whether a layer of the model or of one used as a layer. Models that share no such object are matched
        by the names of their layers. Layers whose arrays have other shapes stay as they are. What is frozen here stays
        frozen, and what is frozen there becomes it.

        Raises:
            DataError: no layer of the model has its match in the other one.

        >>> import lamella as lm
        >>> from lamella_layers import Dense
        >>> x = lm.Input((4,))
        >>> inner = Dense(3, activation="relu")(x)
        >>> trained = lm.Model(x, Dense(10)(inner), seed=1)
        >>> features = lm.Model(x, inner)
        >>> features.copy_values(trained)
        ()
        >>> transfer = lm.Model(x, Dense(2).named("head")(inner))
        >>> transfer.copy_values(trained)
        ('head',)
        """
        _need_network(other, "copy_values")
        with other.reading() as values:
            return self._copy_values(other, values)

    def _copy_values(self, other: Network, values: Values) -> tuple[str, ...]:
        layers, frozen = tuple(self._layer_arrays()), self._frozen
        names = self._shared_layers(other) or {name: name for name in layers}
        taken = self._take(other, values, names, values.step)
        self._frozen |= frozen
        if layers and not taken:
            raise DataError(
                f"copy_values: none of the layers {', '.join(layers)} is in the other model, which has "
                f"{', '.join(other._layer_arrays()) or 'none with arrays'}; a layer is found as the same object, else "
                "by its name, and has to have arrays of the same shapes"
            )
        return tuple(name for name in layers if name not in taken)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        twin = memo[id(self)] = self._plain()._of(
            structure.Reader(self.config(), drawn=False).graph, backend=self.backend, frozen=self._frozen, drawn=False
        )
        return twin._become(self)

    def __reduce__(self) -> tuple[Any, ...]:
        with self.reading() as values:
            state = None if values.optimizer is None else values.optimizer.as_numpy()
            arrays = {name: values.numpy(name) for name in self.graph.arrays}
            return _restore, (self._plain(), self.config(), self.backend, arrays, values.step, state, self.epochs)

    @classmethod
    def _plain(cls) -> type[Self]:
        """The class of this package that a subclass of users comes from: no other constructor is known."""
        return next(one for one in cls.__mro__ if one.__module__.partition(".")[0] == __name__.partition(".")[0])

    def _fill(self, arrays: Mapping[str, Any], step: int, optimizer: Any) -> Self:
        """Take arrays by full name, the step, and an optimizer as it described itself."""
        self.assign(arrays, step)
        if optimizer is not None:
            self.optimizer_state = OptimizerState.from_numpy(self.values.parameters, *optimizer)
        return self

    # What it becomes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file, from which `lamella.load` makes it again and training goes on."""
        self._warn_of_outer_training()
        path = file_path(path, "save: path")
        if path.lower().endswith(_OTHERS):
            warnings.warn(
                f"save: {path} gets lamella's own format, whatever its name says; lamella_onnx.export writes ONNX",
                MistakeWarning,
                stacklevel=2,
            )
        self._save(path)

    def _save(self, path: str | os.PathLike[str], **more: Any) -> None:
        """Write the model, and further entries of the header."""
        with self.reading() as values:
            archive.write(path, self.config(), values, {"epochs": self.epochs, **more})

    def _is_like(self, graph: Graph) -> bool:
        """Whether a graph has the structure of this network, whatever is frozen, and whatever versions wrote it."""
        return bool(_comparable(structure.described(self)) == _comparable(structure.described(graph)))

    def load_weights(self, path: str | os.PathLike[str], mapping: Mapping[str, str | None] | None = None) -> None:
        """Take values from a file of `save`, or any safetensors file.

        ``mapping`` says what the model's arrays are called there, and leaves those as they are that it maps to None:
        ``{"head.*": None}``. Everything is checked before anything changes.
        """
        path = file_path(path, "load_weights: path")
        if mapping is not None and not isinstance(mapping, Mapping):
            raise ArgumentError(
                "load_weights: mapping: expected a dict of the model's names to names in the file, or None, got "
                f"{shown(mapping)}"
            )
        self.assign(archive.read_weights(path, self.graph, mapping))

    def config(self) -> dict[str, Any]:
        """Return the model's structure as plain data; `lamella.from_config` makes it again, with fresh values."""
        return structure.described(self)

    def __call__(self, *nodes: Node, name: str | None = None) -> Any:
        """Use the model as a layer of a larger one."""
        return call(self, nodes, None if name is None else valid_name(name, "Model: name"))

    def expand(self, *nodes: Node) -> Node | tuple[Node, ...]:
        """Run through the model's own layers on other nodes; called by the graph."""
        return self.graph.expand(*nodes)


Appended = Layer | Network | Graph | Sequence[Layer | Network | Graph]
"""What may follow the outputs: a layer, a model, or several."""


class _Longer(Network):
    """A network with layers after the outputs of another one, whose values are its own."""

    def __init__(self, graph: Graph, base: Network) -> None:
        self._base = weakref.ref(base)  # which holds this one
        super().__init__(graph, backend=base.backend, drawn=False)

    @property
    def values(self) -> Values:
        base = self._base()
        assert base is not None
        return base.values

    @values.setter
    def values(self, values: Values) -> None:
        """Nothing: those that a network makes for itself are not needed."""


def warn_of_mistakes(*texts: str) -> None:
    """Tell whoever called the package what is most probably a mistake."""
    package, level = __name__.partition(".")[0], 1
    frame: Any = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    for told in texts:
        warnings.warn(told, MistakeWarning, stacklevel=level)


def _own(output: Any) -> Any:
    """An output that shares no memory with inputs or parameters."""
    return output if output.base is None and output.flags.writeable else np.concatenate((output,))


def _comparable(config: Any) -> Any:
    """A structure without versions and what is frozen."""
    if isinstance(config, Mapping):
        return {key: _comparable(value) for key, value in config.items() if key not in ("version", "frozen")}
    return [_comparable(one) for one in config] if isinstance(config, list) else config


def _need_network(other: Any, where: str) -> None:
    if not isinstance(other, Network):
        raise ArgumentError(f"{where}: other: expected a model, got {shown(other)}")


def inference_of(graph: Graph, device: Backend, rows: int, threads: int) -> Slices:
    """Return prepared passes of a graph in inference, for so many rows."""
    every = frozenset(operation.prefix for operation in graph.operations)
    plan = Plan(graph, every, wants_dx=False, training=False)
    rows_of, backend, blas = cut(graph, rows, device, threads, training=False)
    return Slices(plan, backend, rows_of, threads=threads, blas=blas)


def _depth(model: Any) -> int:
    """How many models a model, or a graph, holds."""
    graph: Graph = model if isinstance(model, Graph) else model.graph
    return len(graph.models)


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """A full name with the prefix that it starts with replaced; the empty name if there is none that it starts with."""
    own = name
    while own and own not in prefixes:
        own = own[: max(own.rfind("/"), own.rfind("."), 0)]
    return prefixes[own] + name[len(own) :] if own else ""


def _restore(
    cls: type[Network],
    config: dict[str, Any],
    backend: str,
    arrays: dict[str, Any],
    step: int,
    optimizer: Any,
    epochs: int = 0,  # pickles of earlier versions have none
) -> Network:
    graph = structure.Reader(config, drawn=False).graph
    made = cls._of(graph, backend=backend, frozen=graph.frozen_layers, drawn=False)._fill(arrays, step, optimizer)
    made._epochs = epochs
    return made


def _allowed(spec: ArraySpec) -> float:
    """A number that an input may hold."""
    if spec.low is not None:
        return spec.low
    return 0 if spec.high is None else min(0, spec.high - 1)
