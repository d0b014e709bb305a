"""Whether onnxruntime agrees with the engine: inputs drawn from a counter, a rule, a report, and the layer at fault."""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

import lamella
from lamella import ArraySpec, Model
from lamella.backends import get_backend
from lamella.backends.counter import mix_keys, uniform
from lamella.engine import infer
from lamella.terminal import Column, Table, styled
from lamella_onnx.trace import Trace

__all__ = [
    "BATCHES",
    "OF_RUNTIME",
    "ROUNDING",
    "Agreement",
    "ParityError",
    "ParityReport",
    "Probes",
    "Range",
    "Rounding",
    "blame",
    "candidates",
    "compare",
    "examine",
    "near",
    "own_rounding",
    "predict",
    "ranges",
    "run",
    "session",
]

BATCHES = {1: 1.0, 2: 1.0, 7: 10.0}  # rows, and how far random floats reach where nothing is known of an input
TOLERANCE = 1e-5
ROUNDING = 4.0  # how many times the engine's own rounding error, or its own, onnxruntime may be off
PLAUSIBLE = 1e-3  # of the largest result: beyond it, a difference between float32 and float64 is no rounding
OF_RUNTIME = f"{ROUNDING:g} x onnxruntime's rounding"
MOVES, REACH = 16, 256  # how often inputs are moved to see onnxruntime's rounding, and by how many units at most
LEAST, MOST = 1e-4, 5e-3  # of a row's scale: what onnxruntime may round to without a reason, and at most
PLACES = 1024  # as many places of an input may have a range of their own; a proof holds them all
LONGEST = 512  # axes of unknown size grow up to here, so that an integer may be as large as its spec says

Array = np.ndarray[Any, Any]
Arrays = tuple[Array, ...]


class ParityError(lamella.LamellaError, RuntimeError):
    """A graph that onnxruntime refuses, or whose results differ from the engine's, or that nothing can be tried on."""


# Inputs


