"""Initializers: the first values of parameters, drawn in float64 by ``(rng, shape, fan_in, fan_out) -> array``.

Some are functions, such as `glorot_uniform`; those with settings are objects, such as ``TruncatedNormal(stddev=0.02)``.
Layers take both, and registered names.

A family of three pairs of functions: variance ``scale / fan`` with fan_in or the mean of both fans, drawn from a
uniform or a normal distribution; `VarianceScaling` has its settings free. ``fan_in`` counts the inputs that one output
is summed from, ``fan_out`` the outputs that one input goes to. Normal ones reach as far as they like, as in the papers
and in PyTorch; Keras draws again what is beyond two standard deviations, and widens the rest to the same variance, as
``distribution="truncated_normal"`` does here. "xavier" and "kaiming" are other names for "glorot" and "he", after the
same authors. Sources: Glorot and Bengio (2010), https://proceedings.mlr.press/v9/glorot10a.html; He et al. (2015),
https://arxiv.org/abs/1502.01852; LeCun et al., Efficient BackProp (1998); Saxe et al. (2013),
https://arxiv.org/abs/1312.6120.

>>> import numpy as np
>>> glorot_uniform(np.random.default_rng(0), (2, 4), 2, 4).round(3)
array([[ 0.274, -0.46 , -0.918, -0.967],
       [ 0.627,  0.826,  0.213,  0.459]])
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella import elsewhere, registry
from lamella.arguments import choice, number, positive
from lamella.errors import ArgumentError, shown
from lamella.hookspecs import hookimpl
from lamella.protocol.configured import Configured

__all__ = [
    "Constant",
    "Initializer",
    "TruncatedNormal",
    "VarianceScaling",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "initializer_of",
    "lecun_normal",
    "lecun_uniform",
    "ones",
    "orthogonal",
    "uniform",
    "zeros",
]

Shape = tuple[int, ...]
Drawing = Callable[["np.random.Generator", Shape, int | None, int | None], np.ndarray]  # loaded when needed

_MOST = 1 << 48  # entries of an array


class Initializer(Configured):
    """Draws the first values of a parameter, as an object with settings. A subclass defines ``draw``.

    >>> import lamella as lm
    >>> class Ramp(lm.initializers.Initializer):
    ...     def __init__(self, end: float = 1.0):
    ...         self.end = end
    ...     def draw(self, rng, shape, fan_in, fan_out):
    ...         return np.linspace(0.0, self.end, math.prod(shape)).reshape(shape)
    >>> Ramp(3.0)(np.random.default_rng(0), (4,))
    array([0., 1., 2., 3.])
    """

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int | None, fan_out: int | None) -> np.ndarray:
        """Return values of a shape; fans are None where the layer does not say them."""
        raise NotImplementedError(f"{type(self).__name__} defines no draw")

    def __call__(
        self, rng: np.random.Generator, shape: Shape, fan_in: int | None = None, fan_out: int | None = None
    ) -> np.ndarray:
        """Draw values; what is no generator, no shape, or no number of inputs or outputs is refused."""
        return self.draw(*_arguments(type(self).__name__, rng, shape, fan_in, fan_out))


INITIALIZERS = registry.Kind("initializers", "lamella.initializers.Initializer", base=Initializer, functions=True)


def initializer_of(value: Any) -> Callable[..., Any]:
    """Return what draws values, from a registered name, a function or an object."""
    found = INITIALIZERS.find(value) if isinstance(value, str) else value
    made: Callable[..., Any] = found() if isinstance(found, type) else found
    return made


def _arguments(
    name: str, rng: Any, shape: Any, fan_in: Any, fan_out: Any
) -> tuple[np.random.Generator, Shape, int | None, int | None]:
    """What an initializer is called with, checked."""
    if not isinstance(rng, np.random.Generator):
        raise ArgumentError(f"{name}: rng: expected a numpy.random.Generator, got {shown(rng)}")
    if not isinstance(shape, tuple | list):
        raise ArgumentError(f"{name}: shape: expected a tuple of sizes, got {shown(shape)}")
    shape = tuple(positive(size, f"{name}: shape", minimum=0) for size in shape)
    if math.prod(shape) > _MOST:
        raise ArgumentError(f"{name}: shape: expected one that memory holds, got {shown(shape)}")
    inputs, outputs = (
        None if fan is None else positive(fan, f"{name}: {label}", minimum=0)
        for label, fan in (("fan_in", fan_in), ("fan_out", fan_out))
    )
    return rng, shape, inputs, outputs


def _checked(draw: Drawing) -> Drawing:
    """Let a function refuse what is no generator, no shape, or no number of inputs or outputs."""

    @functools.wraps(draw)
    def initializer(
        rng: np.random.Generator, shape: Shape, fan_in: int | None = None, fan_out: int | None = None
    ) -> np.ndarray:
        return draw(*_arguments(draw.__name__, rng, shape, fan_in, fan_out))

    return initializer


@_checked
def zeros(rng: np.random.Generator, shape: Shape, fan_in: int | None = None, fan_out: int | None = None) -> np.ndarray:
    """All 0."""
    return np.zeros(shape)


@_checked
def ones(rng: np.random.Generator, shape: Shape, fan_in: int | None = None, fan_out: int | None = None) -> np.ndarray:
    """All 1."""
    return np.ones(shape)


@_checked
def uniform(
    rng: np.random.Generator, shape: Shape, fan_in: int | None = None, fan_out: int | None = None
) -> np.ndarray:
    """Uniform in [-0.05, 0.05), whatever the shape."""
    return rng.uniform(-0.05, 0.05, shape)


@_checked
def orthogonal(
    rng: np.random.Generator, shape: Shape, fan_in: int | None = None, fan_out: int | None = None
) -> np.ndarray:
    """Orthonormal rows, or columns where there are fewer of them; axes beyond the second count as columns.

    >>> q = orthogonal(np.random.default_rng(0), (3, 5))
    >>> np.allclose(q @ q.T, np.eye(3))
    True
    """
    if len(shape) < 2:
        raise ArgumentError(f"orthogonal: expected two axes or more, got shape {shape}; use another initializer")
    rows, columns = shape[0], math.prod(shape[1:])
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.where(np.diagonal(r) < 0.0, -1.0, 1.0)  # makes every rotation equally likely
    return (q if rows >= columns else q.T).reshape(shape)


def _scaled(name: str, scale: float, mean_fan: bool, distribution: str) -> Drawing:
    def initializer(
        rng: np.random.Generator, shape: Shape, fan_in: int | None = None, fan_out: int | None = None
    ) -> np.ndarray:
        fan_in, fan_out = _fans(name, shape, fan_in, fan_out if mean_fan or fan_out else 1)
        variance = scale / max(1.0, (fan_in + fan_out) / 2 if mean_fan else fan_in)
        if distribution == "normal":
            return rng.normal(0.0, math.sqrt(variance), shape)
        return rng.uniform(-math.sqrt(3.0 * variance), math.sqrt(3.0 * variance), shape)

    fan = "((fan_in + fan_out) / 2)" if mean_fan else "fan_in"
    initializer.__name__ = initializer.__qualname__ = name
    initializer.__doc__ = f"{distribution.capitalize()} around 0, with variance {scale:g} / {fan}."
    return _checked(initializer)


class Constant(Initializer):
    """One value everywhere.

    Arguments:
        value: the value.

    >>> Constant(0.5)(np.random.default_rng(0), (3,))
    array([0.5, 0.5, 0.5])
    """

    def __init__(self, value: float = 0.0):
        self.value = number(value, "value")

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int | None, fan_out: int | None) -> np.ndarray:
        return np.full(shape, self.value)


class TruncatedNormal(Initializer):
    """Normal values, of which those beyond two standard deviations from the mean are drawn again.

    Their own standard deviation is 0.88 times ``stddev``.

    Arguments:
        mean: the mean.
        stddev: the standard deviation before values are drawn again, more than 0.

    Source: https://keras.io/api/layers/initializers/#truncatednormal-class

    >>> values = TruncatedNormal(stddev=0.5)(np.random.default_rng(0), (10_000,))
    >>> bool(abs(values).max() <= 1.0), round(float(values.std()), 2)
    (True, 0.44)
    """

    def __init__(self, mean: float = 0.0, stddev: float = 0.05):
        self.mean = number(mean, "mean")
        self.stddev = number(stddev, "stddev", above=0.0)

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int | None, fan_out: int | None) -> np.ndarray:
        return self.mean + self.stddev * _truncated(rng, shape)


def _truncated(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Standard normal values within [-2, 2]."""
    values = rng.standard_normal(shape)
    beyond = np.abs(values) > 2.0
    while beyond.any():
        values[beyond] = rng.standard_normal(int(beyond.sum()))
        beyond = np.abs(values) > 2.0
    return values


