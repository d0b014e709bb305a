"""RNN, LSTM and GRU: layers that walk over the timesteps of a sequence.

All steps of the input go through one product with ``kernel``; then each step costs one small product of the state with
``recurrent_kernel``. The way back is a second walk, in the other direction, which gathers what arrives at the inputs of
the gates; the gradients of both kernels are one large product each, after it.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import numpy as np

import lamella as lm
from lamella import registry
from lamella.arguments import choice, flag, positive
from lamella_layers.recurrent.steps import gru_step, gru_step_dx, lstm_step, lstm_step_dx

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "recurrence"]

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
    bias_initializer: Any = "zeros"
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
    ):
        self.units = positive(units, "units")
        self.return_sequences = flag(return_sequences, "return_sequences")
        self.return_state = flag(return_state, "return_state")
        self.reverse = flag(reverse, "reverse")
        self.truncate = None if truncate is None else positive(truncate, "truncate")
        self.use_bias = flag(use_bias, "use_bias")
        self.kernel_initializer = kernel_initializer
        self.recurrent_initializer = recurrent_initializer

    @abc.abstractmethod
    def step(self, xp: Any, z: Any, states: States, kernel: Any, params: Any) -> tuple[States, tuple[Any, ...]]:
        """Return the next states, and what `step_dx` needs of this step."""

    @abc.abstractmethod
    def step_dx(self, xp: Any, d: States, kept: tuple[Any, ...], h: Any, transposed: Any) -> tuple[States, States]:
        """Return the gradients of the states before, and of z gate by gate; where the last gate's product with the
        recurrent kernel has another than its z, that comes last. ``h`` is the one before this step."""

    def split(self, inputs: tuple[Any, ...]) -> Sequences:
        """Tell lengths, which have the batch axis only, from states."""
        x, *more = inputs
        lengths = more.pop(0) if more and len(more[0].shape) == 1 else None
        return Sequences(x, lengths, tuple(more))

    def build(self, declare: lm.Declare, *inputs: lm.ArraySpec) -> Any:
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
        declare.parameter("kernel", (features, width), self.kernel_initializer, fan_in=features, fan_out=width)
        declare.parameter(
            "recurrent_kernel", (self.units, width), self.recurrent_initializer, fan_in=self.units, fan_out=width
        )
        if self.use_bias:
            declare.parameter("bias", (width,), self.bias_initializer)
            if self.has_two_biases:
                declare.parameter("recurrent_bias", (width,), "zeros")
        y = x.replace(shape=("N", x.shape[1], self.units)) if self.return_sequences else state
        y = y.replace(low=None, high=None)
        return (y, *(state for _ in self.states)) if self.return_state else y

    def bias_of_z(self, xp: Any, params: Any) -> Any:
        """What is added to the product of the inputs, (gates, 1, units)."""
        return xp.reshape(params.bias, (len(self.gates), 1, self.units))

    def onnx_attributes(self) -> dict[str, Any]:
        """What the native operator needs to know beside units and direction."""
        return {}

    def forward_pass(self, ctx: lm.Context, *inputs: Any) -> Any:
        given = self.split(inputs)
        if ctx.training:
            y, last, kept = walk(ctx.xp, self, ctx.params, given)
        else:
            (y, last), kept = recurrence(ctx, self, ctx.params, given), None
        ctx.save(given, kept)
        y = y if self.return_sequences else last[0]
        return (y, *last) if self.return_state else y

    def backward_pass(self, ctx: lm.Context, *incoming: Any) -> Any:
        (given, kept), xp, params = ctx.saved, ctx.xp, ctx.params
        if kept is None:  # inference kept nothing
            _, _, kept = walk(xp, self, params, given)
        d, dzs = self._walk_back(xp, params, given, kept, incoming)
        # (N, T, features) -> (T*N, features), (T, N, units) -> (T*N, units)
        x = xp.permute_dims(given.x, (1, 0, 2))
        x_rows, h_rows, *dz_rows = (xp.reshape(a, (-1, a.shape[-1])) for a in (x, kept[-1], *dzs))
        own, past = dz_rows[: len(self.gates)], [*dz_rows[: len(self.gates) - 1], dz_rows[-1]]
        if ctx.trainable:
            gradients = {"kernel": [x_rows.T @ d for d in own], "recurrent_kernel": [h_rows.T @ d for d in past]}
            if self.use_bias:
                gradients["bias"] = [xp.sum(d, axis=0) for d in own]
            if self.use_bias and self.has_two_biases:
                gradients["recurrent_bias"] = [xp.sum(d, axis=0) for d in past]
            ctx.grad(**{name: xp.concat(parts, axis=-1) for name, parts in gradients.items()})
        dx = None
        if ctx.wants_dx[0]:
            kernel = _by_gate(xp, params.kernel, self.units)
            dx_rows = sum(d @ kernel[k, ...].T for k, d in enumerate(own))
            # (T*N, features) -> (N, T, features)
            dx = xp.permute_dims(xp.reshape(dx_rows, x.shape), (1, 0, 2))
        return (dx, *(() if given.lengths is None else (None,)), *(d if given.initial else ()))

    def _walk_back(
        self, xp: Any, params: Any, given: Sequences, kept: tuple[Any, ...], incoming: tuple[Any, ...]
    ) -> tuple[States, tuple[Any, ...]]:
        """The gradients of the initial states, and those of what each step adds up."""
        dy, *rest = incoming
        zeros = xp.zeros((given.x.shape[0], self.units), dtype=given.x.dtype)
        d = tuple(rest) if rest else (zeros,) * len(self.states)
        xs: dict[Any, Any] = dict(enumerate(kept))
        if self.return_sequences:
            xs["dy"] = xp.permute_dims(dy, (1, 0, 2))
        else:
            d = (d[0] + dy, *d[1:])
        if given.lengths is not None:
            xs["valid"] = _valid(xp, given)
        if self.truncate is not None:
            xs["flows"] = self._flows(xp, given)
        # each gate's own (units, units), transposed anew in memory: products with it are faster so
        transposed = xp.permute_dims(_by_gate(xp, params.recurrent_kernel, self.units), (0, 2, 1))
        transposed = xp.reshape(xp.reshape(transposed, (-1,)), transposed.shape)

        def body(after: States, xs_t: tuple[Any, ...]) -> tuple[States, tuple[Any, ...]]:
            now = dict(zip(xs, xs_t, strict=True))
            dh, *others = after
            *parts, h = (now[k] for k in range(len(kept)))
            d = (dh + now["dy"] if "dy" in now else dh, *others)
            before, dzs = self.step_dx(xp, d, tuple(parts), h, transposed)
            if "flows" in now:
                before = tuple(a * now["flows"] for a in before)
            if "valid" in now:
                before = tuple(xp.where(now["valid"], a, b) for a, b in zip(before, after, strict=True))
                dzs = tuple(xp.where(now["valid"], dz, 0.0) for dz in dzs)
            return before, dzs

        before, dzs = lm.scan(xp, body, d, tuple(xs.values()), reverse=not self.reverse)
        return before, dzs

    def _flows(self, xp: Any, given: Sequences) -> Any:
        """(T, N or 1, 1): 0 for the first step of each chunk but the first, through which no gradient goes on."""
        steps = xp.arange(given.x.shape[1])[:, None, None]
        if self.reverse:  # counted from the end of each sequence
            steps = xp.flip(steps, axis=0) if given.lengths is None else _lengths(xp, given)[None, :, None] - 1 - steps
        return xp.astype((steps % self.truncate != 0) | (steps == 0), given.x.dtype)


def _by_gate(xp: Any, kernel: Any, units: int) -> Any:
    """(rows, gates * units) -> (gates, rows, units)."""
    return xp.permute_dims(xp.reshape(kernel, (kernel.shape[0], kernel.shape[1] // units, units)), (1, 0, 2))


def _lengths(xp: Any, given: Sequences) -> Any:
    """How many steps of each sequence there are, (N,): what is more than all of them, is all."""
    return xp.clip(xp.astype(given.lengths, xp.int64), 0, given.x.shape[1])


def _valid(xp: Any, given: Sequences) -> Any:
    """(T, N, 1): whether a sequence has a step."""
    return xp.arange(given.x.shape[1])[:, None, None] < _lengths(xp, given)[None, :, None]


def walk(
    xp: Any, layer: Recurrent, params: Any, given: Sequences, *, keep: bool = True
) -> tuple[Any, States, tuple[Any, ...]]:
    """Return h of all steps (N, T, units), or None where the layer gives only the last; the last states; and, where
    asked for, what the way back needs of each step, h before it last."""
    # (T, 1, N, features) @ (gates, features, units) -> (T, gates, N, units)
    x = xp.permute_dims(given.x, (1, 0, 2))
    z = x[:, None, :, :] @ _by_gate(xp, params.kernel, layer.units)
    if layer.use_bias:
        z += layer.bias_of_z(xp, params)
    recurrent = _by_gate(xp, params.recurrent_kernel, layer.units)
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


@lm.primitive
def recurrence(xp: Any, layer: Recurrent, params: Any, given: Sequences) -> tuple[Any, States]:
    """The forward pass in inference: h of all steps, or None where the layer gives only the last; the last states."""
    y, last, _ = walk(xp, layer, params, given, keep=False)
    return y, last


@recurrence.kernel("onnx")
def _(xp: Any, layer: Recurrent, params: Any, given: Sequences) -> tuple[Any, States]:
    """The native operator: https://onnx.ai/onnx/operators/. Onnxruntime has it for float32."""
    x, _, initial = given
    if x.dtype != xp.float32:
        return recurrence.reference(xp, layer, params, given)  # type: ignore[no-any-return]
    lengths = None if given.lengths is None else _lengths(xp, given)
    rows, steps, units = x.shape[0], x.shape[1], layer.units
    order = [layer.gates.index(gate) * units + k for gate in layer.onnx_gates for k in range(units)]

    def ordered(array: Any) -> Any:
        """The last axis in ONNX's order of the gates."""
        return array if layer.gates == layer.onnx_gates else xp.take(array, xp.constant(np.array(order)), axis=-1)

    # (features, gates) -> (1, gates, features), for one direction
    kernel, recurrent = (xp.expand_dims(ordered(array).T, axis=0) for array in (params.kernel, params.recurrent_kernel))
    biases = None
    if layer.use_bias:
        second = ordered(params.recurrent_bias) if layer.has_two_biases else xp.zeros((len(order),), dtype=x.dtype)
        biases = xp.expand_dims(xp.concat([ordered(params.bias), second]), axis=0)
    state = (1, rows, units)
    y, *last = xp.node(
        layer.operator,
        xp.permute_dims(x, (1, 0, 2)),
        kernel,
        recurrent,
        biases,
        None if lengths is None else xp.astype(lengths, xp.int32),
        *(xp.expand_dims(s, axis=0) for s in initial),
        shape=[(steps, 1, rows, units), *(state for _ in layer.states)],
        dtype=[x.dtype] * (1 + len(layer.states)),
        hidden_size=units,
        direction="reverse" if layer.reverse else "forward",
        **layer.onnx_attributes(),
    )
    # (T, 1, N, units) -> (N, T, units)
    y = xp.permute_dims(xp.squeeze(y, axis=1), (1, 0, 2)) if layer.return_sequences else None
    last = [xp.squeeze(s, axis=0) for s in last]
    if lengths is not None and initial:  # onnxruntime makes the last state of a sequence without steps 0
        some = lengths[:, None] > 0
        last = [xp.where(some, after, before) for after, before in zip(last, initial, strict=True)]
    return y, tuple(last)


