"""Where a layer asks for its arrays: parameters, which training changes, and state, which the layer updates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lamella.arguments import dtype_name, is_axis, positive
from lamella.arguments import text as words
from lamella.errors import GraphError, shown
from lamella.protocol.spec import FLOATS, whole

__all__ = ["ArrayDeclaration", "Declare", "FeatureAxis"]

_MOST = 1 << 48  # entries of an array; NumPy's own error for more is about dimensions


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
    unit_axis: int | None = None
    groups: int = 1


class FeatureAxis(NamedTuple):
    """Along which axis a layer has its features, None for where its input has them, and how to make it another."""

    axis: int | None
    fix: str


class Declare:
    """Handed to ``Layer.build``: where a layer asks for its arrays. ``dtype`` is the model's float dtype."""

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype_name(dtype, "Declare: dtype", FLOATS)
        self.arrays: dict[str, ArrayDeclaration] = {}
        self.warnings: list[str] = []
        self.feature_axis: FeatureAxis | None = None  # unless the layer says so, nobody knows

    def parameter(
        self,
        name: str,
        shape: Sequence[int | str],
        initializer: Any,
        *,
        fan_in: int | str | None = None,
        fan_out: int | str | None = None,
        memory: tuple[int, ...] | None = None,
        unit_axis: int | None = None,
        groups: int = 1,
    ) -> None:
        """Ask for an array that training changes.

        Sizes may be taken from a spec as they are, ``x.shape[-1]``; one that has a name instead of a size is an error.
        ``initializer`` is a registered name or a function ``(rng, shape, fan_in, fan_out) -> array``. ``memory`` is
        the order of axes in which the array is stored, slowest first: ``(2, 3, 1, 0)`` stores a convolution kernel
        (filters, channels, height, width) as (height, width, channels, filters).

        ``unit_axis`` counts the units of a kernel, where these stand neither last of two axes nor first of more: the
        weights that lead into each lie along all others. With ``groups``, axis 0 holds the inputs of one group of units
        after another. `lamella.regularization.MaxNorm` goes by both.
        """
        groups = positive(groups, "groups")
        axis = None if unit_axis is None else positive(unit_axis, "unit_axis", minimum=0)
        self._add(name, shape, initializer, fan_in, fan_out, memory, trainable=True)
        if axis is None:
            return
        sizes = self.arrays[name].shape
        if axis >= len(sizes) or sizes[0] % groups:
            raise GraphError(
                f"array {name!r} has shape {sizes!r}; expected unit_axis={axis!r} to be one of its axes, and "
                f"groups={groups!r} to divide axis 0"
            )
        self.arrays[name] = dataclasses.replace(self.arrays[name], unit_axis=axis, groups=groups)

    def state(self, name: str, shape: Sequence[int | str], initializer: Any) -> None:
        """Ask for an array that ``ctx.update`` changes, such as a running mean."""
        self._add(name, shape, initializer, None, None, None, trainable=False)

    def features(self, axis: int | None, *, fix: str = "") -> None:
        """Say along which axis inputs and outputs have their features: 1, as images do, or -1, as sequences do.

        None is for layers that leave every number where it is, and so the features, too. A layer that says nothing may
        move them anywhere. Where a layer before this one has its features along another axis, models of both come with
        a `MistakeWarning`, which ends with the ``fix``.
        """
        if axis is not None and not is_axis(axis):
            raise GraphError(f"features: axis: expected an int or None, got {shown(axis)}")
        if not isinstance(fix, str):
            raise GraphError(f"features: fix: expected words, got {shown(fix)}")
        self.feature_axis = FeatureAxis(axis, fix)

    def warn(self, text: str) -> None:
        """Say that something is most probably a mistake: a `MistakeWarning` where a model is made of the layer."""
        self.warnings.append(words(text, "warn: text", "'softmax over one value'"))

    def _add(
        self,
        name: str,
        shape: Sequence[int | str],
        initializer: Any,
        fan_in: int | str | None,
        fan_out: int | str | None,
        memory: tuple[int, ...] | None,
        *,
        trainable: bool,
    ) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise GraphError(
                f"array name {shown(name)}: expected an identifier, since layers read it as ctx.params.<name>"
            )
        if name in self.arrays:
            raise GraphError(f"array {name!r} is declared twice; give the second one another name")
        if not isinstance(shape, tuple | list):
            raise GraphError(
                f"array {name!r}: shape: expected a tuple of sizes, got {shown(shape)}; did you mean ({shown(shape)},)?"
            )
        sizes = tuple(map(whole, shape))
        for axis, size in enumerate(sizes):
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise GraphError(
                    f"array {name!r} has shape {shown(sizes)}; axis {axis} must be a known size. "
                    "An axis named by a string (the batch, or a symbolic time axis) can't size a parameter."
                )
        if math.prod(sizes) > _MOST:
            raise GraphError(f"array {name!r} has shape {shown(sizes)}, which no memory holds")
        if not isinstance(initializer, str) and not callable(initializer):
            raise GraphError(
                f"array {name!r}: initializer: expected a registered name or a function (rng, shape, fan_in, fan_out) "
                f"-> array, got {shown(initializer)}"
            )
        fans = [
            None if count is None else positive(count, f"array {name!r}: {fan}", minimum=0)
            for fan, count in (("fan_in", fan_in), ("fan_out", fan_out))
        ]
        axes = tuple(range(len(sizes)))
        memory = axes if memory is None else memory
        order = [whole(axis) for axis in memory] if isinstance(memory, tuple | list) else []
        if not all(map(is_axis, order)) or sorted(order) != list(axes):
            raise GraphError(f"array {name!r}: memory={shown(memory)} is no permutation of its {len(sizes)} axes")
        memory = tuple(order)
        self.arrays[name] = ArrayDeclaration(name, sizes, initializer, fans[0], fans[1], memory, trainable)
