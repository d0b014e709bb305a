"""What a backend is: where arrays live, and the functions that work on them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from lamella.backends.namespace import Namespace

__all__ = ["Backend"]


class Backend(ABC):
    """What the engine needs of a backend. Storage is a writable array; layers see arrays made from it.

    Attributes:
        name: under which plugins give it by ``lamella_backends``.
        xp: the functions that layers use, and in which order kernels of primitives are looked for.
        views_are_live: whether a view follows later changes of its storage.
        writes_in_place: whether functions can be given a piece of storage to write into.
        uses_threads: whether its functions may run side by side, on slices of a batch and pieces of an update.
        knows_shapes: whether shapes are plain ints, which can be held against what ``build`` said.
        has_numpy_arrays: whether its arrays are those of NumPy.
        runs_graphs: whether it runs whole graphs by itself, by `inference` and `training`, and layers are not called.
        writers: for the ``update`` of an optimizer, what writes its results in place, on all threads by itself, in
            place of what `lamella.optimizers` has for NumPy's arrays.
        advice: what to add to the error of a layer that fails.

    A plugin gives a class by the hook ``lamella_backends``. Most begin with NumPy's, and bring kernels that come before
    NumPy's own; ``lm.testing.check_layer`` then examines layers on it too:

    >>> import numpy as np
    >>> import lamella as lm
    >>> from lamella.backends.numpy_backend import NumPyBackend
    >>> class Loud(NumPyBackend):
    ...     name = "loud"
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.xp = Namespace("loud", np, kernels=("loud", "numpy"))
    >>> @lm.primitives.relu.kernel("loud")
    ... def _(xp, x):
    ...     return NotImplemented if x.ndim > 2 else np.maximum(x, 0.0)  # the next kernel runs where it is not made for
    >>> lm.primitives.relu(Loud().xp, np.array([-1.0, 2.0]))
    array([0., 2.])
    >>> del lm.primitives.relu.kernels["loud"]
    """

    name: str
    xp: Namespace
    views_are_live: bool
    writes_in_place: bool
    uses_threads: bool
    knows_shapes: bool
    has_numpy_arrays: bool = False
    runs_graphs: bool = False
    writers: Mapping[Any, Callable[..., None]] = MappingProxyType({})
    advice: str = ""

    def runs_whole(self, graph: Any, rows: int) -> bool:
        """Return whether a batch of a graph is one slice here, since functions use all cores by themselves."""
        return not self.uses_threads

    @property
    def sliced(self) -> Backend:
        """The backend whose functions run on slices side by side, where a batch is not one; it has the same arrays."""
        return self

    def inference(self, network: Any) -> Any:
        """Return what runs a network's inference by itself, called as `lamella.engine.rounds.Slices.infer` is.

        None where the engine calls the layers. Asked for when a network is made for the backend, or moved to it.

        Raises:
            LayerError: a layer can't run here.
        """
        return None

    def training(self, network: Any, plan: Any, losses: Any, rules: Any) -> Any:
        """Return what takes training steps by itself, called as `lamella.training.step.TrainStep` is.

        None where the engine calls the layers.

        Raises:
            LayerError: a layer or loss can't run here.
        """
        return None

    def added(self, a: Any, b: Any) -> Any:
        """Return the sum of two gradients of an array that two layers use."""
        return a + b

    def weighted_sum(self, values: Any, weights: Any) -> Any:
        """Return the sum of values times weights, both (N,), in float64 where the backend can."""
        return float(self.asnumpy(values).astype("float64").dot(self.asnumpy(weights)))

    @abstractmethod
    def dtype(self, name: str) -> Any:
        """Return what the ``dtype`` of an array of this kind is."""

    @abstractmethod
    def settled(self, array: Any) -> Any:
        """Return what a layer gave as the next one gets it."""

    @abstractmethod
    def zeros(self, size: int, dtype: str) -> Any:
        """Return zeroed flat storage."""

    @abstractmethod
    def view(self, storage: Any) -> Any:
        """Return what a layer sees of a piece of storage; it may not be written to."""

    @abstractmethod
    def storable(self, array: Any) -> Any:
        """Return a layer's array as something that storage can be assigned or added."""

    @abstractmethod
    def asarray(self, array: Any) -> Any:
        """Bring a NumPy array to where layers work."""

    @abstractmethod
    def asnumpy(self, array: Any) -> Any:
        """Bring an array or storage back to NumPy."""
