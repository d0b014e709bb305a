"""Along which axis arrays of a graph have their features, as far as layers say so, and layers that take another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lamella.protocol.declare import Declare
from lamella.protocol.spec import ArraySpec

__all__ = ["FeatureAxes"]

_CHANNELS = (1, 3, 4)  # of images: grey, colours, and these with transparency
_LEAST = 8  # pixels of an image along an axis


class _Features(NamedTuple):
    axis: int  # counted from the front
    said: str
    fix: str = ""


class FeatureAxes:
    """Follows features from layer to layer while a graph is put together."""

    def __init__(self) -> None:
        self._known: dict[int, _Features] = {}  # by the number of a value

    def begin(self, value: int, spec: ArraySpec) -> None:
        """An input: nothing is known of its axes, unless its shape is that of images with channels last."""
        if len(spec.shape) != 4:
            return
        height, width, channels = spec.shape[1:]
        if isinstance(height, int) and isinstance(width, int) and isinstance(channels, int):
            low, high = sorted((height, width))
            if channels in _CHANNELS and low >= _LEAST and high <= 2 * low:
                self._known[value] = _Features(
                    3,
                    "the shape is that of images with channels last",
                    f"input_shape=({channels}, {height}, {width}), and x.transpose(0, 3, 1, 2) for the data",
                )

    def follow(
        self,
        name: str,
        declare: Declare,
        inputs: Sequence[tuple[int, ArraySpec]],
        outputs: Sequence[tuple[int, ArraySpec]],
    ) -> str:
        """One layer more, with the numbers of its values; return what it most probably mistakes, or nothing."""
        if declare.feature_axis is None:
            return ""
        own, fix = declare.feature_axis
        if own is None:
            for value, spec in outputs:
                found = [self._known.get(one) for one, given in inputs if len(given.shape) == len(spec.shape)]
                alike = [one for one in found if one is not None]
                if len({one.axis for one in alike}) == 1:
                    self._known[value] = alike[0]
            return ""
        for value, spec in inputs:
            known, rank = self._known.get(value), len(spec.shape)
            axis = own % rank
            if known is not None and rank > 2 and known.axis != axis:  # what comes out of it is not followed
                self._known.pop(value)  # others of its kind make the same mistake
                fix = known.fix or fix or f"Permute({_moved(known.axis, axis, rank)}) before it"
                return f"{name}: takes axis {axis} of {spec} for features, and {known.said}. Likely fix: {fix}"
        for value, spec in outputs:
            axis = own % len(spec.shape)
            self._known[value] = _Features(axis, f"{name} has them along axis {axis}")
        return ""


def _moved(source: int, target: int, rank: int) -> tuple[int, ...]:
    """The axes after the batch, one of them moved.

    >>> _moved(2, 1, 3), _moved(3, 1, 4), _moved(1, 3, 4)
    ((2, 1), (3, 1, 2), (2, 3, 1))
    """
    axes = [axis for axis in range(1, rank) if axis != source]
    axes.insert(target - 1, source)
    return tuple(axes)
