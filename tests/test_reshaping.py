"""Reshaping, padding and cropping: what they compute, and what they refuse. Flatten and Reshape: `test_families`."""

import math

import numpy as np
import pytest

import lamella as lm
from lamella_layers import ConstantPadding2D, Cropping2D, Permute, UpSampling2D, ZeroPadding2D
from lamella_layers.reshaping import upsample, upsample_dx

NUMPY = lm.backends.get_backend("numpy")


def run(layer, x):
    """The output, and the gradient of the input for a random one of the output, in float64."""
    model = lm.Sequential([layer], input_shape=x.shape[1:], dtype="float64")
    y = model.predict(x)
    dy = np.random.default_rng(0).normal(size=y.shape)
    target = y - dy * y.size / 2  # the gradient of the mean square is then dy
    return y, dy, model.gradients(x, target, loss="mean_squared_error")[2]


def refused(layer, *shape, dtype=None):
    with pytest.raises(lm.GraphError) as error:
        layer(lm.Input(shape, dtype))
    return str(error.value)


@pytest.mark.parametrize("size", [(2, 2), (3, 1), (1, 4)])
def test_nearest_repeats_pixels_and_its_gradient_is_the_sum_over_the_block(size):
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5))
    y, dy, dx = run(UpSampling2D(size), x)
    np.testing.assert_array_equal(y, x.repeat(size[0], axis=2).repeat(size[1], axis=3))
    for n, c, i, j in np.ndindex(x.shape):
        block = dy[n, c, i * size[0] : (i + 1) * size[0], j * size[1] : (j + 1) * size[1]]
        assert dx[n, c, i, j] == pytest.approx(block.sum())


@pytest.mark.parametrize("size", [(2, 2), (3, 1), (1, 4), (5, 2)])
@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (1, 2, 1, 2)])
def test_bilinear_weighs_the_four_pixels_around(size, shape):
    x = np.random.default_rng(2).normal(size=shape)
    y, dy, dx = run(UpSampling2D(size, "bilinear"), x)
    expected = np.zeros_like(x)
    for p, q in np.ndindex(y.shape[2:]):
        value = 0.0
        u, v = ((k + 0.5) / s - 0.5 for k, s in zip((p, q), size, strict=True))
        for i, weight in ((math.floor(u), 1 - u % 1), (math.floor(u) + 1, u % 1)):
            for j, other in ((math.floor(v), 1 - v % 1), (math.floor(v) + 1, v % 1)):
                row, column = (min(max(k, 0), n - 1) for k, n in zip((i, j), shape[2:], strict=True))
                value += weight * other * x[:, :, row, column]
                expected[:, :, row, column] += weight * other * dy[:, :, p, q]
        np.testing.assert_allclose(y[:, :, p, q], value)
    np.testing.assert_allclose(dx, expected)


def test_kernels_of_upsampling_agree_with_their_references_and_keep_channels_last():
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    rng, xp = np.random.default_rng(seed), NUMPY.xp
    for _ in range(30):
        n, c, h, w, *size = map(int, rng.integers(1, 5, 6))
        x = rng.normal(size=(n, w, h, c)).transpose(0, 3, 2, 1)
        for interpolation in ("nearest", "bilinear"):
            how = (tuple(size), interpolation)
            y = upsample(xp, x, *how)
            dy = rng.normal(size=y.shape)
            np.testing.assert_allclose(y, upsample.reference(xp, x, *how), rtol=1e-12, atol=1e-12)
            dx = upsample_dx(xp, dy, *how)
            np.testing.assert_allclose(dx, upsample_dx.reference(xp, dy, *how), rtol=1e-12, atol=1e-12)
            assert np.vdot(y, dy) == pytest.approx(np.vdot(x, dx)), how
    y = upsample(xp, np.ones((2, 5, 4, 3), "float32"), (2, 3), interpolation)
    assert y.strides[1] == upsample_dx(xp, y, (2, 3), interpolation).strides[1] == y.itemsize


def test_permute_counts_axes_from_one():
    x = np.random.default_rng(3).normal(size=(2, 3, 4, 5))
    y, dy, dx = run(Permute((3, 1, 2)), x)
    np.testing.assert_array_equal(y, x.transpose(0, 3, 1, 2))
    np.testing.assert_allclose(dx, dy.transpose(0, 2, 3, 1))
    assert Permute((2, 1))(lm.Input(("T", 5))).spec.shape == ("N", 5, "T")
    assert "expected 2 axes beside the batch" in refused(Permute((2, 1)), 3)
    for dims in ((0, 1), (1, 1), (2, 3), 2, (1, 2.5)):
        with pytest.raises(lm.ArgumentError, match="Permute: dims: expected each of the axes 1, 2, ... once"):
            Permute(dims)


@pytest.mark.parametrize(
    ("border", "rows", "columns"), [(1, (1, 1), (1, 1)), ((0, 2), (0, 0), (2, 2)), (((1, 0), (0, 3)), (1, 0), (0, 3))]
)
def test_padding_adds_a_border_and_cropping_takes_it_away(border, rows, columns):
    x = np.random.default_rng(4).normal(size=(2, 3, 4, 5))
    inside = np.s_[:, :, rows[0] : rows[0] + 4, columns[0] : columns[0] + 5]
    for layer, value in ((ZeroPadding2D(border), 0.0), (ConstantPadding2D(border, -2.5), -2.5)):
        y, dy, dx = run(layer, x)
        np.testing.assert_array_equal(y, np.pad(x, ((0, 0), (0, 0), rows, columns), constant_values=value))
        np.testing.assert_allclose(dx, dy[inside])
    again, dy, dx = run(Cropping2D(border), y)
    np.testing.assert_array_equal(again, x)
    np.testing.assert_allclose(dx, np.pad(dy, ((0, 0), (0, 0), rows, columns)))


def test_borders_are_checked():
    for layer, name in ((ZeroPadding2D, "padding"), (Cropping2D, "cropping")):
        for border in (-1, True, 1.5, "same", (1, 2, 3), ((1, -2), 0)):
            with pytest.raises(lm.ArgumentError, match=f"{layer.__name__}: {name}: expected"):
                layer(border)
    with pytest.raises(lm.ArgumentError, match="ConstantPadding2D: value: expected a finite number, got nan"):
        ConstantPadding2D(1, math.nan)
    assert "takes away 2 rows and 4 columns, got (N, 3, 2, 9)" in refused(Cropping2D((1, 2)), 3, 2, 9)


@pytest.mark.parametrize("layer", [UpSampling2D(), ZeroPadding2D(), Cropping2D(1)])
def test_images_are_asked_for_in_words(layer):
    assert "expected images (N, channels, height, width)" in refused(layer, 784)


def test_arguments_of_upsampling_are_checked():
    with pytest.raises(lm.ArgumentError, match="UpSampling2D: size: expected a positive int, got 0"):
        UpSampling2D(0)
    with pytest.raises(lm.ArgumentError, match="interpolation: expected one of 'nearest', 'bilinear', got 'bilinaer'"):
        UpSampling2D(interpolation="bilinaer")
