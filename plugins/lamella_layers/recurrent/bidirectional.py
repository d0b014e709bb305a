"""A recurrent layer in both directions of time."""

from __future__ import annotations

import lamella as lm
from lamella.arguments import choice
from lamella.errors import shown
from lamella_layers.merging import Add, Average, Concatenate, Multiply
from lamella_layers.recurrent.recurrent import Recurrent

__all__ = ["Bidirectional"]

_MODES: dict[str, type[lm.Layer]] = {"concat": Concatenate, "sum": Add, "mul": Multiply, "ave": Average}


class Bidirectional(lm.Layer):
    """A recurrent layer and its mirror image, which goes the other way, and their outputs merged, step by step.

    ``y_t = merge(forward(x)_t, backward(x)_t)``.

    Arguments:
        layer: an `RNN`, `LSTM` or `GRU`; its mirror image has the same arguments and its own parameters.
        merge_mode: "concat" (along the units), "sum", "mul", "ave" (the mean), or None for both outputs.

    Inputs: those of the layer; states to begin with come twice, the layer's own first. Outputs: the merged output, or
    two; then, with ``return_state``, the last states, the layer's own first.

    Shapes: (N, timesteps, features) -> (N, timesteps, 2 units) or, without ``return_sequences``, (N, 2 units); without
    the 2 unless the mode is "concat". Parameters: those of the layer under ``forward`` and ``backward``.

    Raises:
        ArgumentError: if ``layer`` is not recurrent or ``merge_mode`` is another.
        GraphError: if the number of states does not fit.

    Source: Schuster and Paliwal (1997), https://doi.org/10.1109/78.650093

    >>> import lamella as lm
    >>> from lamella_layers import GRU
    >>> model = lm.Sequential([Bidirectional(GRU(4))], input_shape=("T", 3))
    >>> model.output_specs
    (ArraySpec(('N', 'T', 8), 'float32'),)
    >>> next(iter(model.parameters))
    'bidirectional_1/forward.kernel'
    """

    def __init__(self, layer: Recurrent, *, merge_mode: str | None = "concat"):
        if not isinstance(layer, Recurrent):
            raise lm.ArgumentError(f"layer: expected an RNN, LSTM or GRU, got {shown(layer)}")
        self.layer = layer
        self.merge_mode = None if merge_mode is None else choice(merge_mode, "merge_mode", _MODES)

    def expand(self, *inputs: lm.Node) -> lm.Node | tuple[lm.Node, ...]:
        mirrored = self.layer.replace(reverse=not self.layer.reverse)
        mirrored = mirrored if self.layer.trainable else mirrored.frozen()
        x, lengths, initial = self.layer.split(inputs)
        count = len(self.layer.states)
        if len(initial) not in (0, 2 * count):
            raise lm.GraphError(
                f"Bidirectional: expected {2 * count} states to begin with, {' and '.join(self.layer.states)} for each "
                f"direction, or none; got {len(initial)}"
            )
        common = (x,) if lengths is None else (x, lengths)
        ahead = self.layer.named("forward")(*common, *initial[:count])
        back = mirrored.named("backward")(*common, *initial[count:])
        (y, *states), (z, *others) = (out if isinstance(out, tuple) else (out,) for out in (ahead, back))
        merged = (y, z) if self.merge_mode is None else (_MODES[self.merge_mode]().named("merge")(y, z),)
        outputs = (*merged, *states, *others)
        return outputs if len(outputs) > 1 else outputs[0]
