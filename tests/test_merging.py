"""Merging layers: broadcasting and its gradient, ties, joints, products; against sums written out."""

import pickle

import numpy as np
import pytest

import lamella as lm
from lamella_layers import Add, Average, Concatenate, Dot, Maximum, Minimum, Multiply, Subtract
from lamella_layers.merging import add, maximum

FORMULAS = {
    Add: lambda *xs: sum(xs[1:], start=xs[0]),
    Average: lambda *xs: sum(xs[1:], start=xs[0]) / len(xs),
    Maximum: lambda *xs: np.max(np.broadcast_arrays(*xs), axis=0),
    Minimum: lambda *xs: np.min(np.broadcast_arrays(*xs), axis=0),
    Multiply: lambda *xs: np.prod(np.broadcast_arrays(*xs), axis=0),
    Subtract: lambda a, b: a - b,
}


def run(layer, *xs, dy=None):
    """The output, and the gradient of each input for a given one of the output, in float64."""
    inputs = [lm.Input(x.shape[1:]) for x in xs]
    model = lm.Model(inputs, layer(*inputs), dtype="float64")
    y = model.predict(xs)
    dy = np.ones_like(y) if dy is None else dy
    target = y - dy * y.size / 2  # the gradient of the mean square is then dy
    return y, model.gradients(xs, target, loss="mean_squared_error")[2]


def refused(layer, *shapes, dtypes=(None, None)):
    with pytest.raises(lm.GraphError) as error:
        layer(*(lm.Input(shape, dtype) for shape, dtype in zip(shapes, (*dtypes, None), strict=False)))
    return str(error.value)


@pytest.mark.parametrize("layer", FORMULAS, ids=lambda layer: layer.__name__)
@pytest.mark.parametrize(
    ("shapes", "axes"),  # of the inputs; those along which the first is repeated
    [(((3,), (3,)), ()), (((4, 1), (1, 3)), (2,)), (((3,), (4, 3)), (1,)), (((1,), (2, 4, 3)), (1, 2, 3)),
     (((3, 1, 1), (3, 2, 4), (4,)), (2, 3))],
)  # fmt: skip
def test_merging_broadcasts_after_the_batch_and_gradients_are_sums(layer, shapes, axes):
    if layer is Subtract and len(shapes) > 2:
        return
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(2, *shape)) for shape in shapes]
    rank = max(x.ndim for x in xs)
    whole = [x.reshape(2, *(1,) * (rank - x.ndim), *x.shape[1:]) for x in xs]
    expected = FORMULAS[layer](*whole)
    dy = rng.normal(size=expected.shape)
    y, gradients = run(layer(), *xs, dy=dy)
    np.testing.assert_allclose(y, expected, rtol=1e-14)
    slopes = (FORMULAS[layer](whole[0] + 1e-6, *whole[1:]) - FORMULAS[layer](whole[0] - 1e-6, *whole[1:])) / 2e-6
    for gradient, x in zip(gradients, xs, strict=True):
        assert gradient.shape == x.shape
    np.testing.assert_allclose(gradients[0], (slopes * dy).sum(axes).reshape(xs[0].shape), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("layer", [Maximum, Minimum])
def test_the_first_of_equal_inputs_has_the_gradient(layer):
    a, b, c = np.array([[1.0, 0.0, 2.0]]), np.array([[1.0, 0.0, 2.0]]), np.array([[1.0, 5.0, -5.0]])
    _, (da, db, dc) = run(layer(), a, b, c)
    where = c > a if layer is Maximum else c < a
    np.testing.assert_array_equal(dc, where)
    np.testing.assert_array_equal(da, ~where)
    np.testing.assert_array_equal(db, 0 * a)


def test_one_node_may_be_merged_with_itself_and_merging_layers_are_ordinary_classes():
    x = lm.Input((2,))
    model = lm.Model(x, Multiply()(x, x), dtype="float64")
    given = np.array([[3.0, -1.0]])
    np.testing.assert_array_equal(model.predict(given), given**2)
    np.testing.assert_allclose(
        model.gradients(given, np.zeros((1, 2)), loss="mean_squared_error")[2], 2 * given**3, rtol=1e-15
    )
    assert pickle.loads(pickle.dumps(Add().named("sum"))) == Add().named("sum")
    assert lm.layer("subtract") == Subtract()


def test_symbolic_axes_go_through():
    series, row, scores = lm.Input(("T", 3)), lm.Input((3,)), lm.Input(("T", 1))
    assert Add()(series, row).spec.shape == Multiply()(scores, series).spec.shape == ("N", "T", 3)
    assert Concatenate()(series, scores).spec.shape == ("N", "T", 4)
    assert Dot((2, 2))(series, series).spec.shape == ("N", "T", "T")
    assert Dot(1)(series, scores).spec.shape == ("N", 3, 1)


def test_merged_images_keep_channels_last_in_memory():
    x = np.ones((2, 4, 5, 3), "float32").transpose(0, 3, 1, 2)
    xp = lm.backends.get_backend("numpy").xp
    for y in (add(xp, x, x), maximum(xp, x, x, x), xp.concat([x, x], axis=1)):
        assert y.strides[1] == y.itemsize


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_concatenate_joins_and_its_gradient_splits(axis):
    rng = np.random.default_rng(1)
    shapes = [[2, 3, 4] for _ in range(3)]
    for k, shape in enumerate(shapes):
        shape[axis] = k + 1
    xs = [rng.normal(size=shape) for shape in shapes]
    dy = rng.normal(size=np.concatenate(xs, axis).shape)
    y, gradients = run(Concatenate(axis), *xs, dy=dy)
    np.testing.assert_array_equal(y, np.concatenate(xs, axis))
    for gradient, expected in zip(gradients, np.split(dy, [1, 3], axis), strict=True):
        np.testing.assert_allclose(gradient, expected)


@pytest.mark.parametrize(
    ("a", "b", "axes", "sum_"),
    [((3,), (3,), 1, "nk,nk->n"), ((4, 3), (5, 3), 2, "nik,njk->nij"), ((4, 3), (3, 5), (2, 1), "nik,nkj->nij"),
     ((3, 4), (2, 3, 5), (1, -2), "nki,nakj->niaj"), ((4, 3), (3,), (-1, 1), "nik,nk->ni")],
)  # fmt: skip
def test_dot_is_the_sum_written_out(a, b, axes, sum_):
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=(2, *shape)) for shape in (a, b))
    first, second = axes if isinstance(axes, tuple) else (axes, axes)
    for normalize in (False, True):
        u = a / np.linalg.norm(a, axis=first, keepdims=True) if normalize else a
        v = b / np.linalg.norm(b, axis=second, keepdims=True) if normalize else b
        expected = np.einsum(sum_, u, v).reshape(2, *(run(Dot(axes), a, b)[0].shape[1:]))
        y, _ = run(Dot(axes, normalize=normalize), a, b)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-14)
    assert np.abs(y).max() <= 1.0 + 1e-12


