"""The table of functions that a traced graph can write down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Table", "Traceable"]

Function = Callable[..., Any]


class Traceable(NamedTuple):
    """How a function of the namespace is written into a graph.

    Attributes:
        write: ``write(graph, *arguments)`` adds nodes and returns the result.
        elementwise: it is computed on what an array holds; what only repeats stays unrepeated.
        folds: NumPy's function of the same name computes it where all arguments are known.
    """

    write: Function
    elementwise: bool = False
    folds: bool = True


class Table(dict[str, Traceable]):
    """Functions by name. The decorators add a function under its own name, without the underscore at its end."""

    def _add(self, function: Function, **how: bool) -> Function:
        self[function.__name__.rstrip("_")] = Traceable(function, **how)
        return function

    def function(self, function: Function) -> Function:
        """Add a function of whole arrays."""
        return self._add(function)

    def elementwise(self, function: Function) -> Function:
        """Add a function that treats every element by itself."""
        return self._add(function, elementwise=True)

    def unfolded(self, function: Function) -> Function:
        """Add a function that keeps constants as small as they are held, and so is not left to NumPy."""
        return self._add(function, folds=False)
