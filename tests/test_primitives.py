"""Primitives of the core; rows of tables are in test_embedding.py, ONNX kernels in test_onnx_tracer.py."""

import math

import numpy as np
import pytest

import lamella as lm
from lamella import primitives
from lamella.primitives import erf, relu

XP = lm.backends.get_backend("numpy").xp


def test_erf_is_accurate_to_the_last_digits():
    rng = np.random.default_rng(0)
    x = np.concatenate([np.linspace(-7, 7, 50001), 1e-3 * rng.normal(size=5000), 10.0 ** -np.arange(38.0)])
    for dtype, units in (("float32", 4), ("float64", 4)):
        given = x.astype(dtype)
        exact = np.array([math.erf(float(value)) for value in given])
        y = erf(XP, given)
        assert y.dtype == dtype
        assert np.abs(y).max() == 1.0
        assert (np.abs(y - exact) <= units * np.spacing(np.abs(exact).astype(dtype))).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_at_the_ends(dtype):
    with np.errstate(over="ignore"):
        y = erf(XP, np.array([0.0, -0.0, 1e30, -np.inf, np.inf, np.nan], dtype))
    np.testing.assert_array_equal(y, np.array([0.0, 0.0, 1.0, -1.0, 1.0, np.nan], dtype))


def test_the_kernel_of_erf_takes_any_layout_and_keeps_the_order_in_memory(monkeypatch):
    monkeypatch.setattr(primitives, "_BLOCK", 7)
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    for x in (dense, dense.transpose(0, 3, 1, 2), dense[:, ::-1, ::2], np.broadcast_to(dense[:1], (3, 3, 4, 5))):
        kept = x.copy()
        np.testing.assert_allclose(erf(XP, x), erf.reference(XP, x), atol=5e-7)
        np.testing.assert_array_equal(x, kept)
    y = erf(XP, dense.transpose(0, 3, 1, 2))
    assert y.strides == dense.transpose(0, 3, 1, 2).strides
    for shape in ((), (0,), (2, 0, 3)):
        assert erf(XP, np.zeros(shape, "float32")).shape == shape


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_relu_of_any_layout_has_the_bits_of_numpys_maximum_with_a_number(monkeypatch, dtype):
    monkeypatch.setattr(primitives, "_ROW", 7)  # longer rows meet the same loops
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(2, 3, 4, 5)).astype(dtype)
    dense[0, 0] = np.resize([np.nan, np.inf, -np.inf, 0.0, -0.0], (4, 5))
    turned, wide = dense.transpose(0, 3, 1, 2), np.broadcast_to(dense[:1], (3, 3, 4, 5))
    cut = dense[:, ::-1, ::2], turned[::-1, :, ::-1], dense[:, :0]
    for x in (dense, turned, *cut, wide, wide.transpose(1, 3, 0, 2)):
        kept = x.copy()
        y, expected = relu(XP, x), np.maximum(x, x.dtype.type(0))
        assert (y.dtype, y.shape, y.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
        np.testing.assert_array_equal(x, kept)
    assert relu(XP, turned).strides == turned.strides
