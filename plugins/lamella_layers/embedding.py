"""Embeddings: learned vectors in place of integers, and of positions in a sequence."""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella.arguments import initializer_argument, positive
from lamella.primitives import add_rows, take_rows
from lamella.testing import Specimen

__all__ = ["Embedding", "PositionEmbedding"]


class Embedding(lm.Layer):
    """Looks up a learned vector for each integer: ``y = E[x]``.

    The gradient of a row of ``E`` is the sum over all places where it was looked up. An integer outside of the table
    is an error, in training, inference and onnxruntime.

    Arguments:
        input_dim: how many integers there are: 0 to ``input_dim`` - 1, such as the size of a vocabulary.
        output_dim: the length of each vector.
        embeddings_initializer: how ``E`` starts.

    Shapes: (N, ...) of integers -> (N, ..., output_dim). Parameter: ``embeddings`` (input_dim, output_dim).

    Raises:
        ArgumentError: if ``input_dim`` or ``output_dim`` is not positive.
        GraphError: if the input does not hold integers, or its spec allows some that are not in the table.
        LayerError: if the data holds an integer that is not in the table.

    Source: https://onnx.ai/onnx/operators/onnx__Gather.html

    >>> import lamella as lm
    >>> words = lm.Input(("T",), "int64", low=0, high=4)  # data outside of low <= value < high is refused at once
    >>> model = lm.Model(words, Embedding(4, 2)(words))
    >>> model.parameters["embedding_1.embeddings"] = [[0.0, 0.0], [1.0, 0.5], [2.0, 1.0], [3.0, 1.5]]
    >>> model.predict([[3, 1, 1]])
    array([[[3. , 1.5],
            [1. , 0.5],
            [1. , 0.5]]], dtype=float32)
    """

    def __init__(self, input_dim: int, output_dim: int, *, embeddings_initializer: Any = "uniform"):
        self.input_dim = positive(input_dim, "input_dim")
        self.output_dim = positive(output_dim, "output_dim")
        self.embeddings_initializer = initializer_argument(embeddings_initializer, "embeddings_initializer")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        if x.is_float or x.dtype == "bool":
            raise lm.GraphError(
                f"expected integers, got {x}. Likely fix: lm.Input(shape, 'int64'), or input_dtype='int64' for "
                "Sequential"
            )
        if (x.low is not None and x.low < 0) or (x.high is not None and x.high > self.input_dim):
            raise lm.GraphError(
                f"expected integers from 0 to {self.input_dim - 1}, got an input with low={x.low} and high={x.high}, "
                f"which is one more than the greatest. Likely fix: input_dim={x.high}"
            )
        shape = (self.input_dim, self.output_dim)
        declare.features(-1)
        declare.parameter("embeddings", shape, self.embeddings_initializer, fan_in=shape[0], fan_out=shape[1])
        return lm.ArraySpec((*x.shape, self.output_dim), declare.dtype)

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        ctx.save(x)
        return take_rows(ctx, ctx.params.embeddings, x)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        if ctx.trainable:
            ctx.grad(embeddings=add_rows(ctx, dy, ctx.saved[0], self.input_dim))


class PositionEmbedding(lm.Layer):
    """A learned vector for each position: ``y[n, t] = P[t]``, to be added to the vectors at these positions.

    Of the input only the shape matters: ``Add()(x, PositionEmbedding(100)(x))``.

    Arguments:
        sequence_length: how many positions there are at most.
        initializer: how ``P`` starts.

    Shapes: (N, time, features) -> the same, with a time of at most ``sequence_length``. Parameter: ``positions``
    (sequence_length, features).

    Raises:
        ArgumentError: if ``sequence_length`` is not positive.
        GraphError: if the input is not (N, time, features) of floats, or longer than ``sequence_length``.
        LayerError: if data along a time axis of unknown size is longer than ``sequence_length``.

    Source: https://keras.io/keras_hub/api/modeling_layers/position_embedding/; Gehring et al.,
    https://arxiv.org/abs/1705.03122

    >>> import lamella as lm
    >>> model = lm.Sequential([PositionEmbedding(9, initializer="ones")], input_shape=("T", 2))
    >>> model.predict([[[0.3, 0.4], [0.5, 0.6]]])
    array([[[1., 1.],
            [1., 1.]]], dtype=float32)
    """

    def __init__(self, sequence_length: int, *, initializer: Any = "glorot_uniform"):
        self.sequence_length = positive(sequence_length, "sequence_length")
        self.initializer = initializer_argument(initializer, "initializer")

    def build(self, declare: lm.Declare, x: lm.ArraySpec) -> lm.ArraySpec:
        if len(x.shape) != 3 or not isinstance(x.shape[2], int) or not x.is_float:
            raise lm.GraphError(
                f"expected floats (N, time, features) with a known number of features, got {x}. Likely fix: "
                "Embedding(...) before this layer"
            )
        time = x.shape[1]
        if isinstance(time, int) and time > self.sequence_length:
            raise lm.GraphError(f"expected a time of at most sequence_length={self.sequence_length}, got {time} in {x}")
        declare.features(-1)
        declare.parameter("positions", (self.sequence_length, x.shape[2]), self.initializer)
        return x.replace(low=None, high=None)

    def forward_pass(self, ctx: lm.Context, x: Any) -> Any:
        time = x.shape[1]
        if isinstance(time, int) and time > self.sequence_length:
            raise ValueError(
                f"expected a time of at most sequence_length={self.sequence_length}, got {time}. Likely fix: a larger "
                "sequence_length, or shorter data"
            )
        positions = ctx.xp.take(ctx.params.positions, ctx.xp.arange(time), axis=0)
        return ctx.xp.broadcast_to(positions, x.shape)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        xp = ctx.xp
        if ctx.trainable:
            total = xp.sum(dy, axis=0)  # (N, T, features) -> (T, features)
            ctx.grad(positions=add_rows(ctx, total, xp.arange(dy.shape[1]), self.sequence_length))
        return xp.zeros_like(dy) if ctx.wants_dx[0] else None


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {"embedding": Embedding, "position_embedding": PositionEmbedding}


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    docs = "https://onnx.ai/onnx/operators/onnx__Gather.html"
    keras = "https://keras.io/keras_hub/api/modeling_layers/position_embedding/"
    words, vectors = lm.ArraySpec(("N", "T"), "int64", low=0, high=5), lm.ArraySpec(("N", "T", 2))
    return [
        Specimen(
            Embedding(5, 3),
            (words,),
            ("Less", "Where", "Gather"),
            docs=docs,
            refuses=(((lm.ArraySpec(("N", 3)),), "expected integers"),),
        ),
        Specimen(Embedding(300, 2), (lm.ArraySpec(("N",), "uint8", high=256),), ("Cast", "Gather"), docs=docs),
        Specimen(
            PositionEmbedding(6),
            (vectors,),
            ("Shape", "Squeeze", "Range", "Gather", "Shape", "Concat", "Expand"),
            docs=keras,
            refuses=(
                ((lm.ArraySpec(("N", 7, 2)),), "at most sequence_length=6"),
                ((words,), "known number of features"),
            ),
        ),
    ]
