"""A specimen made ready to be examined: models in both float types and on any backend, inputs, and runs of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lamella.errors import LamellaError
from lamella.losses import Loss
from lamella.model import Model
from lamella.protocol import ArraySpec, Input, Node
from lamella.protocol.specimen import Specimen
from lamella.testing import runs
from lamella.testing.checks import Checks
from lamella.testing.comparison import Named, difference, named
from lamella.testing.drawing import draw_array, shorten, within
from lamella.testing.layouts import contiguous, scattered
from lamella.testing.runs import StepResult
from lamella.testing.subjects import as_layer

__all__ = ["Case"]

Array = np.ndarray[Any, Any]
STEPS = 8  # of training, by which state moves off its initial values
AXES = (5, 4, 6, 3)  # the sizes that axes with names other than "N" get, in the order of the names


class Case(Checks):
    """A layer, loss or activation, and everything that laws ask about it.

    Attributes:
        layer: the layer, or the loss or activation as a layer.
        specs: of the layer's inputs.
        sizes: of the axes that have a name other than "N".
        kept: what laws keep from one check to the next.
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
        super().__init__(specimen, seed)
        self.most = most  # rows, whatever is asked for
        self.rounded = rounded  # draw values of few digits
        self.kept: dict[Any, Any] = {}
        self._models: dict[tuple[str, str], Model] = {}
        specs = specimen.inputs
        names = dict.fromkeys(n for spec in specs for n in spec.shape if isinstance(n, str) and n != "N")
        self.sizes = {name: AXES[k % len(AXES)] for k, name in enumerate(names)} | dict(sizes or {})
        self.layer = as_layer(specimen.subject)
        if isinstance(specimen.subject, Loss):
            prepared = self._prepare(self._drawn(2, np.random.default_rng(seed)))[1]
            kind = "float32" if prepared.dtype.kind == "f" else str(prepared.dtype)
            alike = next((spec.shape for spec in reversed(specs) if len(spec.shape) == prepared.ndim), prepared.shape)
            shape = [own if isinstance(own, str) else n for own, n in zip(alike, prepared.shape, strict=True)]
            specs = (specs[0], ArraySpec(("N", *shape[1:]), kind))
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
            for name, size in {} if isinstance(self.specimen.subject, Loss) else self.sizes.items():
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

    @cached_property
    def wants(self) -> tuple[bool, ...]:
        """For each input, whether there is a gradient to check."""
        smooth = any(spec.is_float for spec in self.model().output_specs)
        return tuple(smooth and spec.is_float and self.is_free(k) for k, spec in enumerate(self.specs))

    def is_free(self, k: int) -> bool:
        """Whether an input may take any value: all but the target of a loss."""
        return k == 0 or not isinstance(self.specimen.subject, Loss)

    def nodes(self, specs: Sequence[ArraySpec] | None = None) -> tuple[Node, ...]:
        """New inputs for a graph of the layer, by default those of `specs`."""
        specs = self.specs if specs is None else specs
        return tuple(Input(s.shape[1:], None if s.is_float else s.dtype, low=s.low, high=s.high) for s in specs)

    def model(self, dtype: str = "float64", backend: str = "numpy") -> Model:
        """A model of the layer alone.

        Parameters and state are moved off their initial values, to the same float32 values in all models.
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
        """Other parameters than the initial ones: larger ones only, or those, where the layer gives NaN else."""
        rng = np.random.default_rng([self.seed, 1])
        initial = dict(model.parameters)
        noise = {name: 0.3 * rng.standard_normal(value.shape) for name, value in initial.items()}
        candidates = []
        for move in (np.positive, np.abs, np.zeros_like):
            moved = {name: self._shortened(value + move(noise[name])) for name, value in initial.items()}
            candidates.append({name: value.astype("float32") for name, value in moved.items()})
            for name, value in candidates[-1].items():
                model.parameters[name] = value
            if self._is_finite(model):
                return candidates[-1]
        return candidates[0]

    def _is_finite(self, model: Model) -> bool:
        try:
            outputs = runs.outputs_of(model, self.cast(model.dtype, self.draw(5)))
        except Exception:  # the layer's own code may raise anything, which a law will tell
            return True
        return all(np.isfinite(y).all() for y in outputs)

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

    @cached_property
    def initial_values(self) -> dict[str, Array]:
        """The parameters of a new model, in float64."""
        nodes = self.nodes()
        return dict(Model(nodes, self.layer(*nodes), dtype="float64", seed=self.seed).parameters)

    def draw(self, rows: int, *, scale: float | None = 1.0, attempt: int = 0, offset: float = 0.0) -> tuple[Array, ...]:
        """Random inputs as `draw_array` draws them, scattered in memory."""
        rows = min(rows, self.most or rows)
        rng = np.random.default_rng([self.seed, 2, rows, attempt])
        return tuple(map(scattered, self._prepare(self._drawn(rows, rng, scale=scale, offset=offset))))

    def constant(self, rows: int, value: float) -> tuple[Array, ...]:
        """Inputs whose floats are all one value, or the nearest that their spec allows."""
        free = [k for k, spec in enumerate(self.specs) if spec.is_float and self.is_free(k)]
        return self.filled(rows, lambda raw: {k: np.full_like(raw[k], value) for k in free})

    def filled(self, rows: int, fill: Callable[[tuple[Array, ...]], dict[int, Array]]) -> tuple[Array, ...]:
        """Random inputs, some replaced: ``fill(drawn)`` gives the floats by place, which are put into their range."""
        rows = min(rows, self.most or rows)
        raw = list(self._drawn(rows, np.random.default_rng([self.seed, 2, rows, 0])))
        for k, values in fill(tuple(raw)).items():
            raw[k] = within(self.specimen.inputs[k], np.asarray(values, "float32"))
        return tuple(map(scattered, self._prepare(tuple(raw))))

    def _drawn(self, rows: int, rng: np.random.Generator, **how: Any) -> tuple[Array, ...]:
        how["rounded"] = self.rounded
        return tuple(draw_array(spec, rows, self.sizes, rng, **how) for spec in self.specimen.inputs)

    def _shortened(self, values: Any) -> Any:
        return shorten(values) if self.rounded else values

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
        return runs.outputs_of(self.model(dtype, backend), self.cast(dtype, inputs))

    def step(
        self,
        dtype: str,
        inputs: Sequence[Any],
        cotangents: Sequence[Any],
        *,
        backend: str = "numpy",
        wants_dx: tuple[bool, ...] | None = None,
        **how: Any,
    ) -> StepResult:
        """What one step gives; ``how`` is that of `runs.take_step`, and ``wants_dx`` by default `wants`.

        On NumPy the layer gets the very arrays that are given, writable, where they have the right dtype already.
        """
        how |= {"seed": self.seed, "wants_dx": self.wants if wants_dx is None else wants_dx}
        given = self.cast(dtype, inputs), self.cast(dtype, cotangents)
        return runs.take_step(self.model(dtype, backend), *given, **how)

    def nudged(
        self, inputs: Sequence[Any], cotangents: Sequence[Any], attempt: int, dtype: str = "float32", **how: Any
    ) -> Named:
        """A step in float64 with everything that a dtype rounds moved by one unit in its last place, up or down.

        That is all inputs, parameters and incoming gradients, and what the forward pass saves for the backward pass:
        a gate that is saved as 1 - 1e-7 has few digits of its distance from 1. Of what is saved, equal values move
        equally, so that a maximum stays one of the values it was taken of.
        """
        parameters = self.model().parameters
        rng = np.random.default_rng([self.seed, 5, attempt])

        def nudge(a: Any) -> Any:
            return a + _ulp(a, dtype) * rng.choice([-1.0, 1.0], a.shape) if a.dtype.kind == "f" else a

        def nudge_saved(a: Array) -> Array:
            moved: Array = a + _ulp(a, dtype) * _sign(a, attempt)
            return moved

        before = dict(parameters)
        try:
            for name, value in before.items():
                parameters[name] = nudge(value)
            with runs.saving(nudge_saved):
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
        """Run the forward pass only: the outputs, and what runs the backward pass, whatever is called in between."""
        given = self.cast(dtype, inputs), self.cast(dtype, self.cotangents(inputs))
        how: dict[str, Any] = {"seed": self.seed, "wants_dx": self.wants, "training": training}
        return runs.start(self.model(dtype), *given, **how)

    def change_of_saved_array(
        self, dtype: str, inputs: Sequence[Any], *, training: bool = True
    ) -> runs.SavedArrayChange | None:
        """The first array that a step changes after ``ctx.save``."""
        given = self.cast(dtype, inputs), self.cast(dtype, self.cotangents(inputs))
        how: dict[str, Any] = {"seed": self.seed, "wants_dx": self.wants, "training": training}
        return runs.change_of_saved_array(self.model(dtype), *given, **how)

    @staticmethod
    def cast(dtype: str, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Floats in a dtype, each contiguous or scattered in memory as it is."""

        def convert(a: Any) -> Any:
            if a.dtype.kind != "f" or a.dtype == dtype:
                return a
            return (contiguous if a.flags.c_contiguous else scattered)(a.astype(dtype))

        return tuple(map(convert, arrays))


def _ulp(a: Array, dtype: str) -> Array:
    """One unit in the last place of a float type."""
    return np.spacing(np.abs(a).astype(dtype)).astype("float64")  # type: ignore[no-any-return]


def _sign(a: Array, attempt: int) -> Array:
    """1 or -1, as a hash of the value says."""
    bits = np.ascontiguousarray(a, "float64").view("uint64") + np.uint64(attempt)
    mixed = (bits ^ (bits >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return np.where(mixed >> np.uint64(63), 1.0, -1.0)
