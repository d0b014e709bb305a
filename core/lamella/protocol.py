"""What a layer is: configuration, the arrays it declares, a forward pass and a backward pass."""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lamella.arguments import knows
from lamella.configuration import Configured
from lamella.errors import ArgumentError, GraphError, did_you_mean

if TYPE_CHECKING:
    from lamella.context import Context
    from lamella.graph import Node

__all__ = ["ArrayDeclaration", "ArraySpec", "Declare", "Layer", "snake_case"]

FLOATS = ("float32", "float64")
DTYPES = (*FLOATS, "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_MOST = 1 << 48  # numbers in an array; NumPy's own words for more are about dimensions


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """The shape and dtype of an array whose number of rows is not known yet.

    ``shape`` starts with the batch axis, ``"N"``; any other axis may be symbolic too, such as ``"T"``.
    ``low <= value < high`` is the range from which checks and exports draw; integers outside of it are refused as data.

    >>> ArraySpec(("N", 28, 28))
    ArraySpec(('N', 28, 28), 'float32')
    >>> ArraySpec(("N", 28, 28)).replace(shape=("N", 784)).shape
    ('N', 784)
    """

    shape: tuple[int | str, ...]
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        shape = tuple(map(_whole, self.shape))
        dtype = self.dtype if isinstance(self.dtype, str) else np.dtype(self.dtype).name
        for axis, size in enumerate(shape):
            symbolic = isinstance(size, str) and size.isidentifier()
            if not symbolic and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
                raise ArgumentError(
                    f"ArraySpec: shape[{axis}] is {size!r}; expected a size, or a name such as 'T' for an axis "
                    f"whose size is not known, in shape {shape!r}"
                )
        if dtype not in DTYPES:
            raise ArgumentError(
                f"ArraySpec: dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}.{did_you_mean(dtype, DTYPES)}"
            )
        limits = [limit for limit in (self.low, self.high) if limit is not None]
        if any(isinstance(limit, bool) or not isinstance(limit, int | float) for limit in limits) or (
            len(limits) == 2 and not limits[0] < limits[1]
        ):
            raise ArgumentError(f"ArraySpec: expected low < high, got low={self.low!r} and high={self.high!r}")
        if np.dtype(dtype).kind in "iu" and limits:
            held = np.iinfo(dtype)
            if (self.low is not None and self.low > held.max) or (self.high is not None and self.high <= held.min):
                raise ArgumentError(
                    f"ArraySpec: {dtype} holds {held.min} to {held.max}, so nothing from low={self.low!r} to below "
                    f"high={self.high!r}"
                )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", dtype)

    @property
    def is_float(self) -> bool:
        """Whether gradients flow through the array."""
        return self.dtype in FLOATS

    def replace(self, **changes: Any) -> ArraySpec:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.shape))}{',' if len(self.shape) == 1 else ''}) {self.dtype}"

    def __repr__(self) -> str:
        limits = "".join(f", {k}={v}" for k, v in (("low", self.low), ("high", self.high)) if v is not None)
        return f"ArraySpec({self.shape!r}, {self.dtype!r}{limits})"


def _whole(size: Any) -> Any:
    """A size as a plain int, where it is any kind of whole number."""
    try:
        return size if isinstance(size, bool) else operator.index(size)
    except TypeError:
        return size


@dataclasses.dataclass(frozen=True)
class ArrayDeclaration:
    """One parameter or state array that a layer asked for in ``build``."""

    name: str
    shape: tuple[int, ...]
    initializer: Any
    fan_in: int | None
    fan_out: int | None
    memory: tuple[int, ...]
    trainable: bool


class Declare:
    """Handed to ``Layer.build``: where a layer asks for its arrays. ``dtype`` is the model's float dtype."""

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.arrays: dict[str, ArrayDeclaration] = {}

    def parameter(
        self,
        name: str,
        shape: Sequence[int],
        initializer: Any,
        *,
        fan_in: int | None = None,
        fan_out: int | None = None,
        memory: tuple[int, ...] | None = None,
    ) -> None:
        """Ask for an array that training changes.

        ``initializer`` is a registered name or a function ``(rng, shape, fan_in, fan_out) -> array``. ``memory`` is
        the order of axes in which the array is stored, slowest first: ``(2, 3, 1, 0)`` stores a convolution kernel
        (filters, channels, height, width) as (height, width, channels, filters).
        """
        self._add(name, shape, initializer, fan_in, fan_out, memory, trainable=True)

    def state(self, name: str, shape: Sequence[int], initializer: Any) -> None:
        """Ask for an array that ``ctx.update`` changes, such as a running mean."""
        self._add(name, shape, initializer, None, None, None, trainable=False)

    def _add(
        self,
        name: str,
        shape: Sequence[int],
        initializer: Any,
        fan_in: int | None,
        fan_out: int | None,
        memory: tuple[int, ...] | None,
        *,
        trainable: bool,
    ) -> None:
        if not name.isidentifier():
            raise GraphError(f"array name {name!r}: expected an identifier, since layers read it as ctx.params.<name>")
        if name in self.arrays:
            raise GraphError(f"array {name!r} is declared twice; give the second one another name")
        if not isinstance(shape, tuple | list):
            raise GraphError(
                f"array {name!r}: shape: expected a tuple of sizes, got {shape!r}; did you mean ({shape},)?"
            )
        shape = tuple(map(_whole, shape))
        for axis, size in enumerate(shape):
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise GraphError(
                    f"array {name!r} has shape {shape!r}; axis {axis} must be a known size. "
                    "An axis named by a string (the batch, or a symbolic time axis) can't size a parameter."
                )
        if math.prod(shape) > _MOST:
            raise GraphError(f"array {name!r} has shape {shape!r}, which no memory holds")
        if not isinstance(initializer, str) and not callable(initializer):
            raise GraphError(
                f"array {name!r}: initializer: expected a registered name or a function (rng, shape, fan_in, fan_out) "
                f"-> array, got {initializer!r}"
            )
        memory = tuple(range(len(shape))) if memory is None else tuple(memory)
        if sorted(memory) != list(range(len(shape))):
            raise GraphError(f"array {name!r}: memory={memory!r} is no permutation of its {len(shape)} axes")
        self.arrays[name] = ArrayDeclaration(name, shape, initializer, fan_in, fan_out, memory, trainable)


