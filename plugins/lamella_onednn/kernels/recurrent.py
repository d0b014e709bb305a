"""Recurrent layers, all steps in one routine, where all sequences are as long as their array.

Matrices of weights go into oneDNN's own layout, and their gradients come back, in every call. In memory time comes
first, (T, N, features), which oneDNN multiplies at once; between recurrent layers nothing has to be copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lamella_layers import GRU, LSTM, RNN
from lamella_layers.recurrent.recurrent import Recurrent, Sequences, States, kept_recurrence, recurrence, recurrence_dx
from lamella_onednn.descriptors import Descriptor, any_layout, described
from lamella_onednn.layouts import is_float32
from lamella_onednn.routines import Choice, Reorder, Routine, choose, kept, new_memory, scratch, state

__all__ = ["takes"]

_NAMES = {RNN: "vanilla_rnn", LSTM: "lstm", GRU: "lbr_gru"}
_ACTIVATIONS = {"tanh": 33, "sigmoid": 41}  # not relu, which makes 0 of NaN there
_INFERENCE, _TRAINING, _BACKWARD = 96, 64, 128
_AHEAD, _BACK = 1, 2  # directions
_X, _BEFORE, _Y, _AFTER, _KERNEL, _RECURRENT, _BIAS, _WORKSPACE = 1, (2, 3), 17, (18, 19), 33, 34, 41, 64
_DIFF = 128  # in numbers of arrays: the gradient of
_PLACES, _SLOPES = ("weights", "recurrent weights"), ("gradient of weights", "gradient of recurrent weights")
_LAYOUT_OF_WEIGHTS, _LAYOUT_OF_THEIR_GRADIENT, _LAYOUT_OF_WORKSPACE = 131, 132, 135


class _Shape(NamedTuple):
    """What routines are made for."""

    layer: type[Recurrent]
    activation: int | None
    direction: int
    sizes: tuple[int, int, int, int]  # rows, steps, features, units

    @property
    def weights(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of both kernels: layers, directions, rows, gates, units."""
        _, _, features, units = self.sizes
        return (1, 1, features, len(self.layer.gates), units), (1, 1, units, len(self.layer.gates), units)

    @property
    def bias(self) -> tuple[int, ...]:
        """The shape of the bias, which has a further block where two biases are not simply added up."""
        return (1, 1, len(self.layer.gates) + self.layer.has_two_biases, self.sizes[-1])


def _arrays(shape: _Shape, weights: Sequence[Descriptor]) -> dict[int, Descriptor | None]:
    """All arrays of the forward pass by their numbers, in the order of oneDNN; None for those that there are not."""
    rows, steps, features, units = shape.sizes
    x, y = (described((steps, rows, n)) for n in (features, units))
    states, count = described((1, 1, rows, units)), len(shape.layer.states)
    return {
        _X: x,
        **dict.fromkeys(_BEFORE[:count], states),
        _KERNEL: weights[0],
        _RECURRENT: weights[1],
        _BIAS: described(shape.bias),
        _Y: y,
        **dict.fromkeys(_AFTER[:count], states),
    }


def _passed(shape: _Shape) -> list[Descriptor | None]:
    """The same, for a routine that is to be chosen: weights may lie as it likes; an LSTM could have two more."""
    arrays = _arrays(shape, [any_layout(weights) for weights in shape.weights])
    more = [None, None] if shape.layer is LSTM else []
    return [one for number, layout in arrays.items() for one in ([*more, layout] if number == _BIAS else [layout])]


def _choice(shape: _Shape, kind: int) -> Choice:
    name, given, what = _NAMES[shape.layer], _passed(shape), f"{shape.layer.__name__} of {shape.sizes}"
    first = () if shape.activation is None else (shape.activation,)
    last = (0,) if shape.activation is None else (0, 0.0, 0.0)
    if kind != _BACKWARD:
        return choose(f"{name}_forward", kind, *first, shape.direction, *given, *last, None, what=what)
    arguments, forward = (*first, shape.direction, *given, *given, *last), _choice(shape, _TRAINING)
    return choose(f"{name}_backward", kind, *arguments, forward, None, what=f"the gradient of {what}")


