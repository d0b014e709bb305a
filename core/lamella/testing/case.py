"""A layer made ready to be examined: models in both float types and on any backend, inputs, and runs of the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lamella.engine import (
    Batch,
    Gradients,
    Plan,
    Record,
    Request,
    StepResult,
    backward,
    collect_updates,
    cut,
    forward,
    infer,
    run_step,
)
from lamella.errors import LamellaError
from lamella.graph import Input, Node
from lamella.losses import Loss
from lamella.model import Model
from lamella.protocol import ArraySpec, Declare, Layer
from lamella.testing.comparison import Named, Skipped, difference, named
from lamella.testing.specimen import Specimen

__all__ = ["Case", "Finding", "LossLayer", "contiguous", "permuted", "scattered"]

T = TypeVar("T")
Array = np.ndarray[Any, Any]
STEPS = 8  # of training, by which state moves off its initial values
AXES = (5, 4, 6, 3)  # the sizes that axes with names other than "N" get, in the order of the names


class LossLayer(Layer):
    """A loss as a layer of two inputs, prediction and target, whose output is the loss of each sample."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def build(self, declare: Declare, *inputs: ArraySpec) -> ArraySpec:
        return inputs[0].replace(shape=("N",), low=None, high=None)

    def forward_pass(self, ctx: Any, *inputs: Any) -> Any:
        return self.loss.forward(ctx, *inputs)

    def backward_pass(self, ctx: Any, *gradients: Any) -> Any:
        return self.loss.backward(ctx, *gradients), None


class _Projection(Loss):
    """The sum of prediction times target: its gradient, the target itself, is what the layer gets to see."""

    def forward(self, ctx: Any, prediction: Any, target: Any) -> Any:
        ctx.save(target)
        if target.ndim == 1:
            return prediction * target
        return ctx.xp.sum(prediction * target, axis=tuple(range(1, target.ndim)))

    def backward(self, ctx: Any, d: Any) -> Any:
        return ctx.saved[0]


class Finding(NamedTuple):
    """A probe of a law that failed: what it raised, and how to run it again."""

    error: Exception
    probe: Callable[..., Any]
    arguments: tuple[Any, ...]


