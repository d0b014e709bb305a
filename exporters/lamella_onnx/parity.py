"""Whether onnxruntime agrees with the engine.

The comparison uses your samples and random batches drawn from their range, per feature; tolerances are relative to
each row's largest value.

What is compared: each output that onnxruntime gives, with the one that the engine gives for the same batch. The
batches: random ones of 1, 2 and 7 rows, and the samples. Three results are at hand: ``ort`` from onnxruntime, ``e32``
from the engine in the model's dtype, which is float32 in most models, and ``e64`` from the engine in float64.

The rule for floats. The scale of a row is the largest of three: its largest absolute value in ``e32``; 1; and the
largest absolute value of the median row. A row agrees

- if ``|ort - e32|`` is at most 1e-5 of its scale everywhere,
- or if ``|ort - e64|`` is at most 4 times the engine's own rounding, which is the largest ``|e32 - e64|`` of any row
  of the output, relative to that row's scale. Rows where this is above 1e-3 are left out, and have the first limit
  only: so large a difference is no rounding.

NaN and infinities must stand in the same places; integers, bools and strings must be equal.

An example: rows ``[1, 200]`` and ``[3, -4]`` have the scales 200 and 4, so the second row may differ by 4e-5. It
differs by 1e-4. But the engine's float32 is off by 0.002 in the first row, which is 1e-5 of its scale; so the second
row may differ by 4 times 1e-5 of its own scale.

>>> e32 = np.array([[1, 200], [3, -4]], "float32")
>>> ort, e64 = e32 + np.float32([[0, 0], [0, 1e-4]]), e32 + np.array([[0, 0.002], [0, 0]])
>>> error, allowed, rule = compare(ort, e32, e64, by_row=True)
>>> f"{error:.1e} where {allowed:.1e} is allowed: {rule}"
'1.0e-04 where 1.6e-04 is allowed: 4 x float32 rounding'
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

import lamella
from lamella import Model
from lamella.terminal import Column, Table, styled
from lamella_onnx.models import Trace, layer_outputs
from lamella_onnx.runtime import run, session
from lamella_onnx.validity import in_one_line

__all__ = [
    "PLAUSIBLE",
    "ROUNDING",
    "TOLERANCE",
    "Agreement",
    "Evidence",
    "ParityReport",
    "agreements",
    "blame",
    "compare",
    "engine_error",
    "examine",
    "predicted",
    "versions",
]

TOLERANCE = 1e-5  # of a row's scale
ROUNDING = 4.0  # times the engine's own rounding
PLAUSIBLE = 1e-3  # of a row's scale: a larger difference between float32 and float64 is no rounding

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]


# The rule


@dataclasses.dataclass(frozen=True)
class Agreement:
    """One output on one batch of inputs: error, what is allowed, and why, for the row that needs most."""

    output: str
    data: str
    values: int
    error: float
    allowed: float
    rule: str

    @property
    def agrees(self) -> bool:
        """Whether the error is allowed."""
        return self.error <= self.allowed


@np.errstate(over="ignore", invalid="ignore")
def compare(got: Array, e32: Array, e64: Array, *, by_row: bool = False) -> tuple[float, float, str]:
    """Return error, allowed error and limit of the row that is nearest to its limit, or beyond it.

    If some rows need the second limit, it is one of them. Without ``by_row`` the array is one row.
    """
    if got.dtype.kind == e32.dtype.kind == "U" and got.shape == e32.shape:  # strings, whose lengths are in the dtype
        return float(np.count_nonzero(got != e32)), 0.0, "equal"
    if got.shape != e32.shape or got.dtype != e32.dtype:
        return np.inf, 0.0, f"{got.dtype} {got.shape} for {e32.dtype} {e32.shape}"
    if e32.dtype.kind != "f":
        return float(np.max(np.abs(got.astype("float64") - e32.astype("float64")), initial=0.0)), 0.0, "equal"
    finite = np.isfinite(e32)
    same = np.array_equal(np.where(finite, 0, got), np.where(finite, 0, e32), equal_nan=True)
    if not same or not np.isfinite(got[finite]).all():
        return np.inf, 0.0, "NaN and infinity in the same places"
    whose = "row's scale" if by_row else "largest"
    rule = f"{TOLERANCE:g} of the {whose}"
    if not e32.size:
        return 0.0, TOLERANCE, rule
    x, y, exact = (_rows(values, finite, by_row) for values in (got, e32, e64))
    scale, error, own = _scale(y), _largest(x - y), _largest(y - exact)
    allowed = TOLERANCE * scale
    beyond = error > allowed
    plausible = own <= PLAUSIBLE * scale  # neither NaN nor infinity is
    rounding = ROUNDING * np.max(own / scale, where=plausible, initial=0.0)
    second = beyond & plausible & (rounding > TOLERANCE)  # the rows that the second limit is for
    error, allowed = np.where(second, _largest(x - exact), error), np.where(second, rounding * scale, allowed)
    told = beyond if beyond.any() else ~beyond
    worst = int(np.argmax(np.where(told, error / allowed, -1.0)))
    if second[worst]:
        rule = f"{ROUNDING:g} x float32 rounding"
    return float(error[worst]), float(allowed[worst]), rule


@np.errstate(over="ignore", invalid="ignore")
def engine_error(e32: Array, e64: Array) -> float:
    """Return by how much of a row's scale the engine's result differs from that in float64, in the worst row."""
    if e32.dtype.kind != "f" or not e32.size:
        return 0.0
    y, exact = (_rows(values, np.isfinite(e32), True) for values in (e32, e64))
    return float(np.max(_largest(y - exact) / _scale(y)))


def _rows(values: Array, finite: Array, by_row: bool) -> Array:
    return np.where(finite, values, 0).astype("float64").reshape(len(values) if by_row else 1, -1)


def _largest(rows: Array) -> Array:
    """The largest absolute value in each row."""
    return np.max(np.abs(rows), axis=1, initial=0.0)  # type: ignore[no-any-return]


def _scale(rows: Array) -> Array:
    """What a row's differences are relative to: values small by chance were computed from others as large."""
    sizes = _largest(rows)
    median: Array = np.sort(sizes)[(len(sizes) - 1) // 2]
    return np.maximum(np.maximum(1.0, sizes), median)


# The results


class Evidence(NamedTuple):
    """A batch of inputs, and what the engine gives for it, in the model's dtype and in float64."""

    data: str
    inputs: Arrays
    e32: Arrays
    e64: Arrays


def predicted(model: Model, exact: Model, batches: Mapping[str, Arrays]) -> list[Evidence]:
    """Run the engine on batches of inputs; ``exact`` is the model in float64.

    Raises:
        LamellaError: the engine refuses the inputs.
    """
    if model.device.runs_graphs:  # onnxruntime would be compared with itself
        model = model.copy(backend="numpy")
    return [Evidence(data, x, _outputs(model.predict(x)), _outputs(exact.predict(x))) for data, x in batches.items()]


def _outputs(given: Any) -> Arrays:
    return given if isinstance(given, tuple) else (given,)


def examine(
    loaded: onnxruntime.InferenceSession, evidence: Sequence[Evidence], names: Sequence[str]
) -> list[Agreement]:
    """Run onnxruntime on each batch and compare its outputs, by their names, with the engine's.

    Raises:
        ParityError: onnxruntime refuses what the engine takes.
    """
    names_of_inputs = [given.name for given in loaded.get_inputs()]
    found = []
    for batch in evidence:
        got = run(loaded, dict(zip(names_of_inputs, batch.inputs, strict=True)))
        found += agreements(batch, got, names)
    return found


def agreements(batch: Evidence, got: Mapping[str, Array], names: Sequence[str]) -> list[Agreement]:
    """Compare outputs of onnxruntime for a batch, by their names, with what the engine gives for it."""
    results = zip(names, batch.e32, batch.e64, strict=True)
    return [
        Agreement(name, batch.data, e32.size, *compare(got[name], e32, e64, by_row=True)) for name, e32, e64 in results
    ]


# The layer at fault


def blame(trace: Trace, model: Model, exact: Model, inputs: Arrays, data: str) -> str:
    """Name the first layer whose outputs differ, by showing what every layer gives."""
    e32, again, e64 = (layer_outputs(twin, inputs) for twin in (model, model, exact))
    for name, label in trace.labels.items():
        if any(a.tobytes() != b.tobytes() for a, b in zip(e32[name], again[name], strict=True)):
            return f"{label} gives something else each time on equal inputs; a layer must be a pure function"
    got = run(session(trace.exposed().SerializeToString()), dict(zip(model.input_names, inputs, strict=True)))
    for name, label in trace.labels.items():
        for k, (expected, exactly) in enumerate(zip(e32[name], e64[name], strict=True)):
            value = got[f"{name}:{k}"]
            error, allowed, rule = compare(value, expected, exactly, by_row=True)
            if not error <= allowed:
                operators = ", ".join(trace.graph.operators(name))
                return (
                    f"{label} is the first layer to differ, on the {data}: by {error:.3g} where {allowed:.3g} is "
                    f"allowed ({rule}){_place(value, expected)}. Its operators: {operators}"
                )
    return (
        f"the outputs differ on the {data}, though every layer agrees once its output is shown: it is onnxruntime's "
        "optimizer that makes something else of them"
    )


def _place(got: Array, expected: Array) -> str:
    """Where two arrays differ most, and by what."""
    if got.shape != expected.shape or not got.size:
        return ""
    with np.errstate(over="ignore", invalid="ignore"):
        gap = np.abs(got.astype("float64") - expected.astype("float64"))
    gap[np.isnan(gap)] = np.where(np.isnan(got) & np.isnan(expected) | (got == expected), 0.0, np.inf)[np.isnan(gap)]
    at = tuple(map(int, np.unravel_index(int(np.argmax(gap)), gap.shape)))
    return f"; at {list(at)} onnxruntime gives {got[at]:.7g}, the engine {expected[at]:.7g}"


# The report


def versions() -> dict[str, str]:
    """The versions that a proof depends on."""
    modules = (lamella, np, onnx, onnxruntime)
    return {module.__name__: module.__version__ for module in modules}


@dataclasses.dataclass(frozen=True, repr=False)
class ParityReport:
    """What onnxruntime and the engine agreed on. ``print(report)`` shows a table.

    Attributes:
        path: the file.
        opset: the operator set.
        ir: the IR version, that of the file format.
        versions: of lamella, numpy, onnx and onnxruntime.
        agreements: one for each output and batch of inputs.
        sealed: whether the proof has a hash of graph and weights, which finds every change of the file. Files of
            lamella 0.1 carry none.
    """

    path: str
    opset: int
    ir: int
    versions: dict[str, str]
    agreements: tuple[Agreement, ...]
    sealed: bool = True

    @property
    def agrees(self) -> bool:
        """Whether every output agrees."""
        return all(row.agrees for row in self.agreements)

    @property
    def max_error(self) -> float:
        """The largest of these errors."""
        return max(row.error for row in self.agreements)

    def to_json(self) -> str:
        """The report as it stands in a file's metadata, without the path."""
        return json.dumps({key: value for key, value in dataclasses.asdict(self).items() if key != "path"})

    def __repr__(self) -> str:
        verdict = "agrees" if self.agrees else "differs"
        return f"<ParityReport of {self.path}: onnxruntime {verdict}, largest error {self.max_error:.1e}>"

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def table(self) -> Table:
        """Return the report as a table with styles, which a terminal shows."""
        rules = list(dict.fromkeys(row.rule for row in self.agreements))
        several = len(rules) > 1  # a single one is told below the table
        headings = ("output", "input", "values", "error", "allowed", *["rule"] * several, "")
        title = f"{self.path}: opset {self.opset}, IR {self.ir}"
        table = Table((Column(name, right=name in ("values", "error", "allowed")) for name in headings), title)
        for row in self.agreements:
            mark = styled("agrees", "green") if row.agrees else styled("differs", "bold red")
            numbers = (f"{row.values:,}", f"{row.error:.1e}", f"{row.allowed:.1e}")
            table.add(in_one_line(row.output), row.data, *numbers, *[row.rule] * several, mark)
        told = [", ".join(f"{name} {version}" for name, version in self.versions.items())]
        if not several:
            told.insert(0, f"allowed: {rules[0]}")
        if not self.sealed:
            told.append("the file carries no hash: only what its proof runs is looked at; export it again to have one")
        table.notes = [styled(line, "dim") for line in told]
        return table