class Layer(Configured):
    """One step of a model: configuration plus a forward and a backward pass.

    A layer made of array code overrides ``forward_pass``, ``backward_pass`` and, unless its output has its input's
    shape, ``build``. A layer made of other layers overrides only ``expand``. A layer object holds its configuration
    and nothing else: parameters and state belong to the model, activations to the context.

    >>> import lamella as lm
    >>> class Scale(lm.Layer):
    ...     def __init__(self, factor: float):
    ...         self.factor = factor
    ...     def forward_pass(self, ctx, x):
    ...         return x * self.factor
    ...     def backward_pass(self, ctx, dy):
    ...         return dy * self.factor
    >>> model = lm.Sequential([Scale(3.0)], input_shape=(2,))
    >>> model.predict([[1.0, 2.0]])
    array([[3., 6.]], dtype=float32)
    """

    recurrent = False
    """True for a layer that walks over time: every slice walks all of it, so the fewer slices the better."""

    _name: str | None = None
    _trainable = True

    def build(self, declare: Declare, *inputs: Any) -> ArraySpec | tuple[ArraySpec, ...]:
        """Declare parameters and state, and return the spec of the output, or of each output."""
        if len(inputs) != 1:
            raise GraphError(f"{type(self).__name__} takes one input, got {len(inputs)}; override build to take more")
        spec: ArraySpec = inputs[0]
        return spec

    def forward_pass(self, ctx: Context, *inputs: Any) -> Any:
        """Return the output, or a tuple of outputs. Axis 0 of each array counts the rows of this slice."""
        raise NotImplementedError(f"{type(self).__name__} defines neither forward_pass nor expand")

    def backward_pass(self, ctx: Context, *gradients: Any) -> Any:
        """Return the gradient of each input; hand gradients of parameters to ``ctx.grad``."""
        raise NotImplementedError(f"{type(self).__name__} defines no backward_pass")

    def expand(self, *nodes: Any) -> Any:
        """Call other layers on the nodes and return the output; None, the default, means "I am a leaf"."""
        return None

    @knows(
        initial_state="States are inputs like others, one node each: layer(x, state)",
        mask="Masks and lengths are inputs like others: layer(x, mask)",
        training="fit trains and predict infers; a layer is called for both",
    )
    def __call__(self, *nodes: Node, name: str | None = None) -> Any:
        """Add the layer to a graph and return its output node, or a tuple of them."""
        from lamella.graph import call  # the graph knows layers; a layer meets the graph only here

        if name is not None:
            valid_name(name, f"{type(self).__name__}: name")
        return call(self, nodes, name)

    @property
    def name(self) -> str | None:
        """The name given with ``named``, or None where the model makes one up."""
        return self._name

    @property
    def trainable(self) -> bool:
        """False for a layer made with ``frozen()``."""
        return self._trainable

    def named(self, name: str) -> Self:
        """Return a copy with a name. Within ``expand``, the empty name stands for the outer layer's own."""
        return self._copy(name=name if name == "" else valid_name(name, f"{type(self).__name__}.named"))

    def frozen(self) -> Self:
        """Return a copy whose parameters and state training leaves alone."""
        return self._copy(trainable=False)

    def _copy(self, *, name: str | None = None, trainable: bool | None = None) -> Self:
        copy = self.replace()
        object.__setattr__(copy, "_name", self._name if name is None else name)
        object.__setattr__(copy, "_trainable", self._trainable if trainable is None else trainable)
        return copy

    def _identity(self) -> tuple[Any, ...]:
        return (*super()._identity(), self._name, self._trainable)

    def __repr__(self) -> str:
        named = "" if self._name is None else f".named({self._name!r})"
        return f"{super().__repr__()}{named}{'' if self._trainable else '.frozen()'}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.config(), self._name, self._trainable)


def _rebuild(cls: type[Layer], config: dict[str, Any], name: str | None, trainable: bool) -> Layer:
    return cls(**config)._copy(name=name, trainable=trainable)


def snake_case(name: str) -> str:
    """Return the default registry name of a class.

    >>> snake_case("MaxPooling2D"), snake_case("RMSNormalization"), snake_case("F1Score")
    ('max_pooling2d', 'rms_normalization', 'f1_score')
    """
    name = re.sub(r"(?<=[^_])(?=[A-Z][a-z0-9])", "_", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def valid_name(name: Any, where: str) -> str:
    """Return the name of an input, layer or node, if it is one."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w\-]+", name):
        raise ArgumentError(
            f"{where}: expected letters, digits, '_' and '-', got {name!r}; '/', '.' and '#' separate groups, arrays "
            "and uses of a layer"
        )
    return name


def is_generator(function: Callable[..., Any]) -> bool:
    """Whether a pass contains ``yield``, and so shares sums over the whole batch."""
    return inspect.isgeneratorfunction(function)
