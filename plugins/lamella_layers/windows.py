"""Windows on an image or a series: the geometry that convolution and pooling share, and how arrays are cut along it.

N batch, C channels, then the axes that windows move along: H W, height and width of an image, or L, length of a
series. Sizes, strides and so on are tuples with one entry for each of them; h w, or l, is the grid of windows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import lamella as lm
from lamella.arguments import extent, pair
from lamella.errors import ArgumentError, GraphError, shown
from lamella.primitives import pad

__all__ = [
    "Padding",
    "Size",
    "Windows",
    "border_argument",
    "fold",
    "image_shape",
    "padding_argument",
    "unfold",
    "window_argument",
]

Pair = tuple[int, int]
Sizes = tuple[int, ...]
Size = int | Pair  # what users give: one int for all axes, or one for each
Padding = str | tuple[Pair, ...]

# by the number of axes that windows move along
_EXPECTED = {
    1: "expected series (N, channels, length), such as (N, 3, 100) float32",
    2: "expected images (N, channels, height, width), such as (N, 3, 32, 32) float32",
}
_SAMPLE = {1: "(channels, length)", 2: "(channels, height, width)"}
_BORDER = {1: "an int or (left, right)", 2: "an int, (vertical, horizontal) or ((top, bottom), (left, right))"}
_TRANSPOSE = {
    1: "(N, length, channels) data must be transposed to (N, channels, length)",
    2: "NHWC data must be transposed to (N, channels, height, width)",
}
_TRANSPOSED = {
    1: "x.transpose(0, 2, 1) and input_shape=(channels, length)",
    2: "x.transpose(0, 3, 1, 2) and input_shape=(channels, height, width)",
}

_CHANNELS = 4  # that images have, at most: colours and transparency


def window_argument(value: Any, name: str, axes: int = 2) -> Sizes:
    """Return a positive int for each axis that windows move along.

    >>> window_argument(3, "kernel_size"), window_argument((3, 5), "strides"), window_argument(3, "strides", axes=1)
    ((3, 3), (3, 5), (3,))
    """
    return (extent(value, name),) if axes == 1 else pair(value, name)


def padding_argument(value: Any, axes: int = 2) -> Padding:
    """Return "valid", "same", or (before, after) for each axis that windows move along.

    >>> padding_argument(1), padding_argument((0, 2)), padding_argument(((0, 1), 2))
    (((1, 1), (1, 1)), ((0, 0), (2, 2)), ((0, 1), (2, 2)))
    >>> padding_argument(1, axes=1), padding_argument((0, 2), axes=1)
    (((1, 1),), ((0, 2),))
    """
    if isinstance(value, str) and value in ("valid", "same"):
        return value
    return border_argument(value, "padding", axes, others="'valid', 'same', ")


def border_argument(value: Any, name: str, axes: int = 2, *, others: str = "") -> tuple[Pair, ...]:
    """Return (before, after) for each axis; ``others`` are words that the caller takes beside borders.

    >>> border_argument(1, "padding"), border_argument((0, 2), "cropping"), border_argument((0, 2), "padding", axes=1)
    (((1, 1), (1, 1)), ((0, 0), (2, 2)), ((0, 2),))
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ArgumentError(f"{name}: expected {others}{_BORDER[axes]}, got {shown(value)}")
    return tuple(pair(sides, name, minimum=0) for sides in ((value,) if axes == 1 else value))


def image_shape(x: lm.ArraySpec, axes: int = 2) -> Sizes:
    """Return (channels, height, width) of images, or (channels, length) of series, or say what is wrong with them."""
    if len(x.shape) != 2 + axes:
        raise GraphError(
            f"{_EXPECTED[axes]}, got {x}. Reshape({_SAMPLE[axes]}) adds a missing axis; {_TRANSPOSE[axes]}"
        )
    if not all(isinstance(size, int) and size > 0 for size in x.shape[1:]):
        raise GraphError(
            f"{_EXPECTED[axes]}, got {x}. All of {_SAMPLE[axes]} must be known sizes, since weights, padding and the "
            "shapes of later layers follow from them; only the batch may vary"
        )
    if not x.is_float:
        raise GraphError(f"{_EXPECTED[axes]}, got {x}. Convert the data with x.astype('float32')")
    return tuple(map(int, x.shape[1:]))