class RNN(Recurrent):
    """The vanilla recurrent layer: ``h_t = f(x_t W + h_(t-1) R + b)``, walked through all of time on the way back.

    Arguments:
        units: how many numbers the state has.
        activation: f: "tanh", "relu" or "sigmoid".
        return_sequences: whether to give h of every step, or of the last only, which is what Keras does unless told.
        return_state: whether to give the last h as a further output.
        reverse: walk from the last step to the first. Outputs stay in the order of time, as in ONNX and PyTorch.
        truncate: cut the gradient between chunks of so many steps; None for the whole sequence. States go on, and only
            the way back forgets.
        use_bias: whether to add ``b``.
        kernel_initializer: how ``W`` starts.
        recurrent_initializer: how ``R`` starts; ``b`` starts at zero.

    Inputs: x; then, if sequences have different lengths, these as integers (N,); then, if it is not zero, the h to
    begin with (N, units). After the end of a sequence outputs are 0, and its last state is that of its own last step:
    with the length 0, the one that it begins with. A length of more than ``timesteps`` means all of them; an input
    with ``low=0, high=timesteps + 1`` refuses it.

    Shapes: (N, timesteps, features) -> (N, timesteps, units), or (N, units) without ``return_sequences``. Parameters:
    ``kernel`` (features, units), ``recurrent_kernel`` (units, units), ``bias`` (units,).

    Raises:
        ArgumentError: if ``activation`` is another, or ``units`` or ``truncate`` no positive int.
        GraphError: if the input is no sequence, or lengths or states don't fit.

    Source: https://onnx.ai/onnx/operators/onnx__RNN.html

    >>> import lamella as lm
    >>> model = lm.Sequential([RNN(4), RNN(3, return_sequences=False)], input_shape=("T", 2))
    >>> model.predict([[[0.0, 1.0], [1.0, 0.0]]]).shape
    (1, 3)
    """

    operator = "RNN"

    def __init__(
        self,
        units: int,
        *,
        activation: str = "tanh",
        return_sequences: bool = True,
        return_state: bool = False,
        reverse: bool = False,
        truncate: int | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
    ):
        super().__init__(
            units,
            return_sequences=return_sequences,
            return_state=return_state,
            reverse=reverse,
            truncate=truncate,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
        )
        self.activation = choice(activation, "activation", ("tanh", "relu", "sigmoid"))
        self.function: lm.ActivationFunction = registry.find("activations", activation)

    def onnx_attributes(self) -> dict[str, Any]:
        return {"activations": [self.activation.capitalize()]}

    def step(self, xp: Any, z: Any, states: States, kernel: Any, params: Any) -> tuple[States, tuple[Any, ...]]:
        h = self.function.forward(xp, z[0, ...] + states[0] @ kernel[0, ...])
        return (h,), (h,)

    def step_dx(self, xp: Any, d: States, kept: tuple[Any, ...], h: Any, transposed: Any) -> tuple[States, States]:
        (y,) = kept
        dz = self.function.backward(xp, y, y, d[0])  # of these functions y tells the slope
        return (dz @ transposed[0, ...],), (dz,)