_TRUNCATED = 0.87962566103423978  # the standard deviation of standard normal values within [-2, 2]


class VarianceScaling(Initializer):
    """Values around 0 with the variance ``scale / fan``, so that a layer keeps the size of what goes through it.

    Arguments:
        scale: 2 for relu, 1 for functions that are straight at 0.
        mode: "fan_in" to keep the size of activations, "fan_out" that of gradients, "fan_avg" for the mean of both.
        distribution: "truncated_normal", which is drawn again beyond two standard deviations and widened to the
            variance, "normal" or "uniform".

    Source: https://keras.io/api/layers/initializers/#variancescaling-class

    >>> values = VarianceScaling(2.0)(np.random.default_rng(0), (200, 100))
    >>> round(float(values.var()) * 200, 1)
    2.0
    """

    def __init__(self, scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal"):
        self.scale = number(scale, "scale", above=0.0)
        self.mode = choice(mode, "mode", ("fan_in", "fan_out", "fan_avg"))
        self.distribution = choice(distribution, "distribution", ("truncated_normal", "normal", "uniform"))

    def draw(self, rng: np.random.Generator, shape: Shape, fan_in: int | None, fan_out: int | None) -> np.ndarray:
        inputs, outputs = _fans(
            "VarianceScaling",
            shape,
            1 if fan_in is None and self.mode == "fan_out" else fan_in,  # a fan that makes no difference
            1 if fan_out is None and self.mode == "fan_in" else fan_out,
        )
        fan = {"fan_in": inputs, "fan_out": outputs, "fan_avg": (inputs + outputs) / 2}[self.mode]
        deviation = math.sqrt(self.scale / max(1.0, fan))
        if self.distribution == "uniform":
            return rng.uniform(-math.sqrt(3.0) * deviation, math.sqrt(3.0) * deviation, shape)
        if self.distribution == "normal":
            return rng.normal(0.0, deviation, shape)
        return deviation / _TRUNCATED * _truncated(rng, shape)


glorot_uniform = _scaled("glorot_uniform", 1.0, True, "uniform")
glorot_normal = _scaled("glorot_normal", 1.0, True, "normal")
he_uniform = _scaled("he_uniform", 2.0, False, "uniform")
he_normal = _scaled("he_normal", 2.0, False, "normal")
lecun_uniform = _scaled("lecun_uniform", 1.0, False, "uniform")
lecun_normal = _scaled("lecun_normal", 1.0, False, "normal")


def _fans(name: str, shape: Shape, fan_in: int | None, fan_out: int | None) -> tuple[int, int]:
    """Take (in, out) for two axes and (filters, channels, *window) for more, where the layer did not say."""
    if fan_in is not None and fan_out is not None:
        return fan_in, fan_out
    if len(shape) < 2:
        raise ArgumentError(
            f"{name}: fan_in and fan_out don't follow from shape {shape}; use an initializer that needs none, such as "
            "'uniform', 'zeros' or 'ones', or let the layer give them: declare.parameter(..., fan_in=, fan_out=)"
        )
    window = math.prod(shape[2:])
    found = shape if len(shape) == 2 else (shape[1] * window, shape[0] * window)
    return found[0] if fan_in is None else fan_in, found[1] if fan_out is None else fan_out


@hookimpl
def lamella_initializers() -> dict[str, Any]:
    scaled = (glorot_uniform, glorot_normal, he_uniform, he_normal, lecun_uniform, lecun_normal)
    return {
        **{function.__name__: function for function in (zeros, ones, uniform, orthogonal, *scaled)},
        "constant": Constant,
        "truncated_normal": TruncatedNormal,
        "variance_scaling": VarianceScaling,
        "kaiming_normal": he_normal,
        "kaiming_uniform": he_uniform,
        "xavier_normal": glorot_normal,
        "xavier_uniform": glorot_uniform,
    }


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        raise elsewhere.missing(__name__, name, elsewhere.instead(elsewhere.INITIALIZERS, name))


def __dir__() -> list[str]:
    return __all__
