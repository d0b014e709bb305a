"""Windows on an image: the geometry that convolution and pooling share, and how arrays are cut up along it.

N batch, C channels, H W height and width of the image, h w of the grid of windows; everything else in pairs
(vertical, horizontal).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import lamella as lm
from lamella.arguments import pair
from lamella.errors import ArgumentError, GraphError
from lamella.primitives import pad

__all__ = ["Padding", "Windows", "fold", "image_shape", "padding_argument", "unfold"]

Pair = tuple[int, int]
Padding = str | tuple[Pair, Pair]


def padding_argument(value: Any) -> Padding:
    """Return "valid", "same" or ((top, bottom), (left, right)).

    >>> padding_argument(1), padding_argument((0, 2)), padding_argument(((0, 1), 2))
    (((1, 1), (1, 1)), ((0, 0), (2, 2)), ((0, 1), (2, 2)))
    """
    if value in ("valid", "same"):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = (value, value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ArgumentError(
            "padding: expected 'valid', 'same', an int, (vertical, horizontal) or ((top, bottom), (left, right)), "
            f"got {value!r}"
        )
    return pair(value[0], "padding", minimum=0), pair(value[1], "padding", minimum=0)


def image_shape(x: lm.ArraySpec) -> tuple[int, int, int]:
    """Return (channels, height, width) of a batch of images, or say what is wrong with it."""
    expected = "expected images (N, channels, height, width), such as (N, 3, 32, 32) float32"
    if len(x.shape) != 4:
        raise GraphError(
            f"{expected}, got {x}. Reshape((channels, height, width)) adds a missing axis; "
            "NHWC data must be transposed to NCHW"
        )
    if not all(isinstance(size, int) and size > 0 for size in x.shape[1:]):
        raise GraphError(
            f"{expected}, got {x}. Channels, height and width must be known sizes, since weights, padding and the "
            "shapes of later layers follow from them; only the batch may vary"
        )
    if not x.is_float:
        raise GraphError(f"{expected}, got {x}. Convert the data with x.astype('float32')")
    channels, height, width = map(int, x.shape[1:])
    return channels, height, width


@dataclasses.dataclass(frozen=True)
class Windows:
    """A grid of windows over an image with padded borders.

    Along each axis, cell i of window o lies at ``o * stride + i * dilation - pad_before`` of the image.

    >>> Windows.over((28, 28), size=(3, 3), strides=(2, 2), padding="same").grid
    (14, 14)
    """

    image: Pair
    size: Pair
    strides: Pair = (1, 1)
    dilations: Pair = (1, 1)
    pads: tuple[Pair, Pair] = ((0, 0), (0, 0))

    @classmethod
    @functools.cache
    def over(
        cls, image: Pair, *, size: Pair, strides: Pair = (1, 1), dilations: Pair = (1, 1), padding: Padding = "valid"
    ) -> Windows:
        """Lay windows over an image; ``padding="same"`` makes ceil(image / stride) of them along each axis."""
        if padding == "valid":
            pads: Any = ((0, 0), (0, 0))
        elif padding == "same":
            pads = tuple(map(_same, image, size, strides, dilations))
        else:
            pads = padding
        windows = cls(image, size, strides, dilations, pads)
        if min(windows.grid) < 1:
            raise GraphError(
                f"expected an image of at least {_by(windows.extent)}, the size of a window with its dilation; got "
                f"{_by(image)}, {_by(windows.padded)} with padding={padding!r}. Use smaller windows or padding='same'; "
                "NHWC data must be transposed to (N, channels, height, width)"
            )
        return windows

    @functools.cached_property
    def extent(self) -> Pair:
        """Height and width that one window spans."""
        (kh, kw), (dh, dw) = self.size, self.dilations
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    @functools.cached_property
    def padded(self) -> Pair:
        """Height and width of the image with its padding."""
        (height, width), (rows, columns) = self.image, self.pads
        return height + sum(rows), width + sum(columns)

    @functools.cached_property
    def grid(self) -> Pair:
        """How many windows there are (down, across): the height and width of the output."""
        down, across = ((n - k) // s + 1 for n, k, s in zip(self.padded, self.extent, self.strides, strict=True))
        return down, across

    @property
    def is_pointwise(self) -> bool:
        """Whether every window is one pixel, and every pixel a window."""
        return self.size == self.strides == (1, 1) and self.padded == self.image

    @functools.cached_property
    def tiles(self) -> bool:
        """Whether every pixel lies in exactly one window."""
        covered = tuple(n * k for n, k in zip(self.grid, self.size, strict=True))
        return self.size == self.strides and self.dilations == (1, 1) and covered == self.image == self.padded

    def cells(self, first: int = 0, last: int | None = None) -> list[tuple[slice, slice]]:
        """For each cell of the window, row by row, where it lies on the padded image in all windows.

        Given rows ``first`` to ``last`` of the grid, in the windows of those only.
        """
        (kh, kw), (sh, sw), (dh, dw), (h, w) = self.size, self.strides, self.dilations, self.grid
        last = h if last is None else last
        down = [slice(i * dh + first * sh, i * dh + (last - 1) * sh + 1, sh) for i in range(kh)]
        across = [slice(j * dw, j * dw + (w - 1) * sw + 1, sw) for j in range(kw)]
        return [(rows, columns) for rows in down for columns in across]

    @property
    def inside(self) -> tuple[slice, slice]:
        """Where the image lies on the padded image."""
        (top, _), (left, _), (height, width) = *self.pads, self.image
        return slice(top, top + height), slice(left, left + width)

    @functools.cached_property
    def onnx(self) -> dict[str, list[int]]:
        """The attributes that Conv, MaxPool and AveragePool share."""
        (top, bottom), (left, right) = self.pads
        return {
            "kernel_shape": list(self.size),
            "strides": list(self.strides),
            "pads": [top, left, bottom, right],
            **({"dilations": list(self.dilations)} if self.dilations != (1, 1) else {}),
        }


def _same(n: int, k: int, s: int, d: int) -> Pair:
    """Padding that makes ceil(n / s) windows, the odd cell at the end."""
    total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
    return total // 2, total - total // 2


def _by(size: Pair) -> str:
    return f"{size[0]}x{size[1]}"


def unfold(xp: Any, x: Any, windows: Windows, *, value: float = 0.0) -> list[Any]:
    """For each cell of the window, row by row, what lies under it in all windows: arrays (N, C, h, w)."""
    padded = pad(xp, x, ((0, 0), (0, 0), *windows.pads), value=value)
    return [padded[:, :, rows, columns] for rows, columns in windows.cells()]


@lm.primitive
def fold(xp: Any, cells: Iterable[Any], windows: Windows) -> Any:
    """Add arrays (N, C, h, w), one for each cell of the window, where `unfold` would have taken them from."""
    (sh, sw), (h, w), (height, width) = windows.strides, windows.grid, windows.padded
    total: Any = 0.0
    for cell, (rows, columns) in zip(cells, windows.cells(), strict=True):
        n, c = cell.shape[:2]
        # zeros between the numbers: (N, C, h, w) -> (N, C, h, sh, w, sw) -> (N, C, h*sh, w*sw)
        spread = pad(xp, xp.reshape(cell, (n, c, h, 1, w, 1)), ((0, 0),) * 3 + ((0, sh - 1), (0, 0), (0, sw - 1)))
        spread = xp.reshape(spread, (n, c, h * sh, w * sw))[:, :, : (h - 1) * sh + 1, : (w - 1) * sw + 1]
        around = (rows.start, height - rows.stop), (columns.start, width - columns.stop)
        total = pad(xp, spread, ((0, 0), (0, 0), *around)) + total
    return total[:, :, *windows.inside]


@fold.kernel("cupy")
@fold.kernel("numpy")
def _(xp: Any, cells: Iterable[Any], windows: Windows) -> Any:
    total: Any = None
    for cell, (rows, columns) in zip(cells, windows.cells(), strict=True):
        if total is None:
            shape = (cell.shape[0], *windows.padded, cell.shape[1])
            total = xp.permute_dims(xp.zeros(shape, dtype=cell.dtype), (0, 3, 1, 2))
        there = total[:, :, rows, columns]
        there += cell
    return total[:, :, *windows.inside]
