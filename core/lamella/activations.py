"""What an activation is: a pair of pure elementwise or axis-wise functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lamella import registry
from lamella.arguments import flag, function

__all__ = ["ACTIVATIONS", "ActivationFunction"]


@dataclasses.dataclass(frozen=True)
class ActivationFunction:
    """``forward(xp, x) -> y`` and ``backward(xp, x, y, dy) -> dx``.

    Used by the layer Activation, by every ``activation=`` argument, and inside `lamella.scan`. A pair whose functions
    take ``axis`` works along an axis, the last one unless told otherwise.

    >>> import lamella as lm
    >>> square = lm.ActivationFunction(lambda xp, x: x * x, lambda xp, x, y, dy: 2.0 * x * dy)
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    probabilities: bool = False
    """Whether it makes probabilities of anything, so that losses on logits are the wrong ones after it."""

    uses_x: bool = True
    """Whether ``backward`` uses ``x``. Where it does not, it gets None, and ``x`` need not be kept for it."""

    def __post_init__(self) -> None:
        function(self.forward, "ActivationFunction: forward", "(xp, x) -> y")
        function(self.backward, "ActivationFunction: backward", "(xp, x, y, dy) -> dx")
        flag(self.probabilities, "ActivationFunction: probabilities")
        flag(self.uses_x, "ActivationFunction: uses_x")


ACTIVATIONS = registry.Kind("activations", "lamella.ActivationFunction", of=ActivationFunction)
