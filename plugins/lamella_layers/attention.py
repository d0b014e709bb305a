"""Attention: each position of one sequence takes a weighted mean over the positions of another, or of its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import lamella as lm
from lamella.arguments import flag, fraction, initializer_argument, positive
from lamella.primitives import softmax
from lamella.testing import Specimen
from lamella_layers.dense import Dense

__all__ = ["MultiHeadAttention", "ScaledDotProductAttention", "attention_weights"]


class MultiHeadAttention(lm.Layer):
    """Weighted means of learned projections, in several heads at once.

    ``y = softmax(q k^T / sqrt(key_dim)) v W_o + b_o`` with ``q = query W_q + b_q``, ``k = key W_k + b_k`` and
    ``v = value W_v + b_v``; softmax and products for each head by itself, on its part of the features.

    Called as ``layer(x)`` for self-attention, ``layer(query, value)``, or ``layer(query, value, key)``, in the order of
    Keras; a key left out is the value. A mask follows as the last input, of bools: True where a query may attend to a
    key, the opposite of PyTorch's ``attn_mask``. Where a query may attend to no key, the weighted mean is 0.

    Arguments:
        num_heads: how many weighted means there are for each position.
        key_dim: the size of each head for query and key.
        value_dim: the size of each head for the value; by default ``key_dim``.
        dropout: the fraction of weights that is set to zero in training, as by Dropout.
        use_bias: whether the four projections have one.
        causal: whether position t may attend to positions 0 to t only.
        kernel_initializer: how their kernels start.
        bias_initializer: how their biases start.

    Shapes: query (N, T, features), value (N, S, ...), key (N, S, ...), mask (N, T, S) or of size 1 along T or S, or
    (N, S) for all queries alike -> (N, T, features). T and S may be of unknown size. Parameters: those of Dense layers
    called ``query``, ``key``, ``value`` and ``output``.

    Raises:
        ArgumentError: if ``num_heads``, ``key_dim`` or ``value_dim`` is not positive, or ``dropout`` not in [0, 1).
        GraphError: if shapes do not fit together.

    Source: Vaswani et al., https://arxiv.org/abs/1706.03762; https://onnx.ai/onnx/operators/onnx__Attention.html

    >>> import lamella as lm
    >>> model = lm.Sequential([MultiHeadAttention(2, key_dim=4)], input_shape=("T", 6))
    >>> model.predict([[[0.0] * 6] * 3]).shape, model.parameters["multi_head_attention_1/query.kernel"].shape
    ((1, 3, 6), (6, 8))
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        *,
        causal: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
    ):
        self.heads, self.key_dim = positive(num_heads, "num_heads"), positive(key_dim, "key_dim")
        self.value_dim = self.key_dim if value_dim is None else positive(value_dim, "value_dim")
        self.attention = ScaledDotProductAttention(self.heads, causal=causal, dropout=dropout)
        self.options = {
            "use_bias": flag(use_bias, "use_bias"),
            "kernel_initializer": initializer_argument(kernel_initializer, "kernel_initializer"),
            "bias_initializer": initializer_argument(bias_initializer, "bias_initializer"),
        }

    def expand(self, *nodes: lm.Node) -> Any:
        mask = [node for node in nodes[-1:] if node.spec.dtype == "bool"]
        given = nodes[: len(nodes) - len(mask)]
        if not 1 <= len(given) <= 3:
            raise lm.GraphError(
                f"MultiHeadAttention: expected query, value, key and a mask of bools, the last three if need be, got "
                f"{' and '.join(str(node.spec) for node in nodes)}"
            )
        query, value, key = given[0], given[min(1, len(given) - 1)], given[-1]
        q = self._project(query, self.heads * self.key_dim, "query")
        v = self._project(value, self.heads * self.value_dim, "value")
        k = self._project(key, self.heads * self.key_dim, "key")
        return self._project(self.attention(q, v, k, *mask, name="attention"), query.shape[-1], "output")

    def _project(self, node: lm.Node, units: Any, name: str) -> Any:
        return Dense(units, **self.options).named(name)(node)