@dataclasses.dataclass(frozen=True)
class Windows:
    """A grid of windows over an image, or a series, with padded borders.

    Along each axis, cell i of window o lies at ``o * stride + i * dilation - pad_before`` of the image.

    >>> Windows.over((28, 28), size=(3, 3), strides=(2, 2), padding="same").grid
    (14, 14)
    """

    image: Sizes
    size: Sizes
    strides: Sizes
    dilations: Sizes
    pads: tuple[Pair, ...]

    @classmethod
    @functools.cache
    def over(
        cls,
        image: Sizes,
        *,
        size: Sizes,
        strides: Sizes | None = None,
        dilations: Sizes | None = None,
        padding: Padding = "valid",
    ) -> Windows:
        """Lay windows over an image; ``padding="same"`` makes ceil(image / stride) of them along each axis."""
        ones = (1,) * len(image)
        strides, dilations = strides or ones, dilations or ones
        if padding == "valid":
            pads: Any = ((0, 0),) * len(image)
        elif padding == "same":
            pads = tuple(map(_same, image, size, strides, dilations))
        else:
            pads = padding
        windows = cls(image, size, strides, dilations, pads)
        if min(windows.grid) < 1:
            axes = len(image)
            spans = "" if windows.extent == size else ", which a window spans with its dilation"
            padded = "" if windows.padded == image else f", and {_by(windows.padded)} with padding={padding!r}"
            smaller, turned = "smaller windows, or padding='same'", f"{_TRANSPOSE[axes]}: {_TRANSPOSED[axes]}"
            is_thin = axes == 2 and image[1] <= _CHANNELS and image[0] > 2 * image[1]  # as with channels last
            raise GraphError(
                f"expected a size of at least {_by(windows.extent)}{spans}; got {_by(image)}{padded}. Likely fix: "
                + (f"{turned}. Else {smaller}" if is_thin else f"{smaller}; {turned}")
            )
        return windows

    @functools.cached_property
    def extent(self) -> Sizes:
        """What one window spans."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.size, self.dilations, strict=True))

    @functools.cached_property
    def padded(self) -> Sizes:
        """The size of the image with its padding."""
        return tuple(n + sum(pads) for n, pads in zip(self.image, self.pads, strict=True))

    @functools.cached_property
    def grid(self) -> Sizes:
        """How many windows there are along each axis: the size of the output."""
        return tuple((n - k) // s + 1 for n, k, s in zip(self.padded, self.extent, self.strides, strict=True))

    @functools.cached_property
    def is_pointwise(self) -> bool:
        """Whether every window is one pixel, and every pixel a window."""
        return set(self.size) == set(self.strides) == {1} and self.padded == self.image

    @functools.cached_property
    def tiles(self) -> bool:
        """Whether every pixel lies in exactly one window."""
        covered = tuple(n * k for n, k in zip(self.grid, self.size, strict=True))
        return self.size == self.strides and set(self.dilations) == {1} and covered == self.image == self.padded

    @functools.cached_property
    def turned(self) -> Windows:
        """The windows on the grid that see what these hand to each pixel, where strides are 1.

        Along each axis, windows of the kernel turned around see the pixel's own windows. Padding must be smaller than a
        window.
        """
        pads = zip(self.pads, self.extent, strict=True)
        padding = tuple((extent - 1 - before, extent - 1 - after) for (before, after), extent in pads)
        return Windows.over(self.grid, size=self.size, dilations=self.dilations, padding=padding)

    def cells(self, first: int = 0, last: int | None = None) -> list[tuple[slice, ...]]:
        """For each cell of the window, row by row, where it lies on the padded image in all windows.

        Given rows ``first`` to ``last`` of the grid, in the windows of those only.
        """
        rows = [(0, n) for n in self.grid]
        rows[0] = (first, self.grid[0] if last is None else last)
        return list(
            itertools.product(
                *(
                    [slice(i * d + start * s, i * d + (stop - 1) * s + 1, s) for i in range(k)]
                    for k, s, d, (start, stop) in zip(self.size, self.strides, self.dilations, rows, strict=True)
                )
            )
        )

    @property
    def inside(self) -> tuple[slice, ...]:
        """Where the image lies on the padded image."""
        return tuple(slice(before, before + n) for (before, _), n in zip(self.pads, self.image, strict=True))

    @functools.cached_property
    def onnx(self) -> dict[str, list[int]]:
        """The attributes that Conv, MaxPool and AveragePool share."""
        return {
            "kernel_shape": list(self.size),
            "strides": list(self.strides),
            "pads": [before for before, _ in self.pads] + [after for _, after in self.pads],
            **({} if set(self.dilations) == {1} else {"dilations": list(self.dilations)}),
        }


def _same(n: int, k: int, s: int, d: int) -> Pair:
    """Padding that makes ceil(n / s) windows, the odd cell at the end."""
    total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
    return total // 2, total - total // 2


def _by(size: Sizes) -> str:
    return "x".join(map(str, size))


def unfold(xp: Any, x: Any, windows: Windows, *, value: float = 0.0) -> list[Any]:
    """For each cell of the window, row by row, what lies under it in all windows: arrays (N, C, h, w)."""
    padded = pad(xp, x, ((0, 0), (0, 0), *windows.pads), value=value)
    return [padded[:, :, *cell] for cell in windows.cells()]


@lm.primitive
def fold(xp: Any, cells: Iterable[Any], windows: Windows) -> Any:
    """Add arrays (N, C, h, w), one for each cell of the window, where `unfold` would have taken them from."""
    total: Any = 0.0
    for cell, there in zip(cells, windows.cells(), strict=True):
        n, c = cell.shape[:2]
        # zeros between the values: (N, C, h, w) -> (N, C, h, sh, w, sw) -> (N, C, h*sh, w*sw)
        apart = xp.reshape(cell, (n, c, *(size for m in windows.grid for size in (m, 1))))
        gaps = [width for s in windows.strides for width in ((0, 0), (0, s - 1))]
        spread = pad(xp, apart, ((0, 0), (0, 0), *gaps))
        spread = xp.reshape(spread, (n, c, *(m * s for m, s in zip(windows.grid, windows.strides, strict=True))))
        spread = spread[:, :, *(slice(part.stop - part.start) for part in there)]
        around = [(part.start, size - part.stop) for part, size in zip(there, windows.padded, strict=True)]
        total = pad(xp, spread, ((0, 0), (0, 0), *around)) + total
    return total[:, :, *windows.inside]


@fold.kernel("cupy")
@fold.kernel("numpy")
def _(xp: Any, cells: Iterable[Any], windows: Windows) -> Any:
    total: Any = None
    for cell, place in zip(cells, windows.cells(), strict=True):
        if total is None:  # channels last in memory
            total = xp.zeros((cell.shape[0], *windows.padded, cell.shape[1]), dtype=cell.dtype)
            total = xp.permute_dims(total, (0, total.ndim - 1, *range(1, total.ndim - 1)))
        there = total[:, :, *place]
        there += cell
    return total[:, :, *windows.inside]
