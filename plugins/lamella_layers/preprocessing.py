"""Preprocessing within the model, so that what is exported takes the data as it comes: integers too."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

import lamella as lm
from lamella.arguments import is_axis, number
from lamella.errors import shown
from lamella.protocol.frames import is_column
from lamella.protocol.inputs import as_array
from lamella.testing import Specimen

__all__ = ["Normalization", "Rescaling"]

_BLOCK = 1 << 20  # how many values are brought to float64 at a time
_LEAST, _MOST = (float(limit) for limit in (np.finfo("float32").tiny, np.finfo("float32").max))
_NEAR = 2.0**62  # differences that 64 bits hold, even if they were rounded before they were compared


class Rescaling(lm.Layer):
    """Multiplies and shifts all values: ``y = scale x + offset``.

    Arguments:
        scale: 1 / 255 brings bytes to [0, 1].
        offset: added afterwards.

    Shapes: any numbers -> the same, in the model's float type.

    Integers become floats first: in float32, those beyond 2^24 are rounded to 24 bits, and an ``offset`` does not bring
    back what they lost. `Normalization` subtracts from integers before it rounds.

    Raises:
        ArgumentError: if ``scale`` or ``offset`` is not a finite number.

    Source: https://keras.io/api/layers/preprocessing_layers/image_preprocessing/rescaling/

    >>> import lamella as lm
    >>> image = lm.Input((1, 1, 3), "uint8")
    >>> lm.Model(image, Rescaling(1 / 128, offset=-1.0)(image)).predict([[[[0, 64, 192]]]])
    array([[[[-1. , -0.5,  0.5]]]], dtype=float32)
    """

    def __init__(self, scale: float, offset: float = 0.0):
        self.scale, self.offset = number(scale, "scale"), number(offset, "offset")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        declare.features(None)
        return x.replace(dtype=declare.dtype, low=None, high=None)

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        if x.dtype == ctx.xp.float64:
            return ctx.xp.astype(x * self.scale + self.offset, ctx.dtype)
        return ctx.xp.astype(x, ctx.dtype) * self.scale + self.offset

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        return dy * self.scale


class Normalization(lm.Layer):
    """Brings features to mean 0 and variance 1 with statistics of the data: ``y = (x - mean) / sqrt(variance)``.

    The statistics are arguments, and so part of the configuration. Most often they come from `adapted`; nothing
    changes them in training. Features whose variance is 0 are only shifted.

    Arguments:
        mean: for each feature, or one for all.
        variance: the same; at least 0.
        axis: which axis, or axes, counted with the batch axis, have statistics for each of their places: -1 for tables
            and sequences, 1 for the channels of images. With None there is one mean and variance for all values. Those
            of several axes have the order of the input's axes, in whatever order these are named.

    Shapes: (N, ...) of any numbers -> the same, in the model's float type.

    Nothing is lost where values are far from 0 and close to their mean, such as time stamps: from integers of 32 and
    64 bits the whole part of the mean is subtracted in 64 bits before they become floats, from float64 the mean in
    float64, and the mean is no rounded float32. In a float32 model an input of floats that goes to this layer alone is
    float64, in exported files too, where float32 would round values by more than 1/32 of their deviation; behind other
    layers it is too late, and a `MistakeWarning` says so. ``lm.Input(shape, "float64")`` asks for it at any mean.

    Raises:
        ArgumentError: if only one of ``mean`` and ``variance`` is given, their shapes differ, they are not finite (in
            float32, even with their roots), or a variance is negative.
        GraphError: if there are no statistics yet, or not as many as the input has features.

    Source: https://keras.io/api/layers/preprocessing_layers/numerical/normalization/

    >>> import lamella as lm
    >>> table = [[1.0, 100.0], [3.0, 100.0], [5.0, 700.0]]
    >>> layer = Normalization().adapted(table)
    >>> layer
    Normalization(mean=(3.0, 300.0), variance=(2.6666666666666665, 80000.0))
    >>> lm.Sequential([layer], input_shape=2).predict(table).round(3)
    array([[-1.225, -0.707],
           [ 0.   , -0.707],
           [ 1.225,  1.414]], dtype=float32)
    """

    def __init__(
        self,
        *,
        mean: float | tuple[Any, ...] | None = None,
        variance: float | tuple[Any, ...] | None = None,
        axis: int | tuple[int, ...] | None = -1,
    ):
        self.axes = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
        if not all(map(is_axis, self.axes)):
            raise lm.ArgumentError(f"axis: expected an int, a tuple of them, or None, got {shown(axis)}")
        if (mean is None) != (variance is None):
            raise lm.ArgumentError(
                "mean and variance: expected both or neither; Normalization().adapted(data) has both"
            )
        self.mean = None if mean is None else _numbers(mean, "mean")
        self.variance = None if variance is None else _numbers(variance, "variance")
        if self.mean is None or self.variance is None:
            return
        if self.mean.shape != self.variance.shape:
            raise lm.ArgumentError(
                f"mean and variance: expected equal shapes, got {self.mean.shape} and {self.variance.shape}"
            )
        if (self.variance < 0.0).any():
            raise lm.ArgumentError(f"variance: expected numbers of at least 0, got {variance!r}; it is no deviation")
        deviation = np.sqrt(self.variance[self.variance > 0.0])
        if (abs(self.mean) > _MOST).any() or (deviation < _LEAST).any() or (deviation > _MOST).any():
            raise lm.ArgumentError(
                f"mean and variance: expected means and deviations (roots of variances) that float32 holds, of at most "
                f"{_MOST:.2g}, and deviations of 0 or at least {_LEAST:.2g}, got {mean!r} and {variance!r}"
            )
        steps = np.spacing(np.abs(self.mean[self.variance > 0.0]).astype("float32"))
        self.needs_float64 = bool((steps > deviation / 16.0).any())

    def adapted(self, data: Any) -> Self:
        """Return a copy of the layer with the mean and the (biased) variance of data, whose axis 0 counts samples."""
        array = as_array(data, "Normalization.adapted: expected numbers")
        if array.dtype.kind not in "fiub" or not array.size:
            raise lm.DataError(f"Normalization.adapted: expected numbers, got {array.shape} {array.dtype}")
        if array.ndim == 1 and is_column(data):
            array = array[:, None]
        axes = self._axes(array.ndim)
        if axes is None or 0 in axes:
            raise lm.DataError(
                f"Normalization.adapted: expected axis={self._given} among the axes after that of the samples, each "
                f"once, got data of shape {array.shape}"
            )
        others = tuple(k for k in range(array.ndim) if k not in axes)
        count, mean, squares = 0, np.zeros(()), np.zeros(())
        rows = max(1, _BLOCK // max(1, math.prod(array.shape[1:])))
        for first in range(0, len(array), rows):
            block = array[first : first + rows].astype("float64")
            n = block.size // math.prod(block.shape[k] for k in axes)
            center = block.mean(axis=others, keepdims=True)
            deviations = ((block - center) ** 2).sum(axis=others)
            apart = np.squeeze(center, axis=others) - mean
            count += n
            mean = mean + apart * (n / count)
            squares = squares + deviations + apart**2 * (n * (count - n) / count)
        if not np.isfinite(squares).all():
            raise lm.DataError("Normalization.adapted: expected finite numbers; the data holds NaN or infinity")
        variance = squares / count
        # of equal values only rounding is left, which is no variance
        variance = np.where(variance <= (4.0 * np.finfo("float64").eps * mean) ** 2, 0.0, variance)
        adapted = self.replace(mean=mean, variance=variance)
        return adapted if self.name is None else adapted.named(self.name)

    @property
    def _given(self) -> Any:
        return self.config()["axis"]

    def _axes(self, rank: int) -> tuple[int, ...] | None:
        """The axes counted from the front, in order; None if they don't fit."""
        axes = tuple(sorted({axis % rank for axis in self.axes if -rank <= axis < rank}))
        return axes if len(axes) == len(self.axes) else None

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        if self.mean is None:
            raise lm.GraphError(
                "expected a mean and a variance, got neither. Likely fix: Normalization(...).adapted(data), which "
                "returns a layer with those of the data"
            )
        axes = self._axes(len(x.shape))
        if axes is None or 0 in axes:
            raise lm.GraphError(f"expected axis={self._given} among the axes after the batch, each once, got {x}")
        sizes = tuple(x.shape[k] for k in axes)
        if self.mean.ndim and sizes != self.mean.shape:
            raise lm.GraphError(
                f"expected a mean and a variance of sizes {sizes}, those of the input along axis={self._given}, in the "
                f"order of its axes; they have {self.mean.shape}, and the input is {x}"
            )
        if self.needs_float64 and x.dtype == "float32":
            declare.warn(
                "float32 has lost what tells values apart that are so close to their mean, for their distance from 0: "
                f"mean={self.config()['mean']}, variance={self.config()['variance']}. Likely fix: an input that goes "
                "to this layer alone, which is float64 then"
            )
        declare.features(None)
        return x.replace(dtype=declare.dtype, low=None, high=None)

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        return self._centered(ctx, x) * self._beside(ctx, x, self._scale())

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        return dy * self._beside(ctx, dy, self._scale())

    def _scale(self) -> Any:
        assert self.variance is not None
        return 1.0 / np.sqrt(np.where(self.variance > 0.0, self.variance, 1.0))

    def _centered(self, ctx: lm.Context, x: Any) -> Any:
        """``x - mean`` for a mean that is rounded neither to float32 nor, beside wide integers, to floats at all."""
        xp, mean = ctx.xp, self.mean
        assert mean is not None
        if x.dtype == xp.float64:
            return xp.astype(x - self._beside(ctx, x, mean, xp.float64), ctx.dtype)
        center = mean.astype("float32").astype("float64") if ctx.dtype == xp.float32 else mean
        d = xp.astype(x, ctx.dtype) - self._beside(ctx, x, center)
        if (center != mean).any():
            d = d - self._beside(ctx, x, mean - center)
        if x.dtype not in (xp.int32, xp.int64, xp.uint32, xp.uint64):  # floats hold all others
            return d
        # differences modulo 2^64 are right where they are near; where not, those of floats are
        whole = np.rint(mean)
        wrapped = np.array([int(m) % 2**64 for m in whole.flat], "uint64").astype("int64").reshape(whole.shape)
        near = xp.astype(xp.astype(x, xp.int64) - self._beside(ctx, x, wrapped, xp.int64), ctx.dtype)
        near = near - self._beside(ctx, x, mean - whole)
        return xp.where(xp.abs(d) < _NEAR, near, d)

    def _beside(self, ctx: lm.Context, x: Any, array: Any, dtype: Any = None) -> Any:
        """Values for each feature in the shape that goes with ``x``."""
        axes = self._axes(x.ndim) if array.ndim else ()
        sizes = dict(zip(axes or (), array.shape, strict=True))
        shape = tuple(sizes.get(k, 1) for k in range(min(sizes, default=x.ndim), x.ndim))
        return ctx.xp.asarray(array.reshape(shape), dtype=ctx.dtype if dtype is None else dtype)