class _Weights:
    """Both kernels, between lamella's layout and that of a routine."""

    def __init__(self, shape: _Shape, choice: Choice, query: int, *, gives: bool = False) -> None:
        self.layouts = [choice.layout(query, place) for place in range(2)]
        self._reorders: list[Reorder | None] = []
        for own, sizes in zip(self.layouts, shape.weights, strict=True):
            ends = (own, described(sizes)) if gives else (described(sizes), own)
            self._reorders.append(None if own.equals(described(sizes)) else Reorder(*ends, choice.what))

    def taken(self, weights: Sequence[Any]) -> list[Any]:
        """The weights as the routine takes them."""
        found = []
        for one, layout, reorder, name in zip(weights, self.layouts, self._reorders, _PLACES, strict=True):
            own = one
            if reorder is not None:
                own = scratch(name, layout.size)
                reorder(one, own)
            found.append(own)
        return found

    def empty(self) -> list[Any]:
        """Zeros, to which the routine adds gradients."""
        found = [scratch(name, layout.size)[: layout.size] for name, layout in zip(_SLOPES, self.layouts, strict=True)]
        for one in found:
            one.fill(0)
        return found

    def given(self, own: Sequence[Any], targets: Sequence[Any]) -> None:
        """Write gradients as lamella has them."""
        for one, target, reorder in zip(own, targets, self._reorders, strict=True):
            if reorder is None:
                target.reshape(-1)[...] = one.view("float32")
            else:
                reorder(one, target)


class _Prepared:
    """The routines of one shape: forward in inference or training, or backward."""

    def __init__(self, shape: _Shape, kind: int) -> None:
        choice = _choice(shape, kind)
        workspace = None if kind == _INFERENCE else choice.layout(_LAYOUT_OF_WORKSPACE)
        if kind == _BACKWARD:
            self.slopes = _Weights(shape, choice, _LAYOUT_OF_THEIR_GRADIENT, gives=True)
        self.weights = _Weights(shape, choice, _LAYOUT_OF_WEIGHTS)
        self.workspace = 0 if workspace is None else workspace.size
        arguments = [*_arrays(shape, self.weights.layouts).items()]
        if kind == _BACKWARD:
            arguments += [(_DIFF + number, one) for number, one in _arrays(shape, self.slopes.layouts).items()]
        if workspace is not None:
            arguments.append((_WORKSPACE, workspace))
        self.routine = Routine(choice, *((number, one) for number, one in arguments if one is not None))


class _Kept:
    """What the backward pass needs of the forward pass. Its workspace is used again where nobody needs it any more."""

    def __init__(self, x: Any, initial: States, y: Any, last: States, size: int) -> None:
        self.x, self.initial, self.y, self.last = x, initial, y, last
        self._free = state().memory.setdefault("workspaces", [])
        fits = [k for k, one in enumerate(self._free) if len(one) >= size]
        if fits:
            self.workspace = self._free.pop(min(fits, key=lambda k: len(self._free[k])))
        else:
            del self._free[:1]  # too small; the new one takes its place
            self.workspace = new_memory(size)

    def __del__(self) -> None:
        if hasattr(self, "workspace"):
            self._free.append(self.workspace)


def takes(layer: Any, inputs: tuple[Any, ...]) -> bool:
    """Whether oneDNN takes all steps of a recurrent layer in one go; ``inputs`` are specs or arrays."""
    if type(layer) not in _NAMES or layer.truncate is not None or layer.split(inputs).lengths is not None:
        return False
    return not isinstance(layer, RNN) or layer.activation in _ACTIVATIONS


def _shape(layer: Recurrent, given: Sequences) -> _Shape | None:
    """What routines are needed, or None where oneDNN has none."""
    if given.lengths is not None or not takes(layer, (given.x, *given.initial)) or not is_float32(given.x):
        return None
    activation = _ACTIVATIONS[layer.activation] if isinstance(layer, RNN) else None
    direction, sizes = _BACK if layer.reverse else _AHEAD, (*given.x.shape, layer.units)
    return _Shape(type(layer), activation, direction, sizes)


def _turned(x: Any) -> Any:
    """(N, T, features) -> (T, N, features), copied where it does not lie so already."""
    return np.ascontiguousarray(x.transpose(1, 0, 2))


