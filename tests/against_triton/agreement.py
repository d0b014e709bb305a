"""Whether two answers agree, and which differences are meant."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WORDS = ("says", "reason")  # for people, who need not read the same
TOLERANCE = 1e-6  # of floats, relative: both servers run the same onnxruntime, or one that is a release away


def differences(expected: Any, got: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two answers differ, such as "outputs/0/shape", and what each has there. Their words need not agree.

    >>> list(differences({"error": "400", "says": "no"}, {"error": "404", "says": "never"}))
    [('error', '400', '404')]
    """
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        for key in ("failed", "error"):  # no answer at all agrees with nothing, a refusal with none that is none
            if key in expected or key in got:
                if key == "failed" or expected.get(key) != got.get(key):
                    yield f"{where}/{key}".lstrip("/"), expected.get(key), got.get(key)
                return
        for key in [*expected, *(key for key in got if key not in expected)]:
            if key not in WORDS:
                yield from differences(expected.get(key), got.get(key), f"{where}/{key}".lstrip("/"))
    elif _is_list(expected) and _is_list(got) and len(expected) == len(got):
        for place, pair in enumerate(zip(expected, got, strict=True)):
            yield from differences(*pair, f"{where}/{place}".lstrip("/"))
    elif not _same(expected, got):
        yield where, expected, got


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _same(expected: Any, got: Any) -> bool:
    if isinstance(expected, float) and isinstance(got, float):
        return math.isclose(expected, got, rel_tol=TOLERANCE) or (math.isnan(expected) and math.isnan(got))
    return type(expected) is type(got) and expected == got


@dataclasses.dataclass(frozen=True)
class Meant:
    """A difference that is meant.

    Attributes:
        reason: why, for those who read the table.
        calls: the calls that show it, by name.
        where: where in their answers, as a pattern.
        ours: what lamella has there: one of these. Empty: anything.
    """

    reason: str
    calls: tuple[str, ...]
    where: str
    ours: tuple[Any, ...] = ()

    def explains(self, call: str, where: str, ours: Any) -> bool:
        """Whether a difference is this one."""
        return call in self.calls and fnmatch.fnmatchcase(where, self.where) and (not self.ours or ours in self.ours)