@dataclasses.dataclass(frozen=True)
class Range:
    """An input and the values ``low <= value < high`` that are drawn for it; None for floats that may be anything.

    A limit is a number, or nested lists: one for each place in a row, where axes of size 1 stand for any size.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    low: float | list[Any] | None = None
    high: float | list[Any] | None = None

    def sized(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """The shape for known sizes; axes not known yet get one, and stay in ``sizes``."""
        batch = sizes["N"]
        return tuple(sizes.setdefault(n, 4 + len(sizes) + batch % 3) if isinstance(n, str) else n for n in self.shape)


@dataclasses.dataclass(frozen=True)
class Probes:
    """What random batches are drawn from: a range for each input, and for each batch the sizes of axes with a name.

    Sizes that are not said follow from the batch.
    """

    inputs: tuple[Range, ...]
    sizes: Mapping[int, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    def bytes(self, batch: int) -> int:
        """How large a batch is."""
        sizes = {"N": batch, **self.sizes.get(batch, {})}
        return sum(np.dtype(row.dtype).itemsize * math.prod(max(n, 1) for n in row.sized(sizes)) for row in self.inputs)

    @np.errstate(over="ignore", invalid="ignore")  # ranges that exceed the dtype
    def draw(self, batch: int, seed: int) -> Arrays:
        """Draw a batch of inputs: the same numbers everywhere, from the counter generator.

        Floats that may be anything are drawn from [-1, 1), in the largest batch from [-10, 10).
        """
        sizes = {"N": batch, **self.sizes.get(batch, {})}
        reach = BATCHES.get(batch, 1.0)
        arrays = []
        for row in self.inputs:
            given = (-reach, reach) if row.low is None or row.high is None else (row.low, row.high)
            low, high = (np.asarray(limit, "float64") for limit in given)
            key = mix_keys(None, (seed, batch, zlib.crc32(row.name.encode())))
            unit = uniform(get_backend("numpy").xp, key, batch, 0, row.sized(sizes)).astype("float64")
            is_float = "float" in row.dtype  # then high - low may be too large for a number
            values = low * (1.0 - unit) + high * unit if is_float else np.floor(unit * (high - low) + low)
            arrays.append(values.astype(row.dtype, order="C"))
        return tuple(arrays)


def candidates(model: Model, samples: Arrays | None = None) -> Iterator[Probes]:
    """Yield what random batches may be drawn from, for the engine to take or refuse; the first it takes is used.

    What an input may be can depend on another: the length of a sequence is at most the size of an axis. So axes with
    a name first get sizes that no integer given once a row exceeds, if samples are as long; then that of the samples,
    then small and even ones. Each is also tried with these integers from 1 to the smallest size only.
    """
    rows = ranges(model, samples)
    own = _sizes(model, samples) if samples is not None else {}
    longest = max(own.values(), default=0) if samples is not None else LONGEST
    needs = [int(limits[1]) - 1 for row in rows if (limits := _limits_of_length(row)) and limits[1] - 1 <= longest]
    usual = {batch: _usual_sizes(rows, batch) for batch in BATCHES}
    need = max(needs, default=0)
    fitting = {
        batch: {name: max(n, min(need, own.get(name, need)) + (batch == 2)) for name, n in sizes.items()}
        for batch, sizes in usual.items()
    }
    others = [dict.fromkeys(BATCHES, own)] if own and all(own.values()) else []
    for most, least in ((4, 3), (32, 16), (2, 1), (1, 1)):
        others.append({batch: dict.fromkeys(usual[batch], least if batch == 2 else most) for batch in BATCHES})
    tried: list[Probes] = []
    for sizes in (fitting, *others):
        for probes in (Probes(rows, sizes), Probes(_within(rows, sizes), sizes)):
            if probes not in tried:
                tried.append(probes)
                yield probes


def _sizes(model: Model, samples: Arrays) -> dict[str, int]:
    """The sizes that samples have along axes with a name."""
    shapes = ((spec.shape[1:], sample.shape[1:]) for spec, sample in zip(model.input_specs, samples, strict=True))
    return {name: n for own, shape in shapes for name, n in zip(own, shape, strict=True) if isinstance(name, str)}


def _usual_sizes(rows: Sequence[Range], batch: int) -> dict[str, int]:
    sizes = {"N": batch}
    for row in rows:
        row.sized(sizes)
    return {name: size for name, size in sizes.items() if name != "N"}


def _limits_of_length(row: Range) -> tuple[float, float] | None:
    """The limits of what may be a length: one integer for each row."""
    if row.shape == ("N",) and np.dtype(row.dtype).kind in "iu":
        return float(row.low), float(row.high)  # type: ignore[arg-type]  # integers have limits, and one place only one
    return None


def _within(rows: tuple[Range, ...], sizes: Mapping[int, Mapping[str, int]]) -> tuple[Range, ...]:
    """Ranges where integers that may be lengths fit into the smallest axis."""
    smallest = min((size for named in sizes.values() for size in named.values()), default=np.inf)
    fitting = []
    for row in rows:
        if limits := _limits_of_length(row):
            low, high = max(limits[0], 1.0), min(limits[1], smallest + 1.0)
            row = dataclasses.replace(row, low=low, high=high) if low < high else row
        fitting.append(row)
    return tuple(fitting)


def ranges(model: Model, samples: Arrays | None = None) -> tuple[Range, ...]:
    """Return what to draw for each input: what samples have, else what its spec says, else anything, or 0 and 1.

    With samples, each place of a row has its own range, if its axis has a known size: columns of a table differ. Of
    inputs with more places than a proof should hold, the longest axes share one.
    """
    given = (None,) * len(model.input_specs) if samples is None else samples
    rows = zip(model.input_names, model.input_specs, given, strict=True)
    return tuple(Range(name, spec.shape, spec.dtype, *_limits(spec, sample)) for name, spec, sample in rows)


def _limits(spec: ArraySpec, sample: Array | None) -> tuple[Any, Any]:
    if sample is not None and sample.size and np.isfinite(sample).all():
        return _limits_of(spec, sample)
    if spec.is_float and spec.low is None and spec.high is None:
        return None, None
    low, high = (-1.0, 1.0) if spec.is_float else (0.0, 2.0)
    low, high = low if spec.low is None else float(spec.low), high if spec.high is None else float(spec.high)
    if low < high:
        return low, high
    return (low, low + 1.0) if spec.high is None else (high - 1.0, high)


def _limits_of(spec: ArraySpec, sample: Array) -> tuple[Any, Any]:
    """The limits of samples, place by place, within the spec's; what never changes stays, unless nothing does."""
    kept = {axis: n for axis, n in enumerate(spec.shape) if axis and isinstance(n, int)}
    while math.prod(kept.values()) > PLACES:
        del kept[max(kept, key=lambda axis: kept[axis])]
    common = tuple(axis for axis in range(sample.ndim) if axis not in kept)
    least, most = (reduce(sample, axis=common, keepdims=True)[0].astype("float64") for reduce in (np.min, np.max))
    limits = -np.inf if spec.low is None else spec.low, np.inf if spec.high is None else spec.high
    if not spec.is_float:
        most += 1.0
    elif np.array_equal(least, most):
        least, most = (least, most + 1.0) if spec.high is None else (least - 1.0, most)
    return _short(np.clip(least, *limits)), _short(np.clip(most, *limits))