def _bias(layer: Recurrent, params: Any) -> Any:
    """The bias, without which oneDNN has no such layer: of two, what is added to the last gate stands apart."""
    last = layer.units * (len(layer.gates) - 1)  # where the last gate begins
    if not layer.use_bias:
        return np.zeros(layer.units * (len(layer.gates) + layer.has_two_biases), "float32")
    if not layer.has_two_biases:
        return params.bias
    both = params.bias + params.recurrent_bias
    return np.concatenate([both[:last], params.bias[last:], params.recurrent_bias[last:]])


def _run(layer: Recurrent, params: Any, given: Sequences, kind: int) -> Any:
    """y, the last states and, in training, what was kept; NotImplemented where oneDNN has no such layer."""
    shape = _shape(layer, given)
    if shape is None or (kind == _TRAINING and kept(_Prepared, shape, _BACKWARD) is None):
        return NotImplemented
    prepared = kept(_Prepared, shape, kind)
    if prepared is None:
        return NotImplemented
    rows, steps, _, units = shape.sizes
    # without states to begin with, some versions of oneDNN give wrong gradients
    begin = given.initial or [np.zeros((rows, units), "float32") for _ in layer.states]
    initial = tuple(map(np.ascontiguousarray, begin))
    y = np.empty((steps, rows, units), "float32")
    last = tuple(np.empty((rows, units), "float32") for _ in layer.states)
    weights = prepared.weights.taken([params.kernel, params.recurrent_kernel])
    x = _turned(given.x)
    arrays = [x, *initial, *weights, _bias(layer, params), y, *last]
    memory = None
    if kind == _TRAINING:
        memory = _Kept(x, initial, y, last, prepared.workspace)
        arrays.append(memory.workspace)
    prepared.routine(*arrays)
    return (y.transpose(1, 0, 2) if layer.return_sequences else None), last, memory


@recurrence.kernel("onednn")
def _(xp: Any, layer: Recurrent, params: Any, given: Sequences) -> Any:
    found = _run(layer, params, given, _INFERENCE)
    return found if found is NotImplemented else found[:2]


@kept_recurrence.kernel("onednn")
def _(xp: Any, layer: Recurrent, params: Any, given: Sequences) -> Any:
    return _run(layer, params, given, _TRAINING)


@recurrence_dx.kernel("onednn")
def _(
    xp: Any,
    layer: Recurrent,
    params: Any,
    given: Sequences,
    known: Any,
    incoming: tuple[Any, ...],
    *,
    trainable: bool,
    wants_dx: bool,
) -> Any:
    if not isinstance(known, _Kept):
        return NotImplemented
    shape = _shape(layer, given)
    prepared = kept(_Prepared, shape, _BACKWARD)
    dy, *rest = incoming
    d_last = [np.ascontiguousarray(one) for one in rest] or [np.zeros_like(one) for one in known.last]
    if layer.return_sequences:
        dy = _turned(dy)
    else:
        d_last[0], dy = d_last[0] + dy, np.zeros_like(known.y)
    x, bias, slopes = known.x, _bias(layer, params), prepared.slopes.empty()
    dx, d, d_bias = np.empty_like(x), tuple(map(np.empty_like, known.initial)), np.zeros_like(bias)
    weights = prepared.weights.taken([params.kernel, params.recurrent_kernel])
    forward = [x, *known.initial, *weights, bias, known.y, *known.last]
    prepared.routine(*forward, dx, *d, *slopes, d_bias, dy, *d_last, known.workspace)
    return dx.transpose(1, 0, 2), d, _gradients(layer, params, prepared, slopes, d_bias) if trainable else {}


def _gradients(layer: Recurrent, params: Any, prepared: _Prepared, slopes: list[Any], bias: Any) -> dict[str, Any]:
    """Gradients of parameters by name."""
    gradients = {"kernel": np.empty_like(params.kernel), "recurrent_kernel": np.empty_like(params.recurrent_kernel)}
    prepared.slopes.given(slopes, list(gradients.values()))
    if layer.use_bias:
        width = layer.units * len(layer.gates)
        gradients["bias"] = bias[:width]
        if layer.has_two_biases:
            gradients["recurrent_bias"] = np.concatenate([bias[: width - layer.units], bias[width:]])
    return gradients
