"""Sizes that are unknown when a graph is traced: polynomials in symbols such as ``N`` (rows) and ``T`` (time)."""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lamella.errors import LayerError

__all__ = ["Dim", "Size", "TraceError", "broadcast", "same_shape", "same_size", "size_of"]

Monomial = tuple[str, ...]  # ("N", "T") is N*T, () is 1


class TraceError(LayerError):
    """A layer did something that can't be written down as ONNX."""


class Dim:
    """A size such as ``N``, ``2*N`` or ``N*T + 1``.

    Sizes may be added, multiplied and compared among each other, and divided where nothing remains. Whatever needs
    the number raises `TraceError`.

    >>> n, t = Dim.symbol("N"), Dim.symbol("T")
    >>> n * 3 * t, (n * 3 * t) // (n * t), n * 2 == n + n
    (3*N*T, 3, True)
    """

    __slots__ = ("terms",)
    __array_ufunc__ = None  # NumPy's ints leave operators to us

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms  # of highest degree first; no coefficient is 0

    @classmethod
    def symbol(cls, name: str) -> Dim:
        """Return the size of an axis of that name."""
        return cls((((name,), 1),))

    @staticmethod
    def _of(terms: Mapping[Monomial, int]) -> Size:
        kept = tuple(sorted(((m, c) for m, c in terms.items() if c), key=lambda term: (-len(term[0]), term[0])))
        if not kept:
            return 0
        return kept[0][1] if kept[0][0] == () else Dim(kept)

    def __add__(self, other: Any) -> Any:
        if (terms := self._other(other)) is None:
            return NotImplemented
        total = Counter(dict(self.terms))
        total.update(dict(terms))
        return self._of(total)

    def __mul__(self, other: Any) -> Any:
        if (terms := self._other(other)) is None:
            return NotImplemented
        product: Counter[Monomial] = Counter()
        for a, x in self.terms:
            for b, y in terms:
                product[tuple(sorted(a + b))] += x * y
        return self._of(product)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Any:
        return self * -1

    def __sub__(self, other: Any) -> Any:
        return NotImplemented if self._other(other) is None else self + other * -1

    def __rsub__(self, other: Any) -> Any:
        return self * -1 + other

    def __floordiv__(self, other: Any) -> Any:
        """Polynomial division, leading terms first; it must come out even."""
        if (divisor := _terms(other)) is None or not divisor:
            self._unknown(f"{self} // {other}")
        rest, quotient = Counter(dict(self.terms)), Counter[Monomial]()
        while rest:
            (lead, x), (by, y) = min(rest.items(), key=lambda term: (-len(term[0]), term[0])), divisor[0]
            left = Counter(lead)
            left.subtract(by)
            if x % y or min(left.values(), default=0) < 0:
                self._unknown(f"{self} // {other}, which may leave a remainder,")
            factor = tuple(sorted(left.elements()))
            quotient[factor] += x // y
            for m, c in divisor:
                rest[tuple(sorted(m + factor))] -= c * (x // y)
            rest = Counter({m: c for m, c in rest.items() if c})
        return self._of(quotient)

    def __rfloordiv__(self, other: Any) -> NoReturn:
        self._unknown(f"{other} // {self}")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            self._unknown(f"{self} == {other}")
        return self.terms == other.terms if isinstance(other, Dim) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.terms)

    def _other(self, other: Any) -> tuple[tuple[Monomial, int], ...] | None:
        if isinstance(other, float):
            self._unknown(f"{self} together with {other}")
        return _terms(other)

    def _unknown(self, what: str) -> NoReturn:
        symbols = sorted({name for monomial, _ in self.terms for name in monomial})
        which = "the batch size is" if symbols == ["N"] else f"the sizes {', '.join(symbols)} are"
        raise TraceError(
            f"{what} needs a number, but {which} not known when a model is exported: the graph must work for any. "
            "Hand x.shape[0] on to reshape, zeros, arange or broadcast_to, multiply it by ints, or divide an array by "
            "it; no int(), range(), if or division of the size itself"
        )

    def _number(self) -> NoReturn:
        self._unknown(f"int() or range() of {self}")

    def _compare(self, other: Any) -> NoReturn:
        self._unknown(f"comparing {self} with {other}")

    def _divide(self, other: Any) -> NoReturn:
        self._unknown(f"dividing {self} and {other}")

    def __bool__(self) -> NoReturn:
        self._unknown(f"'if' on {self}")

    __int__ = __index__ = __float__ = _number
    __lt__ = __le__ = __gt__ = __ge__ = _compare
    __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __pow__ = _divide

    def __repr__(self) -> str:
        parts = ["*".join([str(c), *m]) if not m or abs(c) != 1 else "-" * (c < 0) + "*".join(m) for m, c in self.terms]
        return " + ".join(parts).replace("+ -", "- ")


Size = int | Dim


def _terms(size: Any) -> tuple[tuple[Monomial, int], ...] | None:
    """The terms of an int or a Dim; None for anything else."""
    if isinstance(size, Dim):
        return size.terms
    return (((), int(size)),) if isinstance(size, numbers.Integral) else None


def same_size(a: Size, b: Size) -> bool:
    """Whether two sizes are equal; an int and a Dim never are."""
    return isinstance(a, Dim) == isinstance(b, Dim) and a == b


def same_shape(a: Sequence[Size], b: Sequence[Size]) -> bool:
    """Whether two shapes are equal."""
    return len(a) == len(b) and all(map(same_size, a, b))


def size_of(shape: Sequence[Size]) -> Size:
    """How many elements an array of a shape has."""
    return math.prod(shape)


def broadcast(*shapes: Sequence[Size]) -> tuple[Size, ...]:
    """The shape that arrays of some shapes have together."""
    rank = max(map(len, shapes), default=0)
    result: list[Size] = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, start=rank - len(shape)):
            if same_size(size, 1) or same_size(size, result[axis]):
                continue
            if not same_size(result[axis], 1):
                raise TraceError(f"shapes {' and '.join(map(str, map(tuple, shapes)))} can't be broadcast together")
            result[axis] = size
    return tuple(result)