def _short(limits: Array) -> Any:
    """One number where all are equal, else lists."""
    return float(limits.flat[0]) if (limits == limits.flat[0]).all() else limits.tolist()


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
    largest = _largest(y)
    scale = np.maximum(np.maximum(1.0, largest), np.sort(largest)[(len(largest) - 1) // 2])
    error, allowed = _largest(x - y), TOLERANCE * scale
    off, own = _largest(x - exact), _largest(y - exact)
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


def _largest(rows: Array) -> Array:
    return np.max(np.abs(rows), axis=1, initial=0.0)  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How far onnxruntime rounds an output, for each row, and the mean of the exact results where inputs hardly move.

    What a graph does wrong it does wrong again for inputs a few units in the last place away; rounding differs from one
    to the next, so that its mean is small.
    """

    rows: Array
    mean: Array

    @np.errstate(over="ignore", invalid="ignore")
    def explained(self, mean: Array) -> Array:
        """The rounding of rows, but 0 of those where onnxruntime's own mean is further than that from the exact one."""
        steady = _largest(_finite(_rows(mean) - _rows(self.mean)))
        return np.where(steady <= self.rows, self.rows, 0.0)


def near(inputs: Arrays) -> Iterator[Arrays]:
    """Yield inputs, and then again with floats moved by a few units in the last place; always the same."""
    yield inputs
    for k in range(MOVES):
        yield tuple(_moved(x, (place, k)) if x.dtype.kind == "f" and x.size else x for place, x in enumerate(inputs))


def _moved(x: Array, keys: tuple[int, int]) -> Array:
    """Floats moved by up to 256 units in the last place, each by its own number of them, within their range."""
    draw = uniform(get_backend("numpy").xp, mix_keys(None, keys), len(x), 0, x.shape).astype("float64")
    moved = (x + np.round((2.0 * draw - 1.0) * REACH) * np.spacing(x)).astype(x.dtype)
    moved = np.clip(moved, np.fmin.reduce(x, axis=None), np.fmax.reduce(x, axis=None))
    return np.where(np.isfinite(x), moved, x)


class _Spread:
    """How an output varies from run to run, on inputs that are near each other."""

    def __init__(self, exact: Array):
        self.first = _rows(exact)
        self.low, self.high = np.full(self.first.shape, np.inf), np.full(self.first.shape, -np.inf)
        self.effect = np.zeros(len(exact))
        self.got, self.exact = (np.zeros(exact.shape) for _ in range(2))  # their means

    def add(self, got: Array, exact: Array) -> None:
        """Take in a run; one of another shape is none, and `compare` says so."""
        got = got if got.shape == exact.shape else exact
        error = _rows(got) - _rows(exact)
        self.low, self.high = np.minimum(self.low, error), np.maximum(self.high, error)
        self.effect = np.maximum(self.effect, _largest(_finite(_rows(exact) - self.first)))
        self.got, self.exact = self.got + got / (MOVES + 1.0), self.exact + exact / (MOVES + 1.0)

    def rounding(self) -> Array:
        """Half of what the error varies by, for each row, as far as that is plausible."""
        scale = np.maximum(1.0, _largest(_finite(self.first)))
        limit = np.clip(2.0 * self.effect / REACH, LEAST * scale, MOST * scale)
        return np.minimum(_largest(_finite(self.high - self.low)) / 2.0, limit)


@np.errstate(over="ignore", invalid="ignore")
def own_rounding(
    runtime: Callable[[Arrays], Sequence[Array]], exact: Callable[[Arrays], Sequence[Array]], inputs: Arrays
) -> tuple[list[Rounding], list[Array]]:
    """How far onnxruntime rounds each output, and the mean of its results where inputs hardly move.

    Its rounding is half of what its error varies by. But a graph that computes by unstable formulas must not excuse
    itself: beyond 1e-4 of a row's scale, no more counts than twice what one unit in the last place of the inputs does
    to the exact result, and never more than 5e-3.
    """
    spreads: list[_Spread] = []
    for x in near(inputs):
        results = exact(x)
        spreads = spreads or [_Spread(e64) for e64 in results]
        for spread, got, e64 in zip(spreads, runtime(x), results, strict=True):
            spread.add(got, e64)
    return [Rounding(spread.rounding(), spread.exact) for spread in spreads], [spread.got for spread in spreads]


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, 0.0)


def _rows(values: Array) -> Array:
    return values.astype("float64").reshape(len(values), -1)


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