def test_the_cosine_of_nothing_is_zero_and_its_gradient_finite():
    zero, x = np.zeros((1, 3)), np.array([[1.0, 2.0, 2.0]])
    y, (d_zero, dx) = run(Dot(1, normalize=True), zero, x)
    assert y.item() == 0.0
    np.testing.assert_allclose(d_zero, x / 3 / 1e-7)
    np.testing.assert_array_equal(dx, zero)
    short = 1e-9 * x  # counts as if it were longer, so that its gradient is that of a product
    y, (d_short, _) = run(Dot(1, normalize=True), short, x)
    np.testing.assert_allclose(y, 9e-9 / 3 / 1e-7)
    np.testing.assert_allclose(d_short, x / 3 / 1e-7)


def test_integers_put_end_to_end_have_the_limits_of_all():
    few, many = (lm.Input(3, "int64", low=low, high=high) for low, high in ((1, 5), (0, 50)))
    for nodes in ((few, many), (many, few)):
        node = Concatenate()(*nodes)
        assert (node.spec.low, node.spec.high) == (0, 50)
    node = Concatenate()(few, lm.Input(3, "int64", low=0))
    assert (node.spec.low, node.spec.high) == (0, None)


def test_merging_says_what_it_refuses():
    assert "expected two or more inputs, got 1" in refused(Add(), 3)
    assert "expected two inputs, got 3" in refused(Subtract(), 3, 3, 3)
    assert "got (N, 3) float32 and (N, 4) float32" in refused(Multiply(), 3, 4)
    odd = "got int64 for inputs[1], and float32 for the others. Likely fix: lm.Input(shape) without a dtype"
    assert f"expected floats, {odd}" in refused(Add(), 3, 3, dtypes=(None, "int64"))
    assert f"expected floats, {odd}" in refused(Dot(1), 3, 3, dtypes=(None, "int64"))
    assert f"expected inputs of one dtype, {odd}" in refused(Concatenate(), 3, 3, dtypes=(None, "int64"))
    assert "expected floats, got int64. Likely fix" in refused(Add(), 3, 3, dtypes=("int64", "int64"))
    several = refused(Concatenate(), *[1] * 5, dtypes=("int64", None, "bool", "int64", None))
    assert "Concatenate(), called with 2 of (N, 1) int64 and 2 of (N, 1) float32 and 1 of (N, 1) bool: exp" in several
    assert "got int64 for inputs[0], inputs[3] and bool for inputs[2], and float32 for the others." in several
    assert "equal but for axis=-1" in refused(Concatenate(), (4, 3), (5, 3))
    assert "axis 2 to be one of the axes after the batch" in refused(Concatenate(2), 3, 3)
    assert "got 3 and 4" in refused(Dot(1), 3, 4)
    for axis in (0, True, 1.5, None):
        with pytest.raises(lm.ArgumentError, match="Concatenate: axis: expected ints other than 0, the batch axis"):
            Concatenate(axis)
    with pytest.raises(lm.ArgumentError, match=r"Dot: axes: expected an int or two ints, got \(1, 2, 3\)"):
        Dot((1, 2, 3))
    with pytest.raises(lm.ArgumentError, match="Dot: axes: expected ints other than 0"):
        Dot((1, 0))