class ScaledDotProductAttention(lm.Layer):
    """Weighted means of values, by how well keys fit queries: ``y = softmax(query key^T / sqrt(key_dim)) value``.

    Features are cut into ``num_heads`` equal parts, each of which has weights of its own. There are no parameters;
    `MultiHeadAttention` puts learned projections around it.

    Arguments:
        num_heads: how many parts.
        causal: whether position t may attend to positions 0 to t only.
        dropout: the fraction of weights that is set to zero in training, as by Dropout.

    Shapes: query (N, T, heads * key_dim), value (N, S, heads * value_dim), key (N, S, heads * key_dim), in this order,
    and a mask as in `MultiHeadAttention` or none -> (N, T, heads * value_dim).

    Raises:
        ArgumentError: if ``num_heads`` is not positive or ``dropout`` not in [0, 1).
        GraphError: if shapes do not fit together.

    Source: Vaswani et al., https://arxiv.org/abs/1706.03762;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html

    >>> import lamella as lm
    >>> x = lm.Input((2, 1))
    >>> lm.Model(x, ScaledDotProductAttention(causal=True)(x, x, x)).predict([[[0.0], [9.0]]])
    array([[[0.],
            [9.]]], dtype=float32)
    """

    def __init__(self, num_heads: int = 1, *, causal: bool = False, dropout: float = 0.0):
        self.heads, self.causal = positive(num_heads, "num_heads"), flag(causal, "causal")
        self.dropout = fraction(dropout, "dropout")

    def build(
        self,
        declare: lm.Declare,
        query: lm.ArraySpec,
        value: lm.ArraySpec,
        key: lm.ArraySpec,
        mask: lm.ArraySpec | None = None,
    ) -> lm.ArraySpec:
        for name, spec in (("query", query), ("value", value), ("key", key)):
            features = spec.shape[-1]
            if len(spec.shape) != 3 or not spec.is_float or not isinstance(features, int) or features % self.heads:
                raise lm.GraphError(
                    f"{name}: expected floats (N, time, features) with a number of features that num_heads="
                    f"{self.heads} divides, got {spec}"
                )
        if key.shape[2] != query.shape[2] or key.shape[1] != value.shape[1]:
            raise lm.GraphError(
                f"expected a key with the features of the query and the time of the value, got query {query}, value "
                f"{value} and key {key}"
            )
        if mask is not None and not self._fits(mask, query.shape[1], key.shape[1]):
            raise lm.GraphError(
                f"mask: expected bools (N, {query.shape[1]}, {key.shape[1]}), or 1 in place of either size, or "
                f"(N, {key.shape[1]}), got {mask}. Likely fix: lm.Input(shape, 'bool')"
            )
        declare.features(-1)
        if key.shape[1] == 1:
            declare.warn(
                f"{self!r}: softmax runs over one key, {key}: its weight is 1 whatever comes in, and queries and "
                "keys do not learn. Likely fix: time on axis 1"
            )
        return query.replace(shape=(*query.shape[:2], value.shape[2]), low=None, high=None)

    @staticmethod
    def _fits(mask: lm.ArraySpec, *full: int | str) -> bool:
        sizes = mask.shape[1:]
        whole = full[2 - len(sizes) :]
        return (
            mask.dtype == "bool"
            and len(sizes) in (1, 2)
            and all(n in (1, m) for n, m in zip(sizes, whole, strict=True))
        )

    def forward_pass(self, ctx: lm.Context, query: Any, value: Any, key: Any, mask: Any = None) -> Any:
        # y = softmax(q k) v, each head by itself; q (N, heads, T, F), scaled; k (N, heads, F, S); v (N, heads, S, F')
        xp = ctx.xp
        scale = 1.0 / math.sqrt(query.shape[2] // self.heads)
        q, k, v = self._cut(xp, query * scale), self._cut(xp, key, (0, 2, 3, 1)), self._cut(xp, value)
        allowed = None if mask is None else mask[:, None, ...] if mask.ndim == 3 else mask[:, None, None, :]
        if self.causal:
            past = xp.arange(query.shape[1])[:, None] >= xp.arange(key.shape[1])[None, :]
            allowed = past if allowed is None else xp.logical_and(past, allowed)
        # (N, heads, T, F) @ (N, heads, F, S) -> (N, heads, T, S); position 0 may always attend to itself
        weights = attention_weights(xp, q @ k, allowed, always_some=mask is None)
        kept = None
        if ctx.training and self.dropout:
            n, h, t, s = weights.shape
            kept = xp.astype(ctx.uniform((n, h * t, s)) >= self.dropout, ctx.dtype) * (1.0 / (1.0 - self.dropout))
            kept = xp.reshape(kept, weights.shape)
        y = (weights if kept is None else weights * kept) @ v
        ctx.save(q, k, v, weights, kept)
        return self._join(xp, y)

    def backward_pass(self, ctx: lm.Context, dy: Any) -> Any:
        # w = softmax(q k), p = q k: dv = w^T dy; dw = dy v^T; dp = w (dw - sum(dw w)); dq = dp k^T; dk = dp^T q
        xp = ctx.xp
        q, k, v, weights, kept = ctx.saved
        dy = self._cut(xp, dy)
        dv = _transposed(xp, weights if kept is None else weights * kept) @ dy
        d = dy @ _transposed(xp, v)
        d = d if kept is None else d * kept
        d = weights * (d - xp.sum(d * weights, axis=-1, keepdims=True))  # of the softmax
        dq, dk = (d @ _transposed(xp, k)) * (1.0 / math.sqrt(q.shape[3])), _transposed(xp, d) @ q  # q is scaled already
        return (*(self._join(xp, dx) for dx in (dq, dv, dk)), *(None for _ in ctx.wants_dx[3:]))

    def _cut(self, xp: Any, x: Any, order: tuple[int, ...] = (0, 2, 1, 3)) -> Any:
        """(N, T, heads * F) -> (N, T, heads, F) -> (N, heads, T, F)"""
        n, t, features = x.shape
        return xp.permute_dims(xp.reshape(x, (n, t, self.heads, features // self.heads)), order)

    def _join(self, xp: Any, x: Any) -> Any:
        """The inverse of `_cut`."""
        n, heads, t, features = x.shape
        return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (n, t, heads * features))


def _transposed(xp: Any, x: Any) -> Any:
    return xp.permute_dims(x, (0, 1, 3, 2))


@lm.primitive
def attention_weights(xp: Any, scores: Any, allowed: Any = None, *, always_some: bool) -> Any:
    """The softmax of what is allowed, 0 elsewhere; where nothing is, 0, unless that is ``always_some``.

    What is not allowed scores the least float, not minus infinity, of which a softmax makes NaN where nothing else is.
    """
    if allowed is None:
        return softmax(xp, scores)
    lowest = float(np.finfo("float32" if scores.dtype == xp.float32 else "float64").min)
    weights = softmax(xp, xp.where(allowed, scores, lowest))
    return weights if always_some else weights * xp.astype(allowed, scores.dtype)


@lm.hookimpl
def lamella_layers() -> dict[str, type]:
    return {
        "multi_head_attention": MultiHeadAttention,
        "scaled_dot_product_attention": ScaledDotProductAttention,
    }


@lm.hookimpl
def lamella_specimens() -> list[Any]:
    paper, docs = "https://arxiv.org/abs/1706.03762", "https://onnx.ai/onnx/operators/onnx__Attention.html"
    query, value, key = (lm.ArraySpec(("N", *size)) for size in (("T", 4), ("S", 6), ("S", 4)))
    mask = lm.ArraySpec(("N", "T", "S"), "bool")
    return [
        Specimen(
            ScaledDotProductAttention(2),
            (query, value, key, mask),
            docs=paper,
            refuses=(
                ((query, value), "'key'"),
                ((query, value, query), "a key with the features of the query and the time of the value"),
                ((query, value, value), "a key with the features of the query and the time of the value"),
                ((query.replace(shape=("N", "T", 5)), value, key), "query: expected floats (N, time, features)"),
                ((query, value, key, key), "mask: expected bools (N, T, S)"),
                ((query, value, key, mask.replace(shape=("N", "S", "T"))), "mask: expected bools (N, T, S)"),
            ),
        ),
        Specimen(
            ScaledDotProductAttention(2),
            (lm.ArraySpec(("N", 3, 4)), lm.ArraySpec(("N", 5, 6)), lm.ArraySpec(("N", 5, 4))),
            (*("Reshape", "Transpose") * 4, *("MatMul",) * 2, "Mul", "Softmax"),
            docs=paper,
        ),
        Specimen(
            ScaledDotProductAttention(causal=True, dropout=0.4),
            (lm.ArraySpec(("N", 3, 2)), lm.ArraySpec(("N", 4, 1)), lm.ArraySpec(("N", 4, 2))),
            docs=paper,
        ),
        Specimen(
            MultiHeadAttention(2, 3),
            (lm.ArraySpec(("N", 3, 4)),),
            (*("MatMul", "Add") * 4, *("Reshape", "Transpose") * 4, *("MatMul",) * 2, "Mul", "Softmax"),
            docs=docs,
            refuses=(((mask,), "expected query, value, key"), ((query,) * 4, "expected query, value, key")),
        ),
        Specimen(
            MultiHeadAttention(3, 2, value_dim=1, use_bias=False, causal=True),
            (query, lm.ArraySpec(("N", "T"), "bool")),
            docs=docs,
            refuses=(((query, mask), "mask: expected bools (N, T, T), or 1"),),
        ),
        Specimen(MultiHeadAttention(1, 2), (query, value, mask), docs=docs),
    ]
