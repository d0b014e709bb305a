"""Models: networks that train. What users make, train, save and load."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import elsewhere
from lamella.arguments import file_path, flag, knows
from lamella.backends import get_backend
from lamella.elsewhere import hint
from lamella.errors import ArgumentError, DataError, GraphError, did_you_mean, shown
from lamella.files import archive, structure
from lamella.graph.appending import ends_of
from lamella.graph.operations import Graph, assemble
from lamella.network import Appended, Network, warn_of_mistakes
from lamella.protocol.layer import Layer
from lamella.protocol.node import Input, Node
from lamella.training import apply, evaluation, rates
from lamella.training import fit as training
from lamella.training.history import History

__all__ = ["Model", "Sequential", "from_config", "load"]

if TYPE_CHECKING:
    from lamella.terminal import Table

_ASSIGNED = frozenset(("device", "graph", "optimizer_state", "seed", "step", "values"))
_OF_THE_ENGINE = frozenset(("assign", "device", "differing", "expand", "graph", "infer", "reading", "values"))


class Model(Network):
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
    >>> import numpy as np
    >>> from lamella_layers import Dense
    >>> x = lm.Input((4,))
    >>> model = lm.Model(x, Dense(3)(x))
    >>> model.predict(np.ones((2, 4))).shape
    (2, 3)
    """

    @knows(elsewhere.MODEL)
    def __init__(
        self,
        inputs: Node | Sequence[Node],
        outputs: Node | Sequence[Node],
        *,
        dtype: str = "float32",
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        super().__init__(assemble(inputs, outputs, dtype, seed=seed), backend=backend)
        warn_of_mistakes(*self.graph.warnings)

    fit = training.fit
    train_on_batch = training.train_on_batch
    evaluate = evaluation.evaluate
    gradients = training.gradients
    apply_gradients = apply.apply_gradients
    find_learning_rate = rates.find_learning_rate

    def until(self, name: str, *others: str) -> Model:
        """Return a model that ends with the layer of a name, or with several, as its outputs.

        It has the values of now, which training either of the two no longer shares. Names are those of `summary`; a
        layer such as ``Dense(3, activation="relu")`` ends after its activation. Where layers are left out that come
        before others, the numbers of those count anew.

        Raises:
            ArgumentError: there is no layer of that name.

        >>> import lamella as lm
        >>> from lamella_layers import Dense
        >>> model = lm.Sequential([Dense(8, activation="relu"), Dense(3)], input_shape=4)
        >>> model.until("dense_1")
        <Sequential (N, 4) float32 -> (N, 8) float32, 40 parameters>
        """
        graph = self.graph
        try:
            outputs = [node for one in (name, *others) for node in graph.nodes_of(one)]
        except ArgumentError as error:
            raise ArgumentError(f"until: {error}") from None
        kind = graph.kind if len(outputs) == 1 else "Model"
        part = assemble(graph.inputs_of(outputs), outputs, self.dtype, seed=self.seed, kind=kind)
        made = made_of(part, self.backend, drawn=False)
        made.copy_values(self)
        return made

    @property
    def history(self) -> History | None:
        """What the last training measured, one that failed included; None before the first, and in a loaded model."""
        measured: History | None = self._history
        return measured

    def appended(self, append: Appended | Mapping[str, Appended]) -> Model:
        """Return a new model of the same layers and values, with more layers after the outputs.

        ``append`` is a layer or model, or several, or a dict of these by output, where the outputs keep their names:
        ``{"digit": Activation("softmax")}``. An appended model brings its values, and its outputs keep the names they
        have there; layers begin with initial values.

        Raises:
            ArgumentError: something that can't follow the outputs.
            GraphError: layers that do not fit them.

        >>> import lamella as lm
        >>> from lamella_layers import Activation, Dense
        >>> model = lm.Sequential([Dense(3)], input_shape=4)  # ends in logits, which is what its loss takes
        >>> model.appended(Activation("softmax")).predict([[0.0] * 4])
        array([[0.33333334, 0.33333334, 0.33333334]], dtype=float32)
        """
        graph = self._extended_graph(ends_of(self.graph, append))
        return self._filled(Model._of(graph, backend=self.backend))

    def summary(self) -> None:
        """Print a table of layers with output shapes, parameters, connections, and shared and frozen marks."""
        from lamella.terminal import Terminal  # it and what it prints with are seldom needed

        Terminal().print(self._table())

    def _table(self) -> Table:
        from lamella.graph.summary import summary_of

        return summary_of(self.graph, f"{type(self).__name__}, {self.dtype} on {self.backend}", self.frozen_layers)

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def __dir__(self) -> list[str]:  # what users call, for completion
        return [name for name in super().__dir__() if name not in _OF_THE_ENGINE]

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if hasattr(type(self), name):  # a property has failed, and says why
                return object.__getattribute__(self, name)
            told = f"{type(self).__name__} has no {name!r}."
            if fix := hint(elsewhere.MODEL, name):
                raise AttributeError(f"{told}{fix}", name=name)  # without obj, so that Python adds no guess
            raise AttributeError(told, name=name, obj=self)

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in _ASSIGNED and not name.startswith("_"):
                self._refuse(name)
            super().__setattr__(name, value)

    def _refuse(self, name: str) -> None:
        """Raise, unless an attribute is a subclass's own, or a stand-in for a method."""
        kind, base = type(self), self._plain()
        is_theirs = getattr(kind, name, None) is not getattr(base, name, None)
        if is_theirs or (kind is not base and name not in elsewhere.SET) or callable(getattr(base, name, None)):
            return
        fix = hint({**elsewhere.MODEL, **elsewhere.SET}, name)
        if not fix and hasattr(base, name):
            fix = " It can only be read."
        if not fix:
            known = [attribute for attribute in (*dir(base), "seed") if not attribute.startswith("_")]
            fix = did_you_mean(name, known) or " Keep what is yours beside the model, or make a subclass."
        raise AttributeError(
            f"{kind.__name__}.{name} can't be set: nothing would come of it.{fix}", name=name, obj=self
        )


class Sequential(Model):
    """A model that is one chain of layers.

    ``input_shape`` is the shape of one sample, the batch axis not counted; ``input_dtype=None`` is the model's own.

    >>> import lamella as lm
    >>> from lamella_layers import Dense, Flatten
    >>> lm.Sequential([Flatten(), Dense(10)], input_shape=(1, 8, 8))
    <Sequential (N, 1, 8, 8) float32 -> (N, 10) float32, 650 parameters>
    """

    @knows(elsewhere.SEQUENTIAL)
    def __init__(
        self,
        layers: Sequence[Layer | Network] = (),
        *,
        input_shape: Sequence[int | str] | int | None = None,
        input_dtype: str | None = None,
        dtype: str = "float32",
        seed: int = 0,
        backend: str | None = None,
    ) -> None:
        if not isinstance(layers, list | tuple) or not layers:
            raise ArgumentError(
                f"Sequential: layers: expected a list of at least one layer, got {shown(layers)}. All stand in "
                "it: lm.Sequential([layer, layer], input_shape=...)"
            )
        if isinstance(layers[0], Node):
            spec, asked = layers[0].spec, "" if layers[0].spec.dtype == "float32" else ", input_dtype=..."
            raise ArgumentError(
                f"Sequential: layers[0]: expected a layer, got an input. Likely fix: leave it out, and say input_shape="
                f"{spec.shape[1:]}{asked.replace('...', repr(spec.dtype))}"
            )
        if input_shape is None:
            raise ArgumentError(
                "Sequential: input_shape is missing, the shape of a sample: input_shape=(28, 28), or x.shape[1:]"
            )
        first = node = Input(input_shape, input_dtype)
        for position, layer in enumerate(layers):
            if not isinstance(layer, Layer | Network | Graph):
                hint = f"; did you mean {layer.__name__}(...)?" if isinstance(layer, type) else ""
                raise ArgumentError(f"Sequential: layers[{position}]: expected a layer, got {shown(layer)}{hint}")
            node = layer(node)
            if not isinstance(node, Node):
                raise GraphError(
                    f"Sequential: layers[{position}] {layer!r} has {len(node)} outputs; use lamella.Model for that"
                )
        Network.__init__(self, assemble(first, node, dtype, seed=seed, kind="Sequential"), backend=backend)
        warn_of_mistakes(*self.graph.warnings)

    if TYPE_CHECKING:  # a chain has one output

        def __call__(self, *nodes: Node, name: str | None = None) -> Node: ...

        def predict(
            self, x: Any, batch_size: int | None = None, *, append: Appended | Mapping[str, Appended] | None = None
        ) -> np.ndarray[Any, Any]: ...


def from_config(config: Mapping[str, Any], *, backend: str | None = None) -> Model:
    """Make a model from what ``model.config()`` returned, with fresh initial values.

    Raises:
        RegistryError: a layer that no installed plugin gives.
        DataError: something that is no configuration of a model.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> model = lm.Sequential([Dense(3)], input_shape=(4,))
    >>> lm.from_config(model.config())
    <Sequential (N, 4) float32 -> (N, 3) float32, 15 parameters>
    """
    get_backend(backend)  # an unknown one is no fault of the configuration
    if not isinstance(config, Mapping):
        raise DataError(f"from_config: config is no dict; expected what model.config() returns, got {shown(config)}")
    with structure.refusing("from_config", "what model.config() returns"):
        reader = structure.Reader(config)
        model = made_of(reader.graph, backend)
    reader.note_versions("from_config")
    return model


def load(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    layers: Mapping[str, Any] | None = None,
    optimizer: bool = True,
) -> Model:
    """Read a model that `Model.save` wrote. Imports and runs nothing but installed plugins.

    Arguments:
        path: the file.
        backend: where the model shall run; None as for `Model`.
        layers: classes, or activation functions and initializers, by the names in the file, such as those that
            ``@lm.register("name")`` made known to the process that wrote it. A full name, ``"distribution:name"``,
            stands for what a package gives.
        optimizer: whether to bring the optimizer's state, to go on with training.

    Initializers that are not there are not needed, and an optimizer that is not there is left out with a warning.

    Where a distribution has another version than the one that wrote the file, its classes may `migrate` their
    arguments, and a `VersionWarning` says so.

    Raises:
        DataError: a file that is no model, is damaged, or holds arrays of other sizes than its layers have, or values
            that are not finite.
        RegistryError: a layer that no installed plugin gives; the message says which distribution to install.
        ArgumentError: ``layers`` names what the file does not have.
    """
    path = file_path(path, "load: path")
    get_backend(backend)  # an unknown one is no fault of the file
    if layers is not None and not isinstance(layers, Mapping):
        raise ArgumentError(f"load: layers: expected a dict of names to classes, got {shown(layers)}")
    if odd := [name for name in layers or {} if not isinstance(name, str)]:
        raise ArgumentError(f"load: layers: expected names as keys, got {shown(odd[0])}")
    found = archive.read(path, layers or {}, with_optimizer=flag(optimizer, "load: optimizer"))
    with structure.refusing(f"load {path}", "what model.save() writes"):
        model = made_of(found.graph, backend, drawn=False)
    model._epochs = found.epochs
    return model._fill(found.arrays, found.step, found.optimizer)


def made_of(graph: Graph, backend: str | None, *, drawn: bool = True) -> Model:
    """Return a model of the class that a graph was written as; ``drawn``: with initial values."""
    kinds: dict[str, type[Model]] = {"Model": Model, "Sequential": Sequential}
    return kinds[graph.kind]._of(graph, backend=backend, frozen=graph.frozen_layers, drawn=drawn)
