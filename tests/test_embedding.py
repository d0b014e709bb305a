"""Embeddings: rows looked up and summed, kernels against references, and integers that are not in the table."""

import numpy as np
import onnxruntime
import pytest

import lamella as lm
from lamella.primitives import add_rows, one_hot, take_rows
from lamella_layers import Embedding, PositionEmbedding
from lamella_onnx import export

XP = lm.backends.get_backend("numpy").xp


def test_gradients_of_a_row_add_up():
    model = lm.Sequential([Embedding(6, 2)], input_shape=(3,), input_dtype="int32", dtype="float64")
    words, dy = np.array([[5, 0, 5], [5, 1, 0]]), np.random.default_rng(0).normal(size=(2, 3, 2))
    table = model.parameters["embedding_1.embeddings"]
    np.testing.assert_array_equal(model.predict(words), table[words])
    assert np.abs(table).max() <= 0.05
    _, gradients, dx = model.gradients(words, table[words] - dy * 6, loss="mean_squared_error")  # the mean over 3 * 2
    expected = np.zeros((6, 2))
    for place, word in np.ndenumerate(words):
        expected[word] += dy[place]  # of 2 / 6 * 6 dy / 2 samples
    np.testing.assert_allclose(gradients["embedding_1.embeddings"], expected, atol=1e-12)
    assert dx is None


def test_kernels_agree_with_their_references_for_any_shape_and_integer():
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    for _ in range(60):
        size, inner = int(rng.integers(1, 400)), tuple(rng.integers(1, 4, rng.integers(0, 3)))
        shape, dtype = tuple(rng.integers(0, 5, rng.integers(0, 4))), rng.choice(["uint8", "int16", "int64"])
        indices = rng.integers(0, min(size, 256), shape).astype(dtype)
        rows, table = rng.normal(size=(*inner[::-1], *shape[::-1])).transpose(), rng.normal(size=(size, *inner))
        np.testing.assert_array_equal(take_rows(XP, table, indices), take_rows.reference(XP, table, indices))
        expected = add_rows.reference(XP, rows, indices, size)
        np.testing.assert_allclose(add_rows(XP, rows, indices, size), expected, atol=1e-12)
        assert one_hot(XP, indices, size, dtype=XP.float32).sum() == indices.size


@pytest.mark.parametrize(("low", "high"), [(-1, 2), (0, 4)])
def test_integers_that_are_not_in_the_table_are_errors_in_training_and_inference(low, high):
    words = np.array([[low, high]])
    model = lm.Sequential([Embedding(4, 2)], input_shape=(2,), input_dtype="int64")
    message = f"embedding_1 .*rows 0:1: IndexError: expected indices from 0 to 3, got {low} to {high}. Likely fix"
    with pytest.raises(lm.LayerError, match=message):
        model.predict(words)
    with pytest.raises(lm.LayerError, match=message):
        model.train_on_batch(words, np.zeros((1, 2, 2)), loss="mean_squared_error", optimizer="sgd")
    with pytest.raises(IndexError, match="expected indices from 0 to 3"):
        add_rows(XP, np.zeros((1, 2, 2)), words, 4)
    x = lm.Input((2,), "int64", low=0, high=4)
    with pytest.raises(lm.DataError, match=r"with values in \[0, 3\]"):
        lm.Model(x, Embedding(4, 2)(x)).predict(words)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
@pytest.mark.parametrize("word", [-1, -4, 4, -128])
def test_integers_that_are_not_in_the_table_are_errors_in_onnxruntime_and_on_strict(word, dtype, tmp_path):
    model = lm.Sequential([Embedding(4, 2)], input_shape=(2,), input_dtype=dtype)
    export(model, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    words = np.array([[0, 3], [2, word]], dtype)
    with pytest.raises(Exception, match="indices element out of data bounds"):
        session.run(None, {"input_1": words})
    with pytest.raises(lm.LayerError, match="IndexError"):
        model.copy(backend="strict").predict(words)
    np.testing.assert_array_equal(session.run(None, {"input_1": words[:1]})[0], model.predict(words[:1]))
    with pytest.raises(IndexError, match="expected indices from 0 to 3"):  # its own take raises nothing
        take_rows.kernels["cupy"](XP, np.zeros((4, 2)), words)


def test_positions_are_learned_for_each_place_and_cut_to_the_length(tmp_path):
    model = lm.Sequential([PositionEmbedding(5)], input_shape=("T", 3), dtype="float64")
    positions = model.parameters["position_embedding_1.positions"]
    x = np.random.default_rng(0).normal(size=(2, 4, 3))
    np.testing.assert_array_equal(model.predict(x), np.stack([positions[:4]] * 2))
    _, gradients, dx = model.gradients(x, np.zeros((2, 4, 3)), loss="mean_squared_error")
    expected = np.concatenate([2 * positions[:4] / 12, np.zeros((1, 3))])
    np.testing.assert_allclose(gradients["position_embedding_1.positions"], expected)
    np.testing.assert_array_equal(dx, 0.0)
    with pytest.raises(lm.LayerError, match=r"\(2, 6, 3\).*expected a time of at most sequence_length=5, got 6"):
        model.predict(np.zeros((2, 6, 3)))
    export(lm.Sequential([PositionEmbedding(9)], input_shape=("T", 3)), tmp_path / "model.onnx", samples=x)


def test_what_is_refused():
    for low, high in ((0, 6), (-1, 5)):
        with pytest.raises(lm.GraphError, match=f"integers from 0 to 4, got an input with low={low} and high={high}"):
            Embedding(5, 2)(lm.Input((3,), "int64", low=low, high=high))
    for dtype in (None, "bool"):
        with pytest.raises(lm.GraphError, match="expected integers, got .*Likely fix: lm.Input.*input_dtype"):
            Embedding(5, 2)(lm.Input((3,), dtype))
    for arguments in ((0, 2), (2, 0)):
        with pytest.raises(lm.ArgumentError, match="put_dim: expected a positive int, got 0"):
            Embedding(*arguments)
    with pytest.raises(lm.ArgumentError, match="sequence_length: expected a positive int, got 0"):
        PositionEmbedding(0)
    with pytest.raises(lm.GraphError, match="at most sequence_length=4, got 5"):
        PositionEmbedding(4)(lm.Input((5, 2)))