def _remember(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int | None, fan_out: int | None) -> Any:
    """0, and 1 for the forget gate."""
    return np.repeat([0.0, 1.0, 0.0, 0.0], shape[0] // 4)


class LSTM(Recurrent):
    """Long short-term memory: a cell c that gates write, keep and read.

    ``i, f, g, o = s(z_i), s(z_f), tanh(z_c), s(z_o)``, with the sigmoid s and ``z = x_t W + h_(t-1) R + b``;
    ``c_t = f c_(t-1) + i g``; ``h_t = o tanh(c_t)``.

    Arguments:
        units: how many numbers h and c have.
        return_sequences: whether to give h of every step, or of the last only, which is what Keras does unless told.
        return_state: whether to give the last h and c as further outputs.
        reverse: walk from the last step to the first. Outputs stay in the order of time, as in ONNX and PyTorch.
        truncate: cut the gradient between chunks of so many steps; None for the whole sequence. States go on, and only
            the way back forgets.
        use_bias: whether to add ``b``.
        kernel_initializer: how ``W`` starts.
        recurrent_initializer: how ``R`` starts; ``b`` starts at zero, but at one for the forget gate.

    Inputs: x; then, if sequences have different lengths, these as integers (N,); then, if they are not zero, the h and
    c to begin with, (N, units) each. After the end of a sequence outputs are 0, and its last states are those of its
    own last step: with the length 0, those that it begins with. A length of more than ``timesteps`` means all of them;
    an input with ``low=0, high=timesteps + 1`` refuses it.

    Shapes: (N, timesteps, features) -> (N, timesteps, units), or (N, units) without ``return_sequences``. Parameters:
    ``kernel`` (features, 4 units), ``recurrent_kernel`` (units, 4 units), ``bias`` (4 units,), in blocks i, f, c, o as
    in Keras (and PyTorch, whose bias is the sum of two); ONNX has i, o, f, c.

    Onnxruntime's LSTM ends the process, without an error, where a batch has no rows: give a file one at least.

    Raises:
        ArgumentError: if ``units`` or ``truncate`` is no positive int.
        GraphError: if the input is no sequence, or lengths or states don't fit.

    Source: https://onnx.ai/onnx/operators/onnx__LSTM.html; Hochreiter and Schmidhuber (1997),
    https://doi.org/10.1162/neco.1997.9.8.1735; forget bias: Jozefowicz et al. (2015),
    https://proceedings.mlr.press/v37/jozefowicz15.html

    >>> import lamella as lm
    >>> sequence, length = lm.Input(("T", 3)), lm.Input((), dtype="int64", low=0, high=6)
    >>> h, last, cell = LSTM(4, return_state=True)(sequence, length)
    >>> h.shape, cell.shape
    (('N', 'T', 4), ('N', 4))
    """

    operator = "LSTM"
    states = ("h", "c")
    gates = ("i", "f", "c", "o")
    onnx_gates = ("i", "o", "f", "c")
    bias_initializer = staticmethod(_remember)

    def step(self, xp: Any, z: Any, states: States, kernel: Any, params: Any) -> tuple[States, tuple[Any, ...]]:
        h, c, gates, y = lstm_step(xp, z, *states, kernel)
        return (h, c), (gates, y, states[1])

    def step_dx(self, xp: Any, d: States, kept: tuple[Any, ...], h: Any, transposed: Any) -> tuple[States, States]:
        dh, dc, dz = lstm_step_dx(xp, *d, *kept, transposed)
        return (dh, dc), dz


class GRU(Recurrent):
    """The gated recurrent unit, with the reset gate after the product, as in PyTorch and in Keras by default.

    ``z, r = s(a_z + p_z), s(a_r + p_r)`` and ``n = tanh(a_h + r p_h)``, with the sigmoid s, ``a = x_t W + b`` and
    ``p = h_(t-1) R + b'``; ``h_t = z h_(t-1) + (1 - z) n``.

    Arguments:
        units: how many numbers the state has.
        return_sequences: whether to give h of every step, or of the last only, which is what Keras does unless told.
        return_state: whether to give the last h as a further output.
        reverse: walk from the last step to the first. Outputs stay in the order of time, as in ONNX and PyTorch.
        truncate: cut the gradient between chunks of so many steps; None for the whole sequence. States go on, and only
            the way back forgets.
        use_bias: whether to add ``b`` and ``b'``.
        kernel_initializer: how ``W`` starts.
        recurrent_initializer: how ``R`` starts; both biases start at zero.

    Inputs: x; then, if sequences have different lengths, these as integers (N,); then, if it is not zero, the h to
    begin with (N, units). After the end of a sequence outputs are 0, and its last state is that of its own last step:
    with the length 0, the one that it begins with. A length of more than ``timesteps`` means all of them; an input
    with ``low=0, high=timesteps + 1`` refuses it.

    Shapes: (N, timesteps, features) -> (N, timesteps, units), or (N, units) without ``return_sequences``. Parameters:
    ``kernel`` (features, 3 units), ``recurrent_kernel`` (units, 3 units), ``bias`` and ``recurrent_bias`` (3 units,),
    in blocks z, r, h as in Keras, whose bias has both in its rows, and as in ONNX with ``linear_before_reset=1``;
    PyTorch has r, z, h.

    Onnxruntime's GRU ends the process, without an error, where a batch has no rows or no steps: give a file one at
    least.

    Raises:
        ArgumentError: if ``units`` or ``truncate`` is no positive int.
        GraphError: if the input is no sequence, or lengths or states don't fit.

    Source: https://onnx.ai/onnx/operators/onnx__GRU.html; Cho et al. (2014), https://arxiv.org/abs/1406.1078

    >>> import lamella as lm
    >>> model = lm.Sequential([GRU(4)], input_shape=(5, 2))
    >>> {name: array.shape for name, array in model.parameters.items() if "bias" in name}
    {'gru_1.bias': (12,), 'gru_1.recurrent_bias': (12,)}
    """

    operator = "GRU"
    gates = onnx_gates = ("z", "r", "h")
    has_two_biases = True

    def onnx_attributes(self) -> dict[str, Any]:
        return {"linear_before_reset": 1}

    def bias_of_z(self, xp: Any, params: Any) -> Any:
        both = 2 * self.units  # those of z and r
        bias = xp.concat([params.bias[:both] + params.recurrent_bias[:both], params.bias[both:]])
        return xp.reshape(bias, (3, 1, self.units))

    def step(self, xp: Any, z: Any, states: States, kernel: Any, params: Any) -> tuple[States, tuple[Any, ...]]:
        bias = params.recurrent_bias[2 * self.units :] if self.use_bias else xp.zeros((self.units,), dtype=z.dtype)
        h, gates, past = gru_step(xp, z, *states, kernel, bias)
        return (h,), (gates, past)

    def step_dx(self, xp: Any, d: States, kept: tuple[Any, ...], h: Any, transposed: Any) -> tuple[States, States]:
        dh, dz = gru_step_dx(xp, *d, *kept, h, transposed)
        return (dh,), dz
