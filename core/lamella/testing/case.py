"""A layer made ready to be examined: models in both float types and on any backend, inputs, and runs of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lamella.engine import Batch, Plan, StepResult, infer, merge, run_slices
from lamella.graph import Input
from lamella.losses import Loss
from lamella.model import Model
from lamella.protocol import ArraySpec, Declare, Layer
from lamella.testing.specimen import Specimen

__all__ = ["AXIS", "Case", "LossLayer"]

AXIS = 5  # the size that an axis with a name other than "N" gets


class LossLayer(Layer):
    """A loss as a layer of two inputs, prediction and target, whose output is the loss of each sample."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def build(self, declare: Declare, *inputs: ArraySpec) -> ArraySpec:
        return inputs[0].replace(shape=("N",))

    def forward_pass(self, ctx: Any, *inputs: Any) -> Any:
        return self.loss.forward(ctx, *inputs)

    def backward_pass(self, ctx: Any, *gradients: Any) -> Any:
        return self.loss.backward(ctx, *gradients), None


class _Projection(Loss):
    """The sum of prediction times target: its gradient, the target itself, is what the layer gets to see."""

    def forward(self, ctx: Any, prediction: Any, target: Any) -> Any:
        ctx.save(target)
        prediction = ctx.xp.astype(prediction, ctx.dtype)  # an output may be of integers, and then has no gradient
        if target.ndim == 1:
            return prediction * target
        return ctx.xp.sum(prediction * target, axis=tuple(range(1, target.ndim)))

    def backward(self, ctx: Any, d: Any) -> Any:
        return ctx.saved[0]


