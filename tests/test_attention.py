"""Attention: against loops written out, with masks, over time and sizes that are not known, and learning something."""

import math

import numpy as np
import onnxruntime
import pytest
from sample_layers import Add

import lamella as lm
from lamella_layers import (
    Dense,
    Embedding,
    LayerNormalization,
    MultiHeadAttention,
    PositionEmbedding,
    ScaledDotProductAttention,
)
from lamella_onnx import export


def attend(layer, *arrays, dtype="float64"):
    """What a layer gives for arrays as its inputs."""
    nodes = [lm.Input(a.shape[1:], "bool" if a.dtype == bool else None) for a in arrays]
    return lm.Model(nodes, layer(*nodes), dtype=dtype).predict(arrays)


def drawn(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def written_out(query, value, key, allowed, heads):
    """One loop after another; ``allowed`` (N, T, S)."""
    n, t, s = allowed.shape
    f, v = query.shape[2] // heads, value.shape[2] // heads
    y = np.zeros((n, t, value.shape[2]))
    for b, i, h in np.ndindex(n, t, heads):
        part, over = slice(h * f, h * f + f), slice(h * v, h * v + v)
        scores = {j: math.exp(query[b, i, part] @ key[b, j, part] / math.sqrt(f)) for j in range(s) if allowed[b, i, j]}
        for j, score in scores.items():
            y[b, i, over] += score / sum(scores.values()) * value[b, j, over]
    return y


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, (3, 4, 5), (3, 1, 5), (3, 4, 1), (3, 5)])
def test_weighted_means_are_the_formula_written_out(heads, causal, mask):
    arrays = drawn((3, 4, 6), (3, 5, 2), (3, 5, 6))
    allowed = np.tril(np.ones((3, 4, 5), bool)) if causal else np.ones((3, 4, 5), bool)
    if mask is not None:
        given = np.random.default_rng(1).integers(0, 2, mask) > 0
        given[0, 0] = False  # where the mask is whole, this query may attend to nothing
        allowed = allowed & (given[:, None] if given.ndim == 2 else given)
    expected = written_out(*arrays, allowed, heads)
    layer = ScaledDotProductAttention(heads, causal=causal)
    y = attend(layer, *arrays, *([] if mask is None else [given]))
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_projections_stand_around_it():
    query, value, key = arrays = drawn((2, 3, 5), (2, 4, 7), (2, 4, 6))
    nodes = [lm.Input(a.shape[1:]) for a in arrays]
    model = lm.Model(nodes, MultiHeadAttention(2, 3, value_dim=4)(*nodes), dtype="float64")
    sizes = {name.partition("/")[2]: array.shape for name, array in model.parameters.items()}
    assert sizes == {
        "query.kernel": (5, 6),
        "key.kernel": (6, 6),
        "value.kernel": (7, 8),
        "output.kernel": (8, 5),
        "query.bias": (6,),
        "key.bias": (6,),
        "value.bias": (8,),
        "output.bias": (5,),
    }
    for name in model.parameters:
        model.parameters[name] = np.random.default_rng(len(name)).normal(size=model.parameters[name].shape)
    p = {name.partition("/")[2]: array for name, array in model.parameters.items()}
    q, v, k = (x @ p[f"{n}.kernel"] + p[f"{n}.bias"] for n, x in (("query", query), ("value", value), ("key", key)))
    expected = written_out(q, v, k, np.ones((2, 3, 4), bool), 2) @ p["output.kernel"] + p["output.bias"]
    np.testing.assert_allclose(model.predict(arrays), expected, atol=1e-10)
    plain = MultiHeadAttention(2, 3, use_bias=False)
    x = lm.Input((4, 5))
    assert not any(name.endswith("bias") for name in lm.Model(x, plain(x)).parameters)


def test_what_is_left_out_is_the_query_or_the_value():
    layer = MultiHeadAttention(2, 3)
    x, y = drawn((2, 4, 5), (2, 4, 5))
    mask = np.random.default_rng(0).integers(0, 2, (2, 4, 4)) > 0
    np.testing.assert_allclose(attend(layer, x), attend(layer, x, x, x))
    np.testing.assert_allclose(attend(layer, x, y), attend(layer, x, y, y))
    np.testing.assert_allclose(attend(layer, x, mask), attend(layer, x, x, x, mask))
    np.testing.assert_allclose(attend(layer, x, y, mask), attend(layer, x, y, y, mask))


