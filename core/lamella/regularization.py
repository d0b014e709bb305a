"""What training may do to parameters by name: penalties on them, and constraints that hold them within bounds.

`fit` takes both by patterns of names, those of shells, as in ``model.freeze``.

>>> import numpy as np
>>> import lamella as lm
>>> from lamella_layers import Dense
>>> model = lm.Sequential([Dense(1)], input_shape=2)
>>> options = {"penalties": {"*.kernel": L2(1e-4)}, "constraints": {"*.kernel": MaxNorm(0.5)}, "clip_norm": 1.0}
>>> loss = model.train_on_batch([[1, 2]], [[3]], loss="mean_squared_error", optimizer="sgd", **options)
>>> round(float(np.linalg.norm(model.parameters["dense_1.kernel"])), 4)
0.5
"""

from __future__ import annotations

from typing import Any

from lamella.arguments import number, positive
from lamella.protocol.configured import Configured
from lamella.protocol.declare import ArrayDeclaration

__all__ = [
    "L1",
    "L2",
    "Constraint",
    "MaxNorm",
    "Penalty",
]


class Penalty(Configured):
    """What a parameter adds to the loss, and the gradient of that, in array code of any backend.

    >>> import numpy as np
    >>> import lamella as lm
    >>> class Around(lm.regularization.Penalty):
    ...     def __init__(self, center: float):
    ...         self.center = center
    ...     def value(self, xp, p):
    ...         return xp.sum((p - self.center) * (p - self.center))
    ...     def gradient(self, xp, p):
    ...         return 2.0 * (p - self.center)
    >>> float(Around(1.0).value(np, np.array([1.0, 3.0])))
    4.0
    """

    def value(self, xp: Any, p: Any) -> Any:
        """Return the penalty of a parameter, a number or an array without axes."""
        raise NotImplementedError(f"{type(self).__name__} defines no value")

    def gradient(self, xp: Any, p: Any) -> Any:
        """Return the gradient of ``value``, of the parameter's shape."""
        raise NotImplementedError(f"{type(self).__name__} defines no gradient")


class L1(Penalty):
    """``strength * sum(|p|)``, which draws small entries to zero; its gradient is ``strength * sign(p)``.

    Source: https://keras.io/api/layers/regularizers/

    >>> import numpy as np
    >>> float(L1(0.5).value(np, np.array([3.0, -1.0]))), L1(0.5).gradient(np, np.array([3.0, -1.0]))
    (2.0, array([ 0.5, -0.5]))
    """

    def __init__(self, strength: float = 0.01):
        self.strength = number(strength, "strength", minimum=0.0)

    def value(self, xp: Any, p: Any) -> Any:
        return self.strength * xp.sum(xp.abs(p))

    def gradient(self, xp: Any, p: Any) -> Any:
        return self.strength * xp.sign(p)


class L2(Penalty):
    """``strength * sum(p^2)``, as in Keras; its gradient is ``2 strength p``. PyTorch's weight decay is twice that.

    Source: https://keras.io/api/layers/regularizers/

    >>> import numpy as np
    >>> float(L2(0.5).value(np, np.array([3.0, -1.0]))), L2(0.5).gradient(np, np.array([3.0, -1.0]))
    (5.0, array([ 3., -1.]))
    """

    def __init__(self, strength: float = 0.01):
        self.strength = number(strength, "strength", minimum=0.0)

    def value(self, xp: Any, p: Any) -> Any:
        return self.strength * xp.sum(p * p)

    def gradient(self, xp: Any, p: Any) -> Any:
        return 2.0 * self.strength * p


class Constraint(Configured):
    """Bounds that a parameter is put back into after each step, in array code of any backend.

    >>> import numpy as np
    >>> import lamella as lm
    >>> class NonNegative(lm.regularization.Constraint):
    ...     def apply(self, xp, p):
    ...         return xp.clip(p, 0.0, None)
    >>> NonNegative().apply(np, np.array([1.0, -1.0]))
    array([1., 0.])
    """

    def apply(self, xp: Any, p: Any) -> Any:
        """Return the parameter within bounds, of the same shape and dtype; write to nothing."""
        raise NotImplementedError(f"{type(self).__name__} defines no apply")

    def bound(self, xp: Any, p: Any, declared: ArrayDeclaration) -> Any:
        """Return ``apply``; for constraints that need to know what a layer said of the parameter."""
        return self.apply(xp, p)


class MaxNorm(Constraint):
    """At most a given length for the weights that lead into each unit; longer ones are scaled down to it.

    Arguments:
        limit: the largest Euclidean norm, above 0.
        axis: the axes that are one unit's weights. None means those that the layer declares, as `Conv2DTranspose` does,
            else axis 0 of kernels with two axes, (in, units), all but axis 0 of kernels with more, (filters, channels,
            height, width), and all of an array with one axis.

    Source: https://keras.io/api/layers/constraints/, after https://jmlr.org/papers/v15/srivastava14a.html

    >>> import numpy as np
    >>> MaxNorm(1.0).apply(np, np.array([[3.0, 0.3], [4.0, 0.4]])).round(6)
    array([[0.6, 0.3],
           [0.8, 0.4]])
    """

    def __init__(self, limit: float = 2.0, *, axis: int | tuple[int, ...] | None = None):
        self.limit = number(limit, "limit", above=0.0)
        axes = axis if axis is None or isinstance(axis, tuple) else (axis,)
        self.axis = None if axes is None else tuple(positive(one, "axis", minimum=0) for one in axes)

    def apply(self, xp: Any, p: Any) -> Any:
        axis = self.axis
        if axis is None:
            axis = (0,) if p.ndim < 3 else tuple(range(1, p.ndim))
        norm = xp.sqrt(xp.sum(p * p, axis=axis, keepdims=True))
        return p * (self.limit / xp.clip(norm, self.limit, None))

    def bound(self, xp: Any, p: Any, declared: ArrayDeclaration) -> Any:
        unit = declared.unit_axis
        if self.axis is not None or unit is None:
            return self.apply(xp, p)
        # (G*C, ...) -> (G, C, ...): the units of a group see its inputs alone
        by_group = xp.reshape(p, (declared.groups, p.shape[0] // declared.groups, *p.shape[1:]))
        inward = tuple(axis for axis in range(1, by_group.ndim) if axis != unit + 1)
        return xp.reshape(self.replace(axis=inward).apply(xp, by_group), p.shape)


def __dir__() -> list[str]:
    return __all__
