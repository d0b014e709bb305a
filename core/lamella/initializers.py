"""Initializers: the first values of parameters, drawn in float64 by ``(rng, shape, fan_in, fan_out) -> array``.

A family of four pairs: variance ``scale / fan`` with fan_in, fan_out or their mean, drawn from a uniform or a normal
distribution. ``fan_in`` counts the inputs that one output is summed from, ``fan_out`` the outputs that one input
goes to. Normal ones reach as far as they like, as in the papers and in PyTorch; Keras draws again what is beyond two
standard deviations, and widens the rest to the same variance. "xavier" and "kaiming" are other names for "glorot" and
"he", after the same authors. Sources: Glorot and Bengio (2010), https://proceedings.mlr.press/v9/glorot10a.html; He
et al. (2015), https://arxiv.org/abs/1502.01852; LeCun et al., Efficient BackProp (1998); Saxe et al. (2013),
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

import numpy as np

from lamella import registry
from lamella.arguments import positive
from lamella.errors import ArgumentError, shown
from lamella.hookspecs import hookimpl

__all__ = [
    "INITIALIZERS",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "ones",
    "orthogonal",
    "uniform",
    "zeros",
]

Shape = tuple[int, ...]
Initializer = Callable[["np.random.Generator", Shape, int | None, int | None], np.ndarray]  # loaded when needed

_MOST = 1 << 48  # entries of an array

INITIALIZERS = registry.Kind("initializers")


def _checked(draw: Initializer) -> Initializer:
    """Let an initializer refuse what is no generator, no shape, or no number of inputs or outputs."""

    @functools.wraps(draw)
    def initializer(
        rng: np.random.Generator, shape: Shape, fan_in: int | None = None, fan_out: int | None = None
    ) -> np.ndarray:
        name = draw.__name__
        if not isinstance(rng, np.random.Generator):
            raise ArgumentError(f"{name}: rng: expected a numpy.random.Generator, got {shown(rng)}")
        if not isinstance(shape, tuple | list):
            raise ArgumentError(f"{name}: shape: expected a tuple of sizes, got {shown(shape)}")
        shape = tuple(positive(size, f"{name}: shape", minimum=0) for size in shape)
        if math.prod(shape) > _MOST:
            raise ArgumentError(f"{name}: shape: expected one that memory holds, got {shown(shape)}")
        fans = [
            None if fan is None else positive(fan, f"{name}: {label}", minimum=0)
            for label, fan in (("fan_in", fan_in), ("fan_out", fan_out))
        ]
        return draw(rng, shape, *fans)

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


def _scaled(name: str, scale: float, mean_fan: bool, distribution: str) -> Initializer:
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
def lamella_initializers() -> dict[str, Initializer]:
    scaled = (glorot_uniform, glorot_normal, he_uniform, he_normal, lecun_uniform, lecun_normal)
    return {
        **{function.__name__: function for function in (zeros, ones, uniform, orthogonal, *scaled)},
        "kaiming_normal": he_normal,
        "kaiming_uniform": he_uniform,
        "xavier_normal": glorot_normal,
        "xavier_uniform": glorot_uniform,
    }
