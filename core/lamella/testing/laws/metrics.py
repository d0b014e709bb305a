"""The laws that every metric obeys, each a function of a `MetricCase`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lamella.metrics import Metric
from lamella.protocol import ArraySpec
from lamella.protocol.specimen import Specimen
from lamella.testing.checks import Checks
from lamella.testing.comparison import Broken, compare
from lamella.testing.drawing import draw_array
from lamella.testing.laws.configuration import configuration

__all__ = ["METRIC_LAWS", "MetricCase", "takes"]

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]
ROWS = 19


class MetricCase(Checks):
    """A metric and what its laws ask about it."""

    def draw(self, rows: int = ROWS, *, few: bool = False) -> tuple[Array, Array]:
        """Random predictions and targets; every second prediction is close to its target.

        With ``few``, integers are the two lowest ones, so that a metric that looks at one class finds it.
        """
        specs = self.specimen.inputs
        if few:
            specs = tuple(spec if spec.is_float or spec.low is None else _lowest(spec) for spec in specs)
        names = dict.fromkeys(n for spec in specs for n in spec.shape if isinstance(n, str) and n != "N")
        rng = np.random.default_rng([self.seed, 2])
        prediction, target = (draw_array(spec, rows, dict.fromkeys(names, 3), rng) for spec in specs)
        return _half_right(self.specimen.inputs[0], prediction, target), target

    def weights(self, rows: int = ROWS) -> Array:
        """Random sample weights."""
        return np.random.default_rng([self.seed, 3]).uniform(0.5, 2.0, rows)

    def update(self, prediction: Array, target: Array, weight: Array | None = None) -> Arrays:
        """The sums of a batch, as arrays."""
        with np.errstate(all="ignore"):
            given = self.specimen.subject.update(prediction, target, weight)
        if not isinstance(given, tuple):
            raise Broken(
                f"update returned {type(given).__name__}; expected a tuple of sums", cause="return (total, count)"
            )
        return tuple(map(np.asarray, given))

    def merge(self, parts: list[Arrays]) -> Arrays:
        """The sums of some batches together, as arrays."""
        with np.errstate(all="ignore"):
            given = self.specimen.subject.merge(parts)
        if not isinstance(given, tuple):
            raise Broken(f"merge returned {type(given).__name__}; expected a tuple of sums", cause="return a tuple")
        return tuple(map(np.asarray, given))

    def result(self, sums: Arrays) -> Array:
        """The metric of some sums, an array without axes if it is a number."""
        with np.errstate(all="ignore"):
            value = self.specimen.subject.result(sums)
        is_array = isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
        if isinstance(value, bool) or not (is_array or isinstance(value, int | float | np.floating | np.integer)):
            raise Broken(
                f"result returned {type(value).__name__}; expected a number, or an array of numbers",
                cause="return float(...)",
            )
        return np.asarray(value, "float64")

    @property
    def adds_up(self) -> bool:
        """Whether sums are added, and not put together in another way."""
        return type(self.specimen.subject).merge is Metric.merge

    def compare(self, expected: Arrays, given: Arrays, what: str, cause: str, sides: tuple[str, str]) -> None:
        """Raise unless the results of two tuples of sums agree, and the sums where these are added up."""
        results = [{"the result": self.result(sums)} for sums in (expected, given)]
        if not self.adds_up:
            compare(results[0], results[1], what, 1e-9, least=0.0, cause=cause, sides=sides)
            return
        if [a.shape for a in expected] != [b.shape for b in given]:
            shapes = [", ".join(str(one.shape) for one in sums) or "nothing" for sums in (expected, given)]
            raise Broken(
                f"{what}: the shapes of the sums are {shapes[0]} and {shapes[1]}; they must be equal",
                cause="sums have a shape of their own, whatever the number of rows",
            )
        pair = [
            {f"sum {k}": value for k, value in enumerate(sums)} | result
            for sums, result in zip((expected, given), results, strict=True)
        ]
        compare(pair[0], pair[1], what, 1e-9, least=0.0, cause=cause, sides=sides)


def _lowest(spec: ArraySpec) -> ArraySpec:
    """The spec of the two lowest integers of a range."""
    assert spec.low is not None
    return spec.replace(high=min(spec.low + 2, np.inf if spec.high is None else spec.high))


def _half_right(spec: ArraySpec, prediction: Array, target: Array) -> Array:
    """Predictions of which every second row is that of its target, where both have forms that are known."""
    changed = prediction.copy()
    if prediction.dtype.kind == "f" and target.shape == prediction.shape:
        near = target.astype(prediction.dtype)
    elif prediction.dtype.kind == "f" and target.dtype.kind in "iu" and target.shape == prediction.shape[:-1]:
        near = (target[..., None] == np.arange(prediction.shape[-1])).astype(prediction.dtype)
    else:
        return changed
    low, high = -np.inf if spec.low is None else spec.low, np.inf if spec.high is None else spec.high
    changed[::2] = np.clip(near[::2], low, np.nextafter(high, -np.inf))
    return changed


def takes(metric: Any, inputs: tuple[ArraySpec, ...]) -> bool:
    """Whether a metric takes predictions and targets of such specs."""
    case = MetricCase(Specimen(metric, inputs))
    try:
        case.update(*case.draw())
    except Exception:  # as metrics refuse data
        return False
    return True


def purity(case: MetricCase) -> str:
    """Predictions, targets, weights and sums stay as they are, and equal calls give equal results."""
    case.check(_writes_nothing)
    case.check(_is_steady)
    return "nothing is written, equal calls give equal results"


def _writes_nothing(case: MetricCase) -> None:
    prediction, target = case.draw()
    arguments = {"the prediction": prediction, "the target": target, "the weight": case.weights()}
    before = {name: value.copy() for name, value in arguments.items()}
    sums = case.update(*arguments.values())
    arguments |= {f"sum {k}": value for k, value in enumerate(sums)}
    before |= {f"sum {k}": value.copy() for k, value in enumerate(sums)}
    case.result(sums)
    for name, value in arguments.items():
        if value.tobytes() != before[name].tobytes():
            method = "result" if name.startswith("sum") else "update"
            raise Broken(
                f"{method} wrote into {name}",
                subject=name,
                cause="an operator such as -= or out=, which changes the user's own arrays; make a new array",
            )


def _is_steady(case: MetricCase) -> None:
    first = case.update(*case.draw())  # drawn for each call, since another check tells of writes
    copies = tuple(value.copy() for value in first)
    case.update(*case.draw(2))
    cause = "something outlives a call, such as a total that is kept in a closure or a global; return the sums"
    case.compare(copies, first, "sums before and after a later call", cause, ("before", "after"))
    case.compare(
        first, case.update(*case.draw()), "results of equal calls", cause, ("the first time", "the second time")
    )


def sums(case: MetricCase) -> str:
    """Sums over batches add up to those of the whole, and give its result."""
    for sizes in ((4, ROWS - 4), (1, ROWS - 1), (1,) * ROWS):
        case.check(_adds_up, sizes, False)
        case.check(_adds_up, sizes, True)
    return f"{_told(case.result(case.update(*case.draw())))} from batches and from the whole"


def _told(result: Array, digits: int = 4) -> str:
    """A result in a few words, on one line."""
    if not result.ndim:
        return f"{float(result):.{digits}g}"
    return " ".join(np.array2string(result, precision=digits, threshold=6, edgeitems=2).split())


def _adds_up(case: MetricCase, sizes: tuple[int, ...], few: bool) -> None:
    weights, data = case.weights(), case.draw(few=few)
    whole = case.update(*case.draw(few=few), weights)
    ends = np.cumsum(sizes)[:-1]
    parts = [case.update(*part) for part in zip(*(np.split(a, ends) for a in (*data, weights)), strict=True)]
    what = f"{ROWS} rows in one batch and in batches of {'+'.join(map(str, sizes))}"
    shapes = [[value.shape for value in part] for part in parts]
    if case.adds_up and shapes.count(shapes[0]) < len(shapes):
        case.compare(whole, parts[0], what, "", ("", ""))
    cause = "a mean over the batch where a sum is due; return the total and the count, and divide in result"
    if not case.adds_up:
        cause = "merge puts the sums of batches together in another way than update does those of rows"
    total = case.merge(parts)
    case.compare(whole, total, what, cause, ("one batch", "several"))


def weights(case: MetricCase) -> str:
    """No weight is a weight of 1, a row of weight 0 does not count, and one of weight 2 counts as two rows."""
    case.check(_weights_of_1)
    case.check(_whole_weights, False)
    case.check(_whole_weights, True)
    return "weights of 0 to 3 count rows"


def _weights_of_1(case: MetricCase) -> None:
    cause = "sum(weight) is what counts the rows; without weights it is their number"
    sides = "without weights", "with ones"
    case.compare(
        case.update(*case.draw()), case.update(*case.draw(), np.ones(ROWS)), "no weights and weights of 1", cause, sides
    )


def _whole_weights(case: MetricCase, few: bool) -> None:
    prediction, target = case.draw(few=few)
    counts = np.arange(1, ROWS + 1) % 4
    rows = np.repeat(np.arange(ROWS), counts)
    repeated, weighted = (
        case.update(prediction[rows], target[rows]),
        case.update(prediction, target, counts.astype("float64")),
    )
    one, two = case.result(repeated), case.result(weighted)
    if one.shape != two.shape or not np.allclose(one, two, rtol=1e-9, atol=1e-12, equal_nan=True):
        both = _told(one, 7), _told(two, 7)
        raise Broken(
            f"the result is {both[0]} for rows that are there 0 to 3 times, and {both[1]} for those weights",
            subject="the result",
            cause="the weight is left out, or multiplies only some of the sums",
        )


def no_rows(case: MetricCase) -> str:
    """A batch without rows has sums, which change no others, and a result: NaN, if nothing else fits."""
    case.check(_empty_is_nothing)
    empty = case.check(_result_of_nothing)
    return "" if empty is None else f"no rows give {_told(empty)}"


def _result_of_nothing(case: MetricCase) -> Array:
    try:
        return case.result(case.update(*(a[:0] for a in case.draw())))
    except Broken:
        raise
    except Exception as error:  # the metric's own code may raise anything
        raise Broken(
            f"fails for no rows: {type(error).__name__}: {error}",
            cause="a division by the count, or the maximum of an empty array; return math.nan where the count is 0",
        ) from error


def _empty_is_nothing(case: MetricCase) -> None:
    whole = case.update(*case.draw())
    try:
        empty = case.update(*(a[:0] for a in case.draw()))
    except Exception:  # told by the other check
        return
    cause = "sums of no rows are 0"
    if not case.adds_up or [a.shape for a in whole] == [a.shape for a in empty]:
        total = case.merge([whole, empty])
        case.compare(whole, total, "sums with and without a batch of no rows", cause, ("without", "with"))
    else:
        case.compare(whole, empty, "sums of some rows and of none", cause, ("", ""))


METRIC_LAWS: dict[str, Callable[[Any], str]] = {
    "purity": purity,
    "sums": sums,
    "weights": weights,
    "no rows": no_rows,
    "round trip": configuration,
}