class Case:
    """One specimen and everything that laws ask about it. Draws follow from ``seed``.

    Attributes:
        specimen: what is examined.
        layer: the layer, or the loss as a layer.
        wants: for each input, whether there is a gradient to check.
    """

    def __init__(self, specimen: Specimen, seed: int = 0) -> None:
        self.specimen = specimen
        self.seed = seed
        self.wants: bool | tuple[bool, ...] = True
        self._models: dict[tuple[str, str], Model] = {}
        specs = specimen.inputs
        if isinstance(specimen.subject, Loss):
            self.layer: Any = LossLayer(specimen.subject)
            self.wants = (True, False)
            prepared = self._prepare(_draw(specs, 2, np.random.default_rng(seed), 1.0))[1]
            kind = "float32" if prepared.dtype.kind == "f" else str(prepared.dtype)
            specs = (specs[0], ArraySpec(("N", *prepared.shape[1:]), kind))
        else:
            self.layer = specimen.subject
        self.specs = specs
        self._values: dict[str, Any] | None = None

    def model(self, dtype: str = "float64", backend: str = "numpy") -> Model:
        """A model of the layer alone. Parameters are moved off their initial values, to the same float32 numbers."""
        if (dtype, backend) not in self._models:
            nodes = tuple(Input(s.shape[1:], None if s.is_float else s.dtype) for s in self.specs)
            model = Model(nodes, self.layer(*nodes), dtype=dtype, seed=self.seed, backend=backend)
            if self._values is None:
                rng = np.random.default_rng([self.seed, 1])
                self._values = {
                    name: (value + 0.3 * rng.standard_normal(value.shape)).astype("float32")
                    for name, value in model.parameters.items()
                }
            for name, value in self._values.items():
                model.parameters[name] = value
            self._models[dtype, backend] = model
        return self._models[dtype, backend]

    def draw(self, rows: int, *, scale: float = 1.0, attempt: int = 0) -> tuple[np.ndarray[Any, Any], ...]:
        """Random inputs, floats as float32 numbers, none of them contiguous in memory where they have two axes."""
        rng = np.random.default_rng([self.seed, 2, rows, attempt])
        return tuple(map(_scatter, self._prepare(_draw(self.specimen.inputs, rows, rng, scale))))

    def constant(self, rows: int, value: float) -> tuple[np.ndarray[Any, Any], ...]:
        """Inputs whose floats are all one value."""
        return tuple(
            np.full_like(x, value) if spec.is_float and (self.wants is True or k == 0) else x
            for k, (x, spec) in enumerate(zip(self.draw(rows), self.specs, strict=True))
        )

    def _prepare(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if isinstance(self.specimen.subject, Loss):
            return inputs[0], self.specimen.subject.prepare(self.specimen.inputs[0], inputs[1])
        return inputs

    def cotangents(self, inputs: Sequence[Any]) -> tuple[np.ndarray[Any, Any], ...]:
        """Random incoming gradients, one for each output."""
        rng = np.random.default_rng([self.seed, 3])
        return tuple(_scatter(rng.standard_normal(y.shape).astype("float32")) for y in self.infer("float64", inputs))

    def infer(self, dtype: str, inputs: Sequence[Any], backend: str = "numpy") -> tuple[np.ndarray[Any, Any], ...]:
        """The outputs in inference mode."""
        model = self.model(dtype, backend)
        arrays = model.arrays()
        given = [model.device.asarray(x) for x in self.cast(dtype, inputs)]
        return tuple(map(model.device.asnumpy, infer(model.program, model.device.xp, arrays, given)))

    def step(
        self,
        dtype: str,
        inputs: Sequence[Any],
        cotangents: Sequence[Any],
        *,
        backend: str = "numpy",
        training: bool = True,
        wants_dx: bool = True,
        slices: Sequence[int] = (),
    ) -> StepResult:
        """One forward and backward pass in slices of the given numbers of rows; everything comes back as NumPy."""
        results = self.slices(
            dtype, inputs, cotangents, backend=backend, training=training, wants_dx=wants_dx, slices=slices
        )
        device = self.model(dtype, backend).device
        merged = merge(results, device.xp)
        return StepResult(
            merged.loss,
            tuple(map(device.asnumpy, merged.predictions)),
            {name: device.asnumpy(value) for name, value in merged.gradients.items()},
            tuple(None if dx is None else device.asnumpy(dx) for dx in merged.dx),
            {name: device.asnumpy(value) for name, value in merged.updates.items()},
        )

    def slices(
        self,
        dtype: str,
        inputs: Sequence[Any],
        cotangents: Sequence[Any],
        *,
        backend: str = "numpy",
        training: bool = True,
        wants_dx: bool = True,
        slices: Sequence[int] = (),
    ) -> list[StepResult]:
        """What each slice of a step gives."""
        model = self.model(dtype, backend)
        bring = model.device.asarray
        inputs, cotangents = self.cast(dtype, inputs), self.cast(dtype, cotangents)
        batches, start = [], 0
        for rows in slices or (len(inputs[0]),):
            part = slice(start, start + rows)
            batches.append(
                Batch(
                    tuple(bring(x[part]) for x in inputs),
                    tuple(bring(c[part]) for c in cotangents),
                    tuple(bring(np.ones(rows, dtype)) for _ in cotangents),
                    start,
                )
            )
            start += rows
        plan = Plan(model.program, model.frozen_layers, wants_dx=self.wants if wants_dx else False, training=training)
        arrays = model.arrays()
        losses = [_Projection()] * len(model.program.outputs)
        return run_slices(plan, model.device, arrays, batches, losses, seed=self.seed, step=3)

    @staticmethod
    def cast(dtype: str, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Floats in a dtype, in the memory order they have."""
        return tuple(a.astype(dtype, order="K", copy=False) if a.dtype.kind == "f" else a for a in arrays)


def _draw(specs: Sequence[ArraySpec], rows: int, rng: np.random.Generator, scale: float) -> tuple[Any, ...]:
    drawn = []
    for spec in specs:
        shape = tuple(rows if n == "N" else AXIS if isinstance(n, str) else n for n in spec.shape)
        if spec.is_float:
            drawn.append((scale * rng.standard_normal(shape)).astype("float32"))
        elif spec.dtype == "bool":
            drawn.append(rng.integers(0, 2, shape).astype(bool))
        else:
            low = 0 if spec.low is None else spec.low
            high = low + 10 if spec.high is None else spec.high
            drawn.append(rng.integers(low, high, shape).astype(spec.dtype))
    return tuple(drawn)


def _scatter(array: Any) -> np.ndarray[Any, Any]:
    """The same values with the last axis slowest in memory, and gaps between neighbours."""
    room = np.empty((*array.shape[::-1], 2), array.dtype)
    view: np.ndarray[Any, Any] = room[..., 0].transpose()
    view[...] = array
    return view
