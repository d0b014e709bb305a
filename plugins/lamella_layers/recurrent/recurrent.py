"""What recurrent layers have in common: they take a sequence step by step and carry a state from each step to the next.

N batch, T time steps. The forward pass multiplies the input of all steps by ``kernel`` at once, z = x W + b; then each
step costs one small product, of the state with ``recurrent_kernel``. The backward pass takes the steps in the opposite
order (backpropagation through time) and collects the gradients of z; from them the gradients of both kernels follow as
one large product each:

    dW = x^T dz;   dR = h^T dz, with the h before each step;   db = sum of dz over N and T;   dx = dz W^T

A layer gives the formulas of one step, ``step`` and ``step_dx``. Each gate has its own z and its own blocks of W and R.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import numpy as np

import lamella as lm
from lamella.arguments import flag, initializer_argument, positive

__all__ = [
    "Recurrent",
    "Sequences",
    "States",
    "by_gate",
    "clipped_lengths",
    "kept_recurrence",
    "recurrence",
    "recurrence_dx",
]

States = tuple[Any, ...]


class Sequences(NamedTuple):
    """What a recurrent layer is called with: x, the length of each sequence or None, and the states to begin with."""

    x: Any
    lengths: Any
    initial: States


class Recurrent(lm.Layer):
    """What `RNN`, `LSTM` and `GRU` have in common: everything but the step. Abstract."""

    recurrent = True
    operator: ClassVar[str]
    states: ClassVar[tuple[str, ...]] = ("h",)
    gates: ClassVar[tuple[str, ...]] = ("h",)  # blocks of the kernels, in order
    onnx_gates: ClassVar[tuple[str, ...]] = ("h",)  # the same in ONNX's order
    has_two_biases: ClassVar[bool] = False  # the second, recurrent_bias, goes with the recurrent kernel

    def __init__(
        self,
        units: int,
        *,
        return_sequences: bool = True,
        return_state: bool = False,
        reverse: bool = False,
        truncate: int | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
    ):
        self.units = positive(units, "units")
        self.return_sequences = flag(return_sequences, "return_sequences")
        self.return_state = flag(return_state, "return_state")
        self.reverse = flag(reverse, "reverse")
        self.truncate = None if truncate is None else positive(truncate, "truncate")
        self.use_bias = flag(use_bias, "use_bias")
        self.kernel_initializer = initializer_argument(kernel_initializer, "kernel_initializer")
        self.recurrent_initializer = initializer_argument(recurrent_initializer, "recurrent_initializer")
        self.bias_initializer = initializer_argument(bias_initializer, "bias_initializer")

    @abc.abstractmethod
    def step(self, xp: Any, z: Any, states: States, kernel: Any, params: Any) -> tuple[States, tuple[Any, ...]]:
        """Return the next states, and what `step_dx` needs of this step.

        ``z`` is that of this step, (gates, N, units), ``kernel`` the recurrent kernel, (gates, units, units).
        """

    @abc.abstractmethod
    def step_dx(self, xp: Any, d: States, kept: tuple[Any, ...], h: Any, transposed: Any) -> tuple[States, States]:
        """Return the gradients of the states before this step, and of z gate by gate.

        Where the gradient of the last gate's product with the recurrent kernel differs from that of its z, it follows.
        ``d`` are the gradients of the states after this step, ``h`` is the one before it, and ``transposed`` the
        recurrent kernel, each gate's transposed.
        """

    def split(self, inputs: tuple[Any, ...]) -> Sequences:
        """Tell lengths, which have only the batch axis, from states."""
        x, *more = inputs
        lengths = more.pop(0) if more and len(more[0].shape) == 1 else None
        return Sequences(x, lengths, tuple(more))

    def build(self, declare: lm.Declare, *inputs: lm.ArraySpec) -> lm.ArraySpec | tuple[lm.ArraySpec, ...]:
        x, lengths, initial = self.split(inputs)
        features = x.shape[-1]
        if len(x.shape) != 3 or not isinstance(features, int) or not x.is_float or 0 in x.shape:
            raise lm.GraphError(
                f"expected floats (N, timesteps, features) with a known number of features, got {x}. Likely fix: "
                "Reshape((timesteps, features)) before this layer, or Input(('T', features))"
            )
        if lengths is not None and not np.issubdtype(lengths.dtype, np.integer):
            raise lm.GraphError(
                f"expected the lengths of the sequences as integers (N,), got {lengths}. Likely fix: "
                "Input((), dtype='int64', low=0, high=timesteps + 1)"
            )
        state = lm.ArraySpec(("N", self.units), x.dtype)
        if initial and [(s.shape, s.dtype) for s in initial] != [(state.shape, state.dtype)] * len(self.states):
            raise lm.GraphError(
                f"expected {' and '.join(self.states)} to begin with, each {state}, after x and, if there are any, the "
                f"lengths (N,) of the sequences; got {', '.join(map(str, initial))}"
            )
        width = len(self.gates) * self.units
        declare.features(-1)
        declare.parameter("kernel", (features, width), self.kernel_initializer, fan_in=features, fan_out=width)
        declare.parameter(
            "recurrent_kernel", (self.units, width), self.recurrent_initializer, fan_in=self.units, fan_out=width
        )
        if self.use_bias:
            declare.parameter("bias", (width,), self.bias_start(), fan_in=features, fan_out=width)
            if self.has_two_biases:
                declare.parameter("recurrent_bias", (width,), self.bias_initializer, fan_in=self.units, fan_out=width)
        y = x.replace(shape=("N", x.shape[1], self.units)) if self.return_sequences else state
        y = y.replace(low=None, high=None)
        return (y, *(state for _ in self.states)) if self.return_state else y

    def bias_start(self) -> Any:
        """Return how the bias starts."""
        return self.bias_initializer

    def bias_of_z(self, xp: Any, params: Any) -> Any:
        """What is added to the product of the inputs, (gates, 1, units)."""
        return xp.reshape(params.bias, (len(self.gates), 1, self.units))

    def onnx_attributes(self) -> dict[str, Any]:
        """What the native operator needs to know beside units and direction."""
        return {}

    def forward_pass(self, ctx: lm.Context, *inputs: Any) -> Any:
        given = self.split(inputs)
        if ctx.training:
            y, last, kept = kept_recurrence(ctx, self, ctx.params, given)
        else:
            (y, last), kept = recurrence(ctx, self, ctx.params, given), None
        ctx.save(given, kept)
        y = y if self.return_sequences else last[0]
        return (y, *last) if self.return_state else y

    def backward_pass(self, ctx: lm.Context, *incoming: Any) -> Any:
        given, kept = ctx.saved
        if kept is None:  # inference kept nothing
            _, _, kept = kept_recurrence(ctx, self, ctx.params, given)
        dx, d, gradients = recurrence_dx(
            ctx, self, ctx.params, given, kept, incoming, trainable=ctx.trainable, wants_dx=ctx.wants_dx[0]
        )
        ctx.grad(**gradients)
        return (dx, *(() if given.lengths is None else (None,)), *(d if given.initial else ()))


@lm.primitive
def recurrence(xp: Any, layer: Recurrent, params: Any, given: Sequences) -> tuple[Any, States]:
    """The forward pass in inference: h of all steps, or None where the layer gives only the last; the last states."""
    y, last, _ = _forward_steps(xp, layer, params, given, keep=False)
    return y, last


@lm.primitive
def kept_recurrence(xp: Any, layer: Recurrent, params: Any, given: Sequences) -> tuple[Any, States, Any]:
    """The forward pass in training: what `recurrence` gives, and what `recurrence_dx` needs."""
    return _forward_steps(xp, layer, params, given, keep=True)


@lm.primitive
def recurrence_dx(
    xp: Any,
    layer: Recurrent,
    params: Any,
    given: Sequences,
    kept: Any,
    incoming: tuple[Any, ...],
    *,
    trainable: bool,
    wants_dx: bool,
) -> tuple[Any, States, dict[str, Any]]:
    """The gradients of x, of the states to begin with, and of parameters by name; ``incoming`` are those of outputs."""
    d, dzs = _backward_steps(xp, layer, params, given, kept, incoming)
    # (N, T, features) -> (T*N, features), (T, N, units) -> (T*N, units)
    x = xp.permute_dims(given.x, (1, 0, 2))
    x_rows, h_rows, *dz_rows = (xp.reshape(a, (-1, a.shape[-1])) for a in (x, kept[-1], *dzs))
    own, past = dz_rows[: len(layer.gates)], [*dz_rows[: len(layer.gates) - 1], dz_rows[-1]]
    gradients = {}
    if trainable:
        gradients = {"kernel": [x_rows.T @ d for d in own], "recurrent_kernel": [h_rows.T @ d for d in past]}
        if layer.use_bias:
            gradients["bias"] = [xp.sum(d, axis=0) for d in own]
        if layer.use_bias and layer.has_two_biases:
            gradients["recurrent_bias"] = [xp.sum(d, axis=0) for d in past]
    dx = None
    if wants_dx:
        kernel = by_gate(xp, params.kernel, layer.units)
        dx_rows = sum(d @ kernel[k, ...].T for k, d in enumerate(own))
        # (T*N, features) -> (N, T, features)
        dx = xp.permute_dims(xp.reshape(dx_rows, x.shape), (1, 0, 2))
    return dx, d, {name: xp.concat(parts, axis=-1) for name, parts in gradients.items()}


def _forward_steps(
    xp: Any, layer: Recurrent, params: Any, given: Sequences, *, keep: bool
) -> tuple[Any, States, tuple[Any, ...]]:
    """What `kept_recurrence` gives; what it keeps of each step, h before it last, only where asked for."""
    # (T, 1, N, features) @ (gates, features, units) -> (T, gates, N, units)
    x = xp.permute_dims(given.x, (1, 0, 2))
    z = x[:, None, :, :] @ by_gate(xp, params.kernel, layer.units)
    if layer.use_bias:
        z += layer.bias_of_z(xp, params)
    recurrent = by_gate(xp, params.recurrent_kernel, layer.units)
    zeros = xp.zeros((x.shape[1], layer.units), dtype=x.dtype)

    def body(states: States, xs: tuple[Any, ...]) -> tuple[States, tuple[Any, ...]]:
        after, kept = layer.step(xp, xs[0], states, recurrent, params)
        y = after[0]
        if given.lengths is not None:
            y = xp.where(xs[1], y, 0.0)
            after = tuple(xp.where(xs[1], a, b) for a, b in zip(after, states, strict=True))
        return after, ((y,) if layer.return_sequences else ()) + ((*kept, states[0]) if keep else ())

    xs = (z,) if given.lengths is None else (z, _valid(xp, given))
    last, ys = lm.scan(xp, body, given.initial or (zeros,) * len(layer.states), xs, reverse=layer.reverse)
    y = None
    if layer.return_sequences:
        y, *ys = ys
        y = xp.permute_dims(y, (1, 0, 2))
    return y, last, tuple(ys)


def _backward_steps(
    xp: Any, layer: Recurrent, params: Any, given: Sequences, kept: tuple[Any, ...], incoming: tuple[Any, ...]
) -> tuple[States, tuple[Any, ...]]:
    """The steps in the opposite order: gradients of the initial states, and of z gate by gate, (T, N, units)."""
    dy, *rest = incoming
    zeros = xp.zeros((given.x.shape[0], layer.units), dtype=given.x.dtype)
    d = tuple(rest) if rest else (zeros,) * len(layer.states)
    xs: dict[Any, Any] = dict(enumerate(kept))
    if layer.return_sequences:
        xs["dy"] = xp.permute_dims(dy, (1, 0, 2))
    else:
        d = (d[0] + dy, *d[1:])
    if given.lengths is not None:
        xs["valid"] = _valid(xp, given)
    if layer.truncate is not None:
        xs["flows"] = _flows(xp, layer, given)
    # each gate's own (units, units), transposed anew in memory: products with it are faster so
    transposed = xp.permute_dims(by_gate(xp, params.recurrent_kernel, layer.units), (0, 2, 1))
    transposed = xp.reshape(xp.reshape(transposed, (-1,)), transposed.shape)

    def body(after: States, xs_t: tuple[Any, ...]) -> tuple[States, tuple[Any, ...]]:
        now = dict(zip(xs, xs_t, strict=True))
        dh, *others = after
        *parts, h = (now[k] for k in range(len(kept)))
        d = (dh + now["dy"] if "dy" in now else dh, *others)
        before, dzs = layer.step_dx(xp, d, tuple(parts), h, transposed)
        if "flows" in now:
            before = tuple(a * now["flows"] for a in before)
        if "valid" in now:
            before = tuple(xp.where(now["valid"], a, b) for a, b in zip(before, after, strict=True))
            dzs = tuple(xp.where(now["valid"], dz, 0.0) for dz in dzs)
        return before, dzs

    before, dzs = lm.scan(xp, body, d, tuple(xs.values()), reverse=not layer.reverse)
    return before, dzs


def by_gate(xp: Any, kernel: Any, units: int) -> Any:
    """(rows, gates * units) -> (gates, rows, units)."""
    return xp.permute_dims(xp.reshape(kernel, (kernel.shape[0], kernel.shape[1] // units, units)), (1, 0, 2))


def clipped_lengths(xp: Any, given: Sequences) -> Any:
    """How many steps each sequence has, (N,); a length of more than T means T."""
    return xp.clip(xp.astype(given.lengths, xp.int64), 0, given.x.shape[1])


def _valid(xp: Any, given: Sequences) -> Any:
    """(T, N, 1): whether a sequence has a step."""
    return xp.arange(given.x.shape[1])[:, None, None] < clipped_lengths(xp, given)[None, :, None]


def _flows(xp: Any, layer: Recurrent, given: Sequences) -> Any:
    """(T, N or 1, 1): 0 for the first step of each chunk after the first, which hands no gradient on; else 1."""
    steps = xp.arange(given.x.shape[1])[:, None, None]
    if layer.reverse:  # counted from the end of each sequence
        if given.lengths is None:
            steps = xp.flip(steps, axis=0)
        else:
            steps = clipped_lengths(xp, given)[None, :, None] - 1 - steps
    return xp.astype((steps % layer.truncate != 0) | (steps == 0), given.x.dtype)
