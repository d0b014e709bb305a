"""Models: a graph together with its arrays, its seed and where it runs."""

from __future__ import annotations

import fnmatch
import os
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lamella import archive, graph, training
from lamella.arguments import knows, positive
from lamella.backends import get_backend
from lamella.data import as_inputs
from lamella.engine import Gradients, infer, slice_rows
from lamella.errors import ArgumentError, DataError, GraphError, MistakeWarning, counted, did_you_mean
from lamella.graph import Input, Node, Program, assemble, one_or_more
from lamella.protocol import FLOATS, ArraySpec, Layer, valid_name
from lamella.step import OptimizerState
from lamella.storage import ArrayMapping, Storage, draw
from lamella.summary import print_summary
from lamella.threads import thread_count

__all__ = ["Model", "Sequential"]


class Model:
    """Any graph of layers between input nodes and output nodes, with parameters of its own.

    ``dtype`` is that of parameters, activations and gradients. ``seed`` decides the initial values, the order of
    batches and every random number in training; equal seeds give equal models. A model may be called on nodes like a
    layer, and then its layers become part of the outer model, which starts with a copy of its values.

    Arrays belong to the model, not to layers or nodes: a model made of another's nodes draws values of its own, and
    training the outer model leaves a model that was called like a layer as it was. `copy_values` takes trained values
    over: ``features.copy_values(model)``.

    Raises:
        GraphError: layers that do not fit together, an input that is missing or unused, a name used twice.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> x = lm.Input((4,))
    >>> model = lm.Model(x, Dense(3)(x))
    >>> model.predict(np.ones((2, 4))).shape
    (2, 3)
    """

    name: str | None = None
    trainable = True

    @knows(name="Names belong to layers, nodes and inputs: layer(x, name='head')")
    def __init__(
        self,
        inputs: Node | Sequence[Node],
        outputs: Node | Sequence[Node],
        *,
        dtype: str = "float32",
        seed: int = 0,
        backend: str = "numpy",
    ) -> None:
        if not isinstance(dtype, str):
            dtype = np.dtype(dtype).name
        if dtype not in FLOATS:
            raise ArgumentError(f"Model: dtype: expected one of {', '.join(map(repr, FLOATS))}, got {dtype!r}")
        seed = positive(seed, "seed", minimum=0)
        if seed >= 2**64:
            raise ArgumentError(f"seed: expected an int below 2**64, got {seed!r}")
        self.input_nodes = one_or_more(inputs, "inputs")
        self.output_nodes = one_or_more(outputs, "outputs")
        self.program: Program = assemble(self.input_nodes, self.output_nodes, dtype)
        self.dtype = dtype
        self.seed = seed
        self.step = 0
        self.device = get_backend(backend)
        self._allocate()
        held = [leaf for leaf in self.program.leaves if leaf.params or leaf.state]
        self._frozen = frozenset(leaf.owner for leaf in held if not leaf.trainable)
        self.optimizer_state: OptimizerState | None = None
        self._around: weakref.WeakSet[Model] = weakref.WeakSet()  # models that took this one as a layer
        draw(self.storage, seed)
        draw(self.state_storage, seed)
        self._adopt_inner_models()

    def _allocate(self) -> None:
        arrays = self.program.arrays
        learned = {name: declared for name, declared in arrays.items() if declared.trainable}
        kept = {name: declared for name, declared in arrays.items() if not declared.trainable}
        self.storage = Storage(learned, self.dtype, self.device)
        self.state_storage = Storage(kept, self.dtype, self.device)
        self.gradient_buffers: list[Gradients] = []  # of training steps, one for each thread

    def _adopt_inner_models(self) -> None:
        """Start with the values of models that were used as layers, those that hold others last."""
        frozen = self._frozen
        for inner in sorted(self.program.inner_models, key=lambda inner: len(inner.program.inner_models)):
            self._take(inner, self._shared_layers(inner))
            inner._around.add(self)
        self._frozen |= frozen

    def _shared_layers(self, other: Model) -> dict[str, str]:
        """Layers with arrays that stand in both models, the same objects: what the other calls them."""
        theirs, own = other.program.owners, self.program.owners
        names = {own[key]: theirs[key] for key in own.keys() & theirs.keys()}
        return {name: found for name in self._layer_arrays() if (found := _renamed(name, names))}

    def differing(self, other: Model) -> frozenset[str]:
        """Return the layers that stand in both models, the same objects, with other values there than here."""

        def values(model: Model, layer: str) -> list[Any]:
            arrays = {**model.parameters, **model.state}
            return [arrays[f"{layer}.{local}"] for local in model._layer_arrays()[layer]]

        shared = self._shared_layers(other)
        return frozenset(
            name
            for name, theirs in shared.items()
            if not all(map(np.array_equal, values(self, name), values(other, theirs)))
        )

    def _layer_arrays(self) -> dict[str, dict[str, tuple[tuple[int, ...], bool]]]:
        """Each array's shape and whether it is a parameter, by the names of layers with arrays."""
        arrays: dict[str, dict[str, tuple[tuple[int, ...], bool]]] = {}
        for full, declared in self.program.arrays.items():
            owner, _, local = full.rpartition(".")
            arrays.setdefault(owner, {})[local] = declared.shape, declared.trainable
        return arrays

    def _take(self, other: Model, names: Mapping[str, str]) -> frozenset[str]:
        """Copy layers, by their names here and there, where all arrays agree; return which these were."""
        own, theirs = self._layer_arrays(), other._layer_arrays()
        taken = frozenset(name for name, source in names.items() if own[name] == theirs.get(source))
        for name in taken:
            for local, (_, trainable) in own[name].items():
                here, there = (self.parameters, other.parameters) if trainable else (self.state, other.state)
                here[f"{name}.{local}"] = there[f"{names[name]}.{local}"]
        frozen = {name for name in taken if names[name] in other._frozen}
        self._frozen = frozenset(self._frozen - taken | frozen)
        return taken

    # What it is

    @property
    def parameters(self) -> ArrayMapping:
        """The trained arrays by name, as NumPy; assign with ``model.parameters["dense_1.kernel"] = array``."""
        return ArrayMapping(self.storage, "parameters")

    @property
    def state(self) -> ArrayMapping:
        """The arrays that layers keep beside parameters, such as running means, by name."""
        return ArrayMapping(self.state_storage, "state")

    @property
    def backend(self) -> str:
        """Where the model runs: ``"numpy"``, ``"cupy"`` or ``"strict"``."""
        return self.device.name

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return self.program.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs: those of the layers that give them."""
        return self.program.output_names

    @property
    def input_specs(self) -> tuple[ArraySpec, ...]:
        """Shape and dtype of each input."""
        return tuple(self.program.specs[value] for value in self.program.inputs)

    @property
    def output_specs(self) -> tuple[ArraySpec, ...]:
        """Shape and dtype of each output."""
        return tuple(self.program.specs[value] for value in self.program.outputs)

    @property
    def layers(self) -> dict[str, Any]:
        """The layers as written, composites whole, by name."""
        return _ByName(zip(self.program.call_names, (this.layer for this in self.program.calls), strict=True))

    def summary(self) -> None:
        """Print a table of layers with output shapes, parameters, connections, and shared and frozen marks."""
        print_summary(self)

    def __repr__(self) -> str:
        inputs, outputs = ", ".join(map(str, self.input_specs)), ", ".join(map(str, self.output_specs))
        return f"<{type(self).__name__} {inputs} -> {outputs}, {len(self.storage):,} parameters>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            known = {
                "compile": "; what it takes elsewhere stands in fit: loss, optimizer, metrics",
                "get_layer": "; layers go by name: model.layers[name]",
            }
            raise AttributeError(f"{type(self).__name__} has no {name!r}{known.get(name, '')}", name=name, obj=self)

    # What it does

    def predict(self, x: Any, batch_size: int | None = None) -> Any:
        """Return the outputs for inputs of any number of rows: a NumPy array, or a tuple for several outputs.

        On NumPy the rows run in slices small enough for the cache; ``batch_size`` bounds what a GPU holds at a time.
        """
        arrays = as_inputs(self.input_names, self.input_specs, x)
        self._warn_of_outer_training()
        rows = len(arrays[0])
        size = positive(batch_size, "batch_size") if batch_size is not None else max(rows, 1)
        parts = [
            self.infer(tuple(array[start : start + size] for array in arrays)) for start in range(0, max(rows, 1), size)
        ]
        outputs = tuple(np.concatenate(part, axis=0) for part in zip(*parts, strict=True))
        return outputs[0] if len(outputs) == 1 else outputs

    def _warn_of_outer_training(self) -> None:
        """Say so where nothing was trained but copies of this model's layers in an outer one."""
        trained = [] if self.step else [outer for outer in self._around if outer.step]
        if any(outer.differing(self) - outer.frozen_layers for outer in trained):
            warnings.warn(
                f"{self!r} was called like a layer and has values of its own; the model around it, which was "
                "trained, has others. inner.copy_values(outer) takes these over",
                MistakeWarning,
                stacklevel=3,
            )

    def arrays(self) -> dict[str, Any]:
        """Return parameters and state by full name, as layers see them on the model's backend."""
        return {**self.storage.views(), **self.state_storage.views()}

    def infer(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return all outputs for checked inputs, in one batch."""
        rows, threads = len(arrays[0]), thread_count()
        if not rows:  # layers need not know of empty batches: a row stands in for them
            shapes = zip(arrays, self.input_specs, strict=True)
            stand_in = self.infer(tuple(np.full((1, *a.shape[1:]), _allowed(spec), a.dtype) for a, spec in shapes))
            return tuple(y[:0] for y in stand_in)
        inputs = [self.device.asarray(array) for array in arrays]
        sizes = slice_rows(self.program, rows, threads, training=False) if self.backend == "numpy" else ()
        outputs = infer(self.program, self.device.xp, self.arrays(), inputs, sizes=sizes, threads=threads)
        return tuple(map(self.device.asnumpy, outputs))

    fit = training.fit
    train_on_batch = training.train_on_batch
    evaluate = training.evaluate
    gradients = training.gradients

    # What can be changed

    def freeze(self, pattern: str = "*") -> Self:
        """Keep the parameters of layers whose names match, such as ``"conv2d_*"``, from training."""
        self._frozen |= self._matching(pattern)
        return self

    def unfreeze(self, pattern: str = "*") -> Self:
        """Let layers whose names match learn again."""
        self._frozen -= self._matching(pattern)
        return self

    def _matching(self, pattern: str) -> frozenset[str]:
        if not isinstance(pattern, str):
            raise ArgumentError(f"freeze: pattern: expected a name such as 'conv2d_*', got {pattern!r}")

        def names(leaf: graph.Leaf) -> list[str]:
            parts = leaf.owner.split("/")
            return ["/".join(parts[: k + 1]) for k in range(len(parts))]

        found = [leaf for leaf in self.program.leaves if fnmatch.filter(names(leaf), pattern)]
        if not found:
            known = [name for leaf in self.program.leaves for name in names(leaf)]
            raise ArgumentError(
                f"no layer is called {pattern!r}; there are {', '.join(dict.fromkeys(known))}."
                f"{did_you_mean(pattern, known)}"
            )
        return frozenset(leaf.owner for leaf in found if leaf.params or leaf.state)

    @property
    def frozen_layers(self) -> frozenset[str]:
        """The names of the layers that training leaves alone."""
        return self._frozen

    def to(self, backend: str) -> Self:
        """Move the model to a backend, ``"numpy"`` or ``"cupy"``, and return it."""
        moved = self.copy(backend=backend)
        self.device, self.storage, self.state_storage = moved.device, moved.storage, moved.state_storage
        self.gradient_buffers = []
        self.optimizer_state = moved.optimizer_state
        return self

    def copy(self, *, dtype: str | None = None, backend: str | None = None) -> Model:
        """Return a model of the same layers with the same values, in another dtype or on another backend if given."""
        twin = object.__new__(type(self))
        Model.__init__(
            twin,
            self.input_nodes,
            self.output_nodes,
            dtype=dtype or self.dtype,
            seed=self.seed,
            backend=backend or self.backend,
        )
        twin.copy_values(self)
        twin._frozen = self._frozen
        if self.optimizer_state is not None:
            twin.optimizer_state = self.optimizer_state.copy(twin)
        return twin

    def copy_values(self, other: Model) -> tuple[str, ...]:
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
        layers, frozen = tuple(self._layer_arrays()), self._frozen
        taken = self._take(other, self._shared_layers(other) or {name: name for name in layers})
        self._frozen |= frozen
        if layers and not taken:
            raise DataError(
                f"copy_values: none of the layers {', '.join(layers)} is in the other model, which has "
                f"{', '.join(other._layer_arrays()) or 'none with arrays'}; a layer is found as the same object, else "
                "by its name, and has to have arrays of the same shapes"
            )
        self.step = other.step
        return tuple(name for name in layers if name not in taken)

    def __deepcopy__(self, memo: dict[int, Any]) -> Model:
        twin = memo[id(self)] = archive.from_config(self.config(), backend=self.backend)
        twin.copy_values(self)
        twin._frozen = self._frozen
        if self.optimizer_state is not None:
            twin.optimizer_state = self.optimizer_state.copy(twin)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        state = None if self.optimizer_state is None else self.optimizer_state.as_numpy()
        return _restore, (self.config(), self.backend, {**self.parameters, **self.state}, self.step, state)

    # What it becomes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file, from which `lamella.load` makes it again and training goes on."""
        self._warn_of_outer_training()
        archive.save(self, path)

    def load_weights(self, path: str | os.PathLike[str], mapping: Mapping[str, str | None] | None = None) -> None:
        """Take values from a file of `save`, or any safetensors file.

        ``mapping`` says what the model's arrays are called there, and leaves those as they are that it maps to None:
        ``{"head.*": None}``. Everything is checked before anything changes.
        """
        archive.load_weights(self, path, mapping)

    def config(self) -> dict[str, Any]:
        """Return the model's structure as plain data; `lamella.from_config` makes it again, with fresh values."""
        return archive.model_config(self)

    def __call__(self, *nodes: Node, name: str | None = None) -> Any:
        """Use the model as a layer of a larger one."""
        if name is not None:
            valid_name(name, "Model: name")
        return graph.call(self, nodes, name)

    def expand(self, *nodes: Node) -> Node | tuple[Node, ...]:
        """Run through the model's own layers on other nodes; called by the graph."""
        if len(nodes) != len(self.input_nodes):
            raise GraphError(
                f"{self!r} was called with {counted(len(nodes), 'node')}; expected {len(self.input_nodes)}"
            )
        for node, spec, name in zip(nodes, self.input_specs, self.input_names, strict=True):
            fits = len(node.shape) == len(spec.shape) and node.spec.is_float == spec.is_float
            if not fits or any(isinstance(n, int) and n != m for n, m in zip(spec.shape, node.shape, strict=True)):
                raise GraphError(f"{self!r} was called with {node.spec}; expected {spec} for input {name!r}")
        known = {id(own): node for own, node in zip(self.input_nodes, nodes, strict=True)}
        for this, name in zip(self.program.calls, self.program.call_names, strict=True):
            result = graph.call(this.layer, tuple(known[id(node)] for node in this.inputs), name)
            made = result if isinstance(result, tuple) else (result,)
            known.update((id(node), new) for node, new in zip(this.outputs, made, strict=True))
        outputs = tuple(known[id(node)] for node in self.output_nodes)
        return outputs[0] if len(outputs) == 1 else outputs


class _ByName(dict[str, Any]):
    """Layers by name."""

    def __missing__(self, name: Any) -> Any:
        raise KeyError(f"no layer called {name!r}; there are {', '.join(self)}.{did_you_mean(str(name), self)}")


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """A full name with the prefix that it starts with replaced; the empty name if there is none that it starts with."""
    own = max((p for p in prefixes if name == p or name.startswith((f"{p}/", f"{p}."))), key=len, default="")
    return prefixes[own] + name[len(own) :] if own else ""


def _restore(config: dict[str, Any], backend: str, arrays: dict[str, Any], step: int, state: Any) -> Model:
    model = archive.from_config(config, backend=backend)
    for name, value in arrays.items():
        (model.parameters if name in model.parameters else model.state)[name] = value
    model.step = step
    if state is not None:
        model.optimizer_state = OptimizerState.from_numpy(model, *state)
    return model


def _allowed(spec: ArraySpec) -> float:
    """A number that an input may hold."""
    if spec.low is not None:
        return spec.low
    return 0 if spec.high is None else min(0, spec.high - 1)


class Sequential(Model):
    """A model that is one chain of layers.

    ``input_shape`` is the shape of one sample, the batch axis not counted; ``input_dtype=None`` is the model's own.

    >>> import lamella as lm
    >>> from lamella_layers import Dense, Flatten
    >>> lm.Sequential([Flatten(), Dense(10)], input_shape=(1, 8, 8))
    <Sequential (N, 1, 8, 8) float32 -> (N, 10) float32, 650 parameters>
    """

    def __init__(
        self,
        layers: Sequence[Any],
        *,
        input_shape: Sequence[int | str] | int | None = None,
        input_dtype: str | None = None,
        dtype: str = "float32",
        seed: int = 0,
        backend: str = "numpy",
    ) -> None:
        if input_shape is None:
            raise ArgumentError(
                "Sequential: input_shape is missing, the shape of a sample: input_shape=(28, 28), or x.shape[1:]"
            )
        if not isinstance(layers, list | tuple) or not layers:
            raise ArgumentError(f"Sequential: layers: expected a list of at least one layer, got {layers!r}")
        first = node = Input(input_shape, input_dtype)
        for position, layer in enumerate(layers):
            if not isinstance(layer, Layer | Model):
                hint = f"; did you mean {layer.__name__}(...)?" if isinstance(layer, type) else ""
                raise ArgumentError(f"Sequential: layers[{position}]: expected a layer, got {layer!r}{hint}")
            node = layer(node)
            if not isinstance(node, Node):
                raise GraphError(
                    f"Sequential: layers[{position}] {layer!r} has {len(node)} outputs; use lamella.Model for that"
                )
        super().__init__(first, node, dtype=dtype, seed=seed, backend=backend)