class Case:
    """One specimen and everything that laws ask about it. Draws follow from ``seed``.

    Attributes:
        specimen: what is examined.
        layer: the layer, or the loss as a layer.
        specs: of the layer's inputs.
        sizes: of the axes that have a name other than "N".
        findings: what probes have found wrong so far.
        kept: what laws keep from one probe to the next.
    """

    def __init__(
        self,
        specimen: Specimen,
        seed: int = 0,
        *,
        most: int | None = None,
        sizes: Mapping[str, int] | None = None,
        rounded: bool = False,
    ) -> None:
        self.specimen = specimen
        self.seed = seed
        self.most = most  # rows, whatever is asked for
        self.rounded = rounded  # draw numbers of few digits
        self.findings: list[Finding] = []
        self.kept: dict[Any, Any] = {}
        self._models: dict[tuple[str, str], Model] = {}
        specs = specimen.inputs
        names = dict.fromkeys(n for spec in specs for n in spec.shape if isinstance(n, str) and n != "N")
        self.sizes = {name: AXES[k % len(AXES)] for k, name in enumerate(names)} | dict(sizes or {})
        if isinstance(specimen.subject, Loss):
            self.layer: Any = LossLayer(specimen.subject)
            prepared = self._prepare(self._numbers(2, np.random.default_rng(seed), 1.0))[1]
            kind = "float32" if prepared.dtype.kind == "f" else str(prepared.dtype)
            alike = next((spec.shape for spec in reversed(specs) if len(spec.shape) == prepared.ndim), prepared.shape)
            shape = [own if isinstance(own, str) else n for own, n in zip(alike, prepared.shape, strict=True)]
            specs = (specs[0], ArraySpec(("N", *shape[1:]), kind))
        else:
            self.layer = specimen.subject
        self.specs = specs
        self._values: dict[str, Any] | None = None
        self._state: dict[str, Any] | None = None

    def like(
        self,
        *,
        specimen: Specimen | None = None,
        most: int | None = None,
        sizes: Mapping[str, int] | None = None,
        rounded: bool | None = None,
    ) -> Case:
        """Return a new case with some things changed; ``most`` bounds the rows of what is drawn."""
        return Case(
            specimen or self.specimen,
            self.seed,
            most=most or self.most,
            sizes=self.sizes if sizes is None else sizes,
            rounded=self.rounded if rounded is None else rounded,
        )

    def resized_to(self, sizes: Mapping[str, int]) -> Case:
        """The same models, and what was traced of them, at other sizes of axes known by name: they serve all.

        Integers that end where such an axis does, as lengths and places along it do, end with it.
        """

        def fit(spec: ArraySpec) -> ArraySpec:
            for name, size in {} if isinstance(self.layer, LossLayer) else self.sizes.items():
                if not spec.is_float and spec.high is not None and spec.high - size in (0, 1):
                    high = spec.high - size + sizes[name]
                    return spec if spec.low is not None and high <= spec.low else spec.replace(high=high)
            return spec

        specimen = dataclasses.replace(self.specimen, inputs=tuple(map(fit, self.specimen.inputs)), refuses=())
        case = self.like(specimen=specimen, sizes=sizes)
        case._models, case._values, case._state, case.kept = self._models, self._values, self._state, self.kept
        return case

    @cached_property
    def other_sizes(self) -> list[dict[str, int]]:
        """Other sizes of each axis known by name, as far as the layer takes them."""
        found = []
        for name, size in self.sizes.items():
            for other in (1, size - 1, size + 2, size + 8):
                sizes = {**self.sizes, name: other}
                case = self.resized_to(sizes)
                try:
                    inputs = case.draw(2)
                    case.step("float64", inputs, case.cotangents(inputs))
                except LamellaError:  # too small or too large; or a fault, which the law of shapes tells
                    continue
                found.append(sizes)
        return found

    def examine(self, probe: Callable[..., T], *arguments: Any) -> T | None:
        """Run ``probe(case, *arguments)``; where it raises, note what it found, and go on."""
        try:
            return probe(self, *arguments)
        except Skipped:
            raise
        except Exception as error:  # Broken, and whatever the layer's own code raises
            self.findings.append(Finding(error, probe, arguments))
            return None

    @cached_property
    def wants(self) -> tuple[bool, ...]:
        """For each input, whether there is a gradient to check."""
        smooth = any(spec.is_float for spec in self.model().output_specs)
        return tuple(smooth and spec.is_float and self._is_free(k) for k, spec in enumerate(self.specs))

    def _is_free(self, k: int) -> bool:
        """Whether an input may take any value: all but the target of a loss."""
        return k == 0 or not isinstance(self.layer, LossLayer)

    def nodes(self, specs: Sequence[ArraySpec] | None = None) -> tuple[Node, ...]:
        """New inputs for a graph of the layer, by default those of `specs`."""
        specs = self.specs if specs is None else specs
        return tuple(Input(s.shape[1:], None if s.is_float else s.dtype, low=s.low, high=s.high) for s in specs)

    def model(self, dtype: str = "float64", backend: str = "numpy") -> Model:
        """A model of the layer alone.

        Parameters and state are moved off their initial values, to the same float32 numbers in all models.
        """
        if (dtype, backend) not in self._models:
            nodes = self.nodes()
            model = Model(nodes, self.layer(*nodes), dtype=dtype, seed=self.seed, backend=backend)
            self._models[dtype, backend] = model
            if self._values is None:
                self._values = self._moved(model)
            for name, value in self._values.items():
                model.parameters[name] = value
            if self._state is None:
                self._state = {}  # while it is being found
                self._state = self._trained()
            for name, value in self._state.items():
                model.state[name] = value
        return self._models[dtype, backend]

    def _moved(self, model: Model) -> dict[str, Array]:
        """Other parameters than the initial ones: larger ones only, or those, where the layer gives no numbers else."""
        rng = np.random.default_rng([self.seed, 1])
        initial = dict(model.parameters)
        noise = {name: 0.3 * rng.standard_normal(value.shape) for name, value in initial.items()}
        candidates = []
        for move in (np.positive, np.abs, np.zeros_like):
            moved = {name: self._shorten(value + move(noise[name])) for name, value in initial.items()}
            candidates.append({name: value.astype("float32") for name, value in moved.items()})
            for name, value in candidates[-1].items():
                model.parameters[name] = value
            if self._is_finite(model):
                return candidates[-1]
        return candidates[0]

    def _is_finite(self, model: Model) -> bool:
        try:
            inputs = tuple(map(model.device.asarray, self.cast(model.dtype, self.draw(5))))
            outputs = infer(model.program, model.device.xp, model.arrays(), inputs)
        except Exception:  # the layer's own code may raise anything, which a law will tell
            return True
        return all(np.isfinite(model.device.asnumpy(y)).all() for y in outputs)

    def _trained(self) -> dict[str, Array]:
        """State after some steps of training: no other values are known to be valid, as variances have to be."""
        model = self.model()
        try:
            for k in range(STEPS if len(model.state) else 0):
                inputs = self.draw(5, scale=10.0, attempt=k)
                updates = self.step("float64", inputs, self.cotangents(inputs)).updates
                for name, value in updates.items():
                    model.state[name] = np.where(np.isfinite(value), value, model.state[name]).astype("float32")
        except Exception:  # the layer's own code may raise anything, which a law will tell
            return {}
        return {name: np.copy(value) for name, value in model.state.items()}

    @property
    def values(self) -> dict[str, Array]:
        """The parameters of all models."""
        return dict(self.model().parameters)

    def draw(self, rows: int, *, scale: float | None = 1.0, attempt: int = 0, offset: float = 0.0) -> tuple[Array, ...]:
        """Random inputs, floats as float32 numbers, scattered in memory.

        Floats are normal around ``offset`` with deviation ``scale``, at most 1e3 off, or within what their spec allows:
        uniform between two limits, on the allowed side of one. Without a scale they are multiples of one half from
        -2 to 2, or nine values between two limits, so that there are ties, zeros and halves among them.
        """
        rows = min(rows, self.most or rows)
        rng = np.random.default_rng([self.seed, 2, rows, attempt])
        return tuple(map(scattered, self._prepare(self._numbers(rows, rng, scale, offset))))

    def constant(self, rows: int, value: float) -> tuple[Array, ...]:
        """Inputs whose floats are all one value, or the nearest that their spec allows."""
        return tuple(
            _within(spec, np.full_like(x, value)) if spec.is_float and self._is_free(k) else x
            for k, (x, spec) in enumerate(zip(self.draw(rows), self.specs, strict=True))
        )

    def _numbers(
        self, rows: int, rng: np.random.Generator, scale: float | None, offset: float = 0.0
    ) -> tuple[Any, ...]:
        drawn = []
        for spec in self.specimen.inputs:
            shape = tuple(rows if n == "N" else self.sizes[n] if isinstance(n, str) else n for n in spec.shape)
            if spec.is_float:
                drawn.append(self._floats(spec, shape, rng, scale, offset))
            elif spec.dtype == "bool":
                drawn.append(rng.integers(0, 2, shape).astype(bool))
            else:
                low = 0 if spec.low is None else int(spec.low)
                high = low + 10 if spec.high is None else int(spec.high)
                drawn.append(rng.integers(low, high, shape).astype(spec.dtype))
        return tuple(drawn)

    def _floats(
        self, spec: ArraySpec, shape: tuple[int, ...], rng: np.random.Generator, scale: float | None, offset: float
    ) -> Array:
        low, high = spec.low, spec.high
        if low is not None and high is not None:
            values = rng.uniform(low, high, shape) if scale else low + (high - low) * rng.integers(9, size=shape) / 8
        else:
            values = np.clip(scale * rng.standard_normal(shape), -1e3, 1e3) if scale else rng.integers(-4, 5, shape) / 2
            if low is not None:
                values = low + np.abs(values)
            if high is not None:
                values = high - np.abs(values)
            if (low, high) == (None, None):
                values = values + offset
        return _within(spec, self._shorten(values).astype("float32"))

    def _shorten(self, values: Any) -> Any:
        """Numbers of few digits, none of them 0, if that is asked for."""
        if not self.rounded:
            return values
        return np.where(np.abs(values) < 0.05, np.copysign(0.1, values), np.round(values, 1))

    def _prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if isinstance(self.specimen.subject, Loss):
            return inputs[0], self.specimen.subject.prepare(self.specimen.inputs[0], inputs[1])
        return inputs

    def cotangents(self, inputs: Sequence[Any]) -> tuple[Array, ...]:
        """Random incoming gradients, one for each output, scattered in memory."""
        rng = np.random.default_rng([self.seed, 3])
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.kept:
            self.kept[shapes] = [y.shape for y in self.infer("float64", inputs)]
        return tuple(scattered(np.asarray(rng.standard_normal(shape), "float32")) for shape in self.kept[shapes])

    def infer(self, dtype: str, inputs: Sequence[Any], backend: str = "numpy") -> tuple[Array, ...]:
        """The outputs in inference mode."""
        model = self.model(dtype, backend)
        arrays = model.arrays()
        bring = np.copy if backend == "numpy" else model.device.asarray
        given = [bring(x) for x in self.cast(dtype, inputs)]
        return tuple(map(model.device.asnumpy, infer(model.program, model.device.xp, arrays, given)))

    def step(
        self,
        dtype: str,
        inputs: Sequence[Any],
        cotangents: Sequence[Any],
        *,
        sizes: Sequence[int] = (),
        backwards: bool = False,
        backend: str = "numpy",
        training: bool = True,
        frozen: bool = False,
        wants_dx: tuple[bool, ...] | None = None,
    ) -> StepResult:
        """What one step gives, as NumPy: in slices of the given sizes, or whole.

        On NumPy the layer gets the very arrays that are given, writable, where they have the right dtype already.
        ``backwards`` runs the slices in the opposite order; ``frozen`` freezes every layer; ``wants_dx`` is by default
        `wants`.
        """
        model = self.model(dtype, backend)
        device, program = model.device, model.program
        bring: Any = (lambda a: a) if backend == "numpy" else device.asarray
        inputs, cotangents = self.cast(dtype, inputs), self.cast(dtype, cotangents)
        smooth = [spec.is_float for spec in model.output_specs]  # an output of integers has no gradient, so no loss
        weights = device.asarray(np.ones(len(inputs[0]), dtype))
        batch = Batch(
            tuple(map(bring, inputs)),
            tuple(bring(c) if yes else None for c, yes in zip(cotangents, smooth, strict=True)),
            tuple(weights if yes else None for yes in smooth),
            0,
        )
        plan = Plan(
            program,
            frozenset(leaf.owner for leaf in program.leaves) if frozen else model.frozen_layers,
            wants_dx=self.wants if wants_dx is None else wants_dx,
            training=training,
        )
        slices = cut(batch, sizes or [len(inputs[0])])
        place: Any = slice(None)
        if backwards:
            slices.reverse()
            place = np.argsort(np.concatenate([part.offset + np.arange(len(part.inputs[0])) for part in slices]))
        losses = [_Projection() if yes else None for yes in smooth]
        buffer = Gradients(model.storage.empty_like())
        result = run_step(plan, device, model.arrays(), slices, losses, [buffer], seed=self.seed, step=3)
        return result._replace(
            predictions=tuple(self._apart(model, device.asnumpy(y)[place]) for y in result.predictions),
            gradients={name: device.asnumpy(value) for name, value in result.gradients.items()},
            dx=tuple(None if dx is None else device.asnumpy(dx)[place] for dx in result.dx),
            updates={name: device.asnumpy(value) for name, value in result.updates.items()},
        )

    @staticmethod
    def _apart(model: Model, output: Array) -> Array:
        """An output that stays what it is when parameters get other values: it may be a view of one."""
        shared = any(np.may_share_memory(output, value) for value in model.arrays().values())
        return np.copy(output) if shared else output

    def nudged(self, inputs: Sequence[Any], cotangents: Sequence[Any], attempt: int, **how: Any) -> Named:
        """A step in float64 with all inputs and parameters moved by one float32 unit in the last place, up or down."""
        parameters = self.model().parameters
        rng = np.random.default_rng([self.seed, 5, attempt])

        def nudge(a: Any) -> Any:
            if a.dtype.kind != "f":
                return a
            return a + np.spacing(np.abs(a).astype("float32")).astype("float64") * rng.choice([-1.0, 1.0], a.shape)

        before = dict(parameters)
        try:
            for name, value in before.items():
                parameters[name] = nudge(value)
            return named(self.step("float64", tuple(map(nudge, inputs)), tuple(map(nudge, cotangents)), **how))
        finally:
            for name, value in before.items():
                parameters[name] = value

    def rounding(self, inputs: Sequence[Any], cotangents: Sequence[Any], times: float, **how: Any) -> dict[str, float]:
        """By how much every array of a step may be off: ``times`` its largest change where all inputs are nudged."""
        exact = named(self.step("float64", inputs, cotangents, **how))
        moved = [self.nudged(inputs, cotangents, attempt, **how) for attempt in range(3)]
        return {name: times * max(difference(value, other[name]) for other in moved) for name, value in exact.items()}

    def start(
        self, dtype: str, inputs: Sequence[Any], *, training: bool = True
    ) -> tuple[tuple[Array, ...], Callable[[], StepResult]]:
        """Run forward only: the outputs, and what runs backward, whatever has been called in between."""
        model = self.model(dtype)
        program, xp = model.program, model.device.xp
        cotangents = self.cast(dtype, self.cotangents(inputs))
        plan = Plan(program, model.frozen_layers, wants_dx=self.wants, training=training)
        tape: dict[str, Record] = {}
        key = (self.seed, 0, 3)
        outputs = _alone(forward(plan, xp, model.arrays(), self.cast(dtype, inputs), key=key, tape=tape))
        updates = collect_updates(plan, tape)
        known = zip(program.outputs, model.output_specs, cotangents, strict=True)

        def finish() -> StepResult:
            gradients = {value: c for value, spec, c in known if spec.is_float}
            given: dict[str, Any] = {}
            _alone(backward(plan, xp, gradients, tape, given.__setitem__))
            return StepResult((), outputs, given, tuple(map(gradients.get, program.inputs)), updates)

        return outputs, finish

    @staticmethod
    def cast(dtype: str, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Floats in a dtype, each contiguous or scattered in memory as it is."""

        def convert(a: Any) -> Any:
            if a.dtype.kind != "f" or a.dtype == dtype:
                return a
            return (contiguous if a.flags.c_contiguous else scattered)(a.astype(dtype))

        return tuple(map(convert, arrays))


def _alone(coroutine: Generator[Request, Any, T]) -> T:
    """Run a pass over a batch of one slice, whose sums are those of the whole batch."""
    total: Any = None
    with np.errstate(all="ignore"):
        while True:
            try:
                total = coroutine.send(total).partial
            except StopIteration as stop:
                result: T = stop.value
                return result


def _within(spec: ArraySpec, values: Array) -> Array:
    """The nearest float32 numbers for which ``low <= value < high``."""
    low = -np.inf if spec.low is None else spec.low
    high = np.inf if spec.high is None else np.nextafter(np.float32(spec.high), np.float32(-np.inf))
    return np.clip(values, np.float32(low), np.float32(high))


def contiguous(array: Any) -> Array:
    """A copy in C order."""
    return np.array(array, order="C")


def permuted(array: Any) -> Array:
    """A copy without gaps that is not in C order: axis 1 is fastest, as channels last are; a table's is axis 0."""
    if array.ndim < 3:
        return np.array(array, order="F")
    return np.moveaxis(contiguous(np.moveaxis(array, 1, -1)), -1, 1)


def scattered(array: Any) -> Array:
    """A copy with the last axis slowest in memory, and gaps between neighbours."""
    room = np.empty((*array.shape[::-1], 2), array.dtype)
    view: Array = room[..., 0].transpose()
    view[...] = array
    return view
