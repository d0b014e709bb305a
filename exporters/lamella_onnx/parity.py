"""Whether onnxruntime agrees with the engine: a rule, a report, and the layer at fault."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

import lamella
from lamella import Model
from lamella.backends import get_backend
from lamella.engine import infer
from lamella.terminal import Column, Table, styled
from lamella_onnx.rounding import largest, own_rounding
from lamella_onnx.trace import Trace

__all__ = [
    "OF_RUNTIME",
    "ROUNDING",
    "Agreement",
    "ParityError",
    "ParityReport",
    "blame",
    "compare",
    "examine",
    "predict",
    "run",
    "session",
]

TOLERANCE = 1e-5
ROUNDING = 4.0  # how many times the engine's own rounding error, or its own, onnxruntime may be off
PLAUSIBLE = 1e-3  # of the largest result: beyond it, a difference between float32 and float64 is no rounding
OF_RUNTIME = f"{ROUNDING:g} x onnxruntime's rounding"

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]


class ParityError(lamella.LamellaError, RuntimeError):
    """A graph that onnxruntime refuses, or whose results differ from the engine's, or that nothing can be tried on."""


# onnxruntime


def session(model: bytes) -> onnxruntime.InferenceSession:
    """Load a model into onnxruntime, as its users do by default, but for its log: our errors say what stands there."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise ParityError(f"onnxruntime {onnxruntime.__version__} can't load the graph: {error}") from error


def run(loaded: onnxruntime.InferenceSession, inputs: Arrays) -> Arrays:
    """Run a model on inputs in their order."""
    feeds = {given.name: array for given, array in zip(loaded.get_inputs(), inputs, strict=True)}
    try:
        return tuple(loaded.run(None, feeds))
    except Exception as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
        raise ParityError(f"onnxruntime {onnxruntime.__version__} can't run the graph on {shapes}: {error}") from error


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
def compare(
    got: Array, e32: Array, e64: Array, *, by_row: bool = False, rounding: Array | None = None
) -> tuple[float, float, str]:
    """Return error, allowed error and rule.

    ``|ort - e32| <= 1e-5 max(1, max|e32|)``, or ``max|ort - e64| <= 4 max|e32 - e64|`` where the engine's own
    float32 rounding is larger, though not beyond ``1e-3 max(1, max|e32|)``: more is no rounding. Integers must be
    equal; NaN and infinities must stand in the same places.

    With ``by_row``, each row is judged on its own scale, so that one with huge results allows the others nothing. By
    chance a row's results may be small, though it was computed from numbers as large as the others': its scale is that
    of the median row at least. By chance its rounding may be small, too: the largest of all rows counts, in proportion
    to their scales.

    ``rounding``, onnxruntime's own for each row, as `Rounding` has it, allows what neither of these does: ``max|ort -
    e64| <= 4 rounding``.

    What is returned is of a row beyond its limit, if there is one, else of one that needs the last of these rules; of
    several, of that nearest to its limit.
    """
    if got.shape != e32.shape or got.dtype != e32.dtype:
        return np.inf, 0.0, f"{got.dtype} {got.shape} for {e32.dtype} {e32.shape}"
    if e32.dtype.kind != "f":
        return float(np.max(np.abs(got.astype("float64") - e32.astype("float64")), initial=0.0)), 0.0, "equal"
    finite = np.isfinite(e32)
    if (
        not np.array_equal(np.where(finite, 0, got), np.where(finite, 0, e32), equal_nan=True)
        or not np.isfinite(got[finite]).all()
    ):
        return np.inf, 0.0, "NaN and infinity in the same places"
    whose = "row's scale" if by_row else "largest"
    rule = f"{TOLERANCE:g} of the {whose}"
    if not e32.size:
        return 0.0, TOLERANCE, rule
    x, y, exact = (
        np.where(finite, values, 0).astype("float64").reshape(len(values) if by_row else 1, -1)
        for values in (got, e32, e64)
    )
    sizes = largest(y)
    scale = np.maximum(np.maximum(1.0, sizes), np.sort(sizes)[(len(sizes) - 1) // 2])
    error, allowed = largest(x - y), TOLERANCE * scale
    off, own = largest(x - exact), largest(y - exact)
    share = own / scale
    plausible = share <= PLAUSIBLE  # neither NaN nor infinity is
    of_engine = np.where(plausible, ROUNDING * scale * np.max(share, where=plausible, initial=0.0), 0.0)
    of_runtime = np.zeros_like(scale) if rounding is None else ROUNDING * rounding
    of_runtime = np.where(own <= of_runtime, of_runtime, 0.0)  # which is no excuse for the engine
    rules, needed = (rule, f"{ROUNDING:g} x float32 rounding", OF_RUNTIME), np.zeros(len(scale), int)
    for k, limit in enumerate((of_engine, of_runtime), 1):
        explained = (error > allowed) & (off <= limit) & (limit > 0.0)
        error, allowed = np.where(explained, off, error), np.where(explained, limit, allowed)
        needed[explained] = k
    wrong = ~(error <= allowed)
    told = wrong if wrong.any() else needed == needed.max()
    worst = int(np.argmax(np.where(told, error / allowed, -1.0)))
    return float(error[worst]), float(allowed[worst]), rules[needed[worst]]


def examine(
    loaded: onnxruntime.InferenceSession,
    model: Model,
    exact: Model,
    batches: Mapping[str, Arrays],
    names: Sequence[str],
) -> list[Agreement]:
    """Run the engine, in the model's dtype and in float64, and onnxruntime on each batch of inputs.

    Only where an output differs by more than the engine's rounding is onnxruntime's own looked at.

    Raises:
        ParityError: onnxruntime refuses what the engine takes.
        LamellaError: the engine itself refuses the inputs.
    """
    found = []
    for data, inputs in batches.items():
        results = (predict(model, inputs), predict(exact, inputs), run(loaded, inputs))
        rows = [
            Agreement(name, data, e32.size, *compare(got, e32, e64, by_row=True))
            for name, e32, e64, got in zip(names, *results, strict=True)
        ]
        if not all(row.agrees for row in rows):
            evidence = own_rounding(lambda x: run(loaded, x), lambda x: predict(exact, x), inputs)
            rows = [
                Agreement(name, data, e32.size, *compare(got, e32, e64, by_row=True, rounding=rounding.explained(mean)))
                for name, e32, e64, got, rounding, mean in zip(names, *results, *evidence, strict=True)
            ]
        found += rows
    return found


def predict(model: Model, inputs: Arrays) -> Arrays:
    outputs = model.predict(inputs)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def blame(trace: Trace, model: Model, exact: Model, inputs: Arrays, data: str) -> str:
    """Name the first layer whose outputs differ, by showing what every layer gives."""
    proto = trace.exposed()
    names = [output.name for output in proto.graph.output]
    loaded = session(proto.SerializeToString())
    places = [(leaf, k) for leaf in model.program.leaves for k in range(len(leaf.outputs))]

    def runtime(x: Arrays) -> list[Array]:
        got = dict(zip(names, run(loaded, x), strict=True))
        return [got[f"{leaf.name}:{k}"] for leaf, k in places]

    def engine(twin: Model, x: Arrays) -> list[Array]:
        layers = _inner(twin, x)
        return [layers[leaf.name][k] for leaf, k in places]

    impure = _impure(model, inputs)
    if impure:
        return impure
    results = engine(model, inputs), engine(exact, inputs), runtime(inputs)
    evidence = own_rounding(runtime, lambda x: engine(exact, x), inputs)
    for (leaf, _), e32, e64, value, rounding, mean in zip(places, *results, *evidence, strict=True):
        error, allowed, rule = compare(value, e32, e64, by_row=True, rounding=rounding.explained(mean))
        if not error <= allowed:
            operators = ", ".join(trace.graph.operators(leaf.name))
            return (
                f"{leaf.label} is the first layer to differ, on the {data}: by {error:.3g} where {allowed:.3g} is "
                f"allowed ({rule}){_place(value, e32)}. Its operators: {operators}"
            )
    return (
        f"the outputs differ on the {data}, though every layer agrees once its output is shown: it is onnxruntime's "
        "optimizer that makes something else of them"
    )


def _impure(model: Model, inputs: Arrays) -> str:
    """The first layer that gives something else when run again, if there is one."""
    before, again = (_inner(model, inputs) for _ in range(2))
    for leaf in model.program.leaves:
        if any(a.tobytes() != b.tobytes() for a, b in zip(before[leaf.name], again[leaf.name], strict=True)):
            return f"{leaf.label} gives something else each time on equal inputs; a layer must be a pure function"
    return ""


def _place(got: Array, expected: Array) -> str:
    """Where two arrays differ most, and by what."""
    if got.shape != expected.shape or not got.size:
        return ""
    with np.errstate(over="ignore", invalid="ignore"):
        gap = np.abs(got.astype("float64") - expected.astype("float64"))
    gap[np.isnan(gap)] = np.where(np.isnan(got) & np.isnan(expected) | (got == expected), 0.0, np.inf)[np.isnan(gap)]
    at = tuple(map(int, np.unravel_index(int(np.argmax(gap)), gap.shape)))
    return f"; at {list(at)} onnxruntime gives {got[at]:.7g}, the engine {expected[at]:.7g}"


def _inner(model: Model, inputs: Arrays) -> dict[str, Arrays]:
    """What each layer gives, in NumPy."""
    layers: dict[str, Arrays] = {}
    arrays = {**model.parameters, **model.state}
    given = [x.astype(spec.dtype) for x, spec in zip(inputs, model.input_specs, strict=True)]
    infer(model.program, get_backend("numpy").xp, arrays, given, observe=lambda leaf, y: layers.update({leaf.name: y}))
    return layers


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
    """

    path: str
    opset: int
    ir: int
    versions: dict[str, str]
    agreements: tuple[Agreement, ...]

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
            table.add(row.output, row.data, *numbers, *[row.rule] * several, mark)
        told = [", ".join(f"{name} {version}" for name, version in self.versions.items())]
        if not several:
            told.insert(0, f"allowed: {rules[0]}")
        table.notes = [styled(line, "dim") for line in told]
        return table