def _numbers(value: Any, name: str) -> Any:
    try:
        array = np.array(value, "float64")
    except (TypeError, ValueError, OverflowError):
        array = np.array(math.nan)
    if not np.isfinite(array).all():
        raise lm.ArgumentError(f"{name}: expected finite numbers, got {shown(value)}")
    array.flags.writeable = False
    return array


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"normalization": Normalization, "rescaling": Rescaling}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    keras = "https://keras.io/api/layers/preprocessing_layers/"
    row, image = lm.ArraySpec(("N", 3)), lm.ArraySpec(("N", 2, 3, "W"), "uint8", low=0, high=256)
    rescaling, docs = f"{keras}image_preprocessing/rescaling/", f"{keras}numerical/normalization/"
    return [
        Specimen(Rescaling(1 / 255), (image,), ("Cast", "Mul"), docs=rescaling),
        Specimen(Rescaling(0.5, offset=-1.0), (row,), ("Mul", "Add"), docs=rescaling),
        Specimen(
            Normalization(mean=(1.0, -2.0, 3.0), variance=(4.0, 0.0, 0.5)),
            (row,),
            ("Sub", "Mul"),
            docs=docs,
            refuses=(
                ((row.replace(shape=("N", 4)),), "sizes (4,), those of the input along axis=-1"),
                ((lm.ArraySpec(("N",)),), "axis=-1 among the axes after the batch"),
            ),
        ),
        Specimen(
            Normalization(mean=(90.0, 140.0), variance=(40.0, 900.0), axis=1),
            (image,),
            ("Cast", "Sub", "Mul"),
            docs=docs,
        ),
        Specimen(
            Normalization(mean=(1.7e9 + 0.3, 1.6e9), variance=(1e4, 1e5)),
            (lm.ArraySpec(("N", 2), "int64", low=1_699_999_000, high=1_700_001_000),),
            ("Cast", "Sub", "Sub", "Sub", "Cast", "Sub", "Abs", "Less", "Where", "Mul"),
            docs=docs,
        ),
        Specimen(
            Normalization(mean=0.5, variance=4.0, axis=None), (lm.ArraySpec(("N", "T", 2)),), ("Sub", "Mul"), docs=docs
        ),
    ]