def test_what_comes_later_and_what_is_masked_changes_nothing():
    (x,) = drawn((2, 6, 4))
    other = x.copy()
    other[:, 4:] += 5.0
    causal = MultiHeadAttention(2, 3, causal=True)
    np.testing.assert_array_equal(attend(causal, x)[:, :4], attend(causal, other)[:, :4])
    layer, real = MultiHeadAttention(2, 3), np.arange(6) < np.array([[4], [4]])
    y = attend(layer, x, real)
    np.testing.assert_array_equal(y[:, :4], attend(layer, other, real)[:, :4])
    np.testing.assert_allclose(y[:, :4], attend(layer, x[:, :4]), atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_queries_that_may_attend_to_nothing_give_0_and_finite_gradients(scale):
    x = lm.Input((3, 4))
    mask = lm.Input((3, 3), "bool")
    model = lm.Model((x, mask), ScaledDotProductAttention(2, causal=True)(x, x, x, mask))
    data, allowed = (scale * drawn((2, 3, 4))[0]).astype("float32"), np.ones((2, 3, 3), bool)
    allowed[0] = False
    allowed[1, 0, 0] = False  # causal leaves this query only what the mask takes away
    y = model.predict((data, allowed))
    np.testing.assert_array_equal(y[0], 0.0)
    np.testing.assert_array_equal(y[1, 0], 0.0)
    assert (y[1, 1:] != 0.0).all()
    _, _, (dx, _) = model.gradients((data, allowed), np.ones_like(y), loss="mean_squared_error")
    assert np.isfinite(dx).all()
    np.testing.assert_array_equal(dx[0], 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_hold_for_any_finite_scores(dtype, tmp_path):
    data, mask = 1e15 * drawn((2, 5, 4))[0].astype(dtype), np.array([[1, 1, 0, 0, 0]] * 2, bool)
    x, some = lm.Input((5, 4)), lm.Input(5, "bool")
    masked = lm.Model((x, some), ScaledDotProductAttention()(x, x, x, some), dtype=dtype)
    expected = attend(ScaledDotProductAttention(), data, data[:, :2], data[:, :2], dtype=dtype)
    np.testing.assert_allclose(masked.predict((data, mask)), expected, rtol=1e-6)
    causal = attend(ScaledDotProductAttention(causal=True), data, data, data, dtype=dtype)
    np.testing.assert_array_equal(causal[:, 0], data[:, 0])
    export(masked, tmp_path / "model.onnx")
    (given,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"input_1": data, "input_2": mask})
    np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_dropout_takes_weights_of_each_head_in_training_only():
    x = lm.Input((8, 6))
    model = lm.Model(x, ScaledDotProductAttention(3, dropout=0.25)(x, x, x), dtype="float64")
    data = np.zeros((200, 8, 6))
    data[:, :, ::2] = 1.0  # equal weights of 1/8; each mean of ones tells how many were kept
    np.testing.assert_allclose(model.predict(data)[..., ::2], 1.0)
    loss, *_ = model.gradients(data, 0.0 * data, loss="mean_squared_error")
    # the mean of (k / 8 / 0.75)^2 over binomial k, for every other feature
    assert loss == pytest.approx((1.0 + 0.25 / 0.75 / 8) / 2, rel=0.01)


def test_a_shared_layer_shares_its_projections():
    layer = MultiHeadAttention(1, 2)
    a, b = lm.Input((3, 4)), lm.Input((5, 4))
    model = lm.Model((a, b), (layer(a), layer(b)))
    assert len(model.parameters) == 8


def test_the_exported_file_takes_any_lengths(tmp_path):
    query, value, mask = lm.Input(("T", 4)), lm.Input(("S", 4)), lm.Input(("T", "S"), "bool")
    both = MultiHeadAttention(2, 3, causal=True)(query, value, mask)
    model = lm.Model((query, value, mask), both)
    export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for n, t, s in ((1, 1, 1), (3, 7, 2), (2, 3, 11)):
        q, v = (a.astype("float32") for a in drawn((n, t, 4), (n, s, 4)))
        arrays = (q, v, np.random.default_rng(2).integers(0, 2, (n, t, s)) > 0)
        (given,) = session.run(None, dict(zip(model.input_names, arrays, strict=True)))
        np.testing.assert_allclose(given, model.predict(arrays), atol=2e-6)


def test_a_small_transformer_learns_to_repeat_what_came_two_steps_before(tmp_path):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 5, (256, 9))
    tokens = lm.Input((9,), "int64", low=0, high=5)
    x = Embedding(5, 16)(tokens)
    x = Add()(x, PositionEmbedding(9)(x))
    x = Add()(x, MultiHeadAttention(2, 8, causal=True)(LayerNormalization()(x)))
    x = Add()(x, Dense(16)(Dense(32, activation="gelu")(LayerNormalization()(x))))
    model = lm.Model(tokens, Dense(5)(LayerNormalization()(x)))
    target = np.concatenate([words[:, :2], words[:, :-2]], axis=1)
    task = {"loss": "softmax_cross_entropy", "metrics": "accuracy"}
    model.fit(words, target, **task, optimizer=lm.optimizers.Adam(0.01), epochs=40, progress=False)
    fresh = rng.integers(0, 5, (64, 9))
    target = np.concatenate([fresh[:, :2], fresh[:, :-2]], axis=1)
    assert model.evaluate(fresh, target, **task)["accuracy"] > 0.95
    export(model, tmp_path / "model.onnx", samples=words)


def test_it_says_what_it_refuses():
    x, y, mask = lm.Input((3, 4)), lm.Input((5, 4)), lm.Input((3, 5), "bool")
    for nodes in ((mask,), (x, y, y, x), (x, y, y, y, mask)):
        with pytest.raises(lm.GraphError, match="MultiHeadAttention: expected query, value, key and a mask"):
            MultiHeadAttention(2, 3)(*nodes)
    with pytest.raises(lm.GraphError, match=r"mask: expected bools \(N, 3, 3\), or 1 in .*, got \(N, 3, 5\) bool"):
        MultiHeadAttention(2, 3)(x, mask)
    with pytest.raises(lm.GraphError, match=r"query: expected floats .* num_heads=3 divides, got \(N, 3, 4\) float32"):
        ScaledDotProductAttention(3)(x, x, x)
    with pytest.raises(lm.GraphError, match="the features of the query and the time of the value"):
        ScaledDotProductAttention()(x, x, y)
    for arguments, words in (
        ((0, 3), "num_heads: expected a positive int, got 0"),
        ((1, 0), "key_dim: expected a positive int, got 0"),
        ((1, 1, 0), "value_dim: expected a positive int, got 0"),
        ((1, 1, 1, 1.0), r"dropout: expected a fraction in \[0, 1\), got 1"),
    ):
        with pytest.raises(lm.ArgumentError, match=words):
            MultiHeadAttention(*arguments)
