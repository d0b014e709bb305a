import equinox
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from jax.test_util import check_grads
from jax2onnx import to_onnx


@jax.custom_vjp
def radial_basis(x, centers):
    apart = x[:, None, :] - centers
    return jnp.exp(-jnp.sum(apart * apart, axis=2))


def forward(x, centers):
    apart = x[:, None, :] - centers
    y = jnp.exp(-jnp.sum(apart * apart, axis=2))
    return y, (apart, y)


def backward(saved, dy):
    apart, y = saved
    d = -2.0 * (dy * y)[:, :, None] * apart
    return d.sum(axis=1), -d.sum(axis=0)


radial_basis.defvjp(forward, backward)


class RadialBasis(equinox.Module):
    centers: jax.Array

    def __init__(self, features, units, *, key):
        if units < 1:
            raise ValueError(f"units: expected a positive int, got {units}")
        self.centers = jax.nn.initializers.glorot_uniform()(key, (units, features))

    def __call__(self, x):
        if x.ndim != 2 or x.shape[1] != self.centers.shape[1] or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"expected floats (N, {self.centers.shape[1]}), got {x.shape} {x.dtype}")
        return radial_basis(x, self.centers)


@pytest.fixture
def layer():
    return RadialBasis(3, 4, key=jax.random.key(0))


def floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def test_gradient(layer):
    with jax.enable_x64(True):
        arguments = floats(5, 3).astype("float64"), np.asarray(layer.centers, "float64")
        check_grads(radial_basis, arguments, order=1, modes=["rev"])


def test_calls_repeat(layer):
    np.testing.assert_array_equal(layer(floats(5, 3)), layer(floats(5, 3)))


def test_float32_is_accurate(layer):
    x = floats(5, 3)
    y = np.asarray(layer(x))
    with jax.enable_x64(True):
        exact = radial_basis(x.astype("float64"), np.asarray(layer.centers, "float64"))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-6)


def test_rows_do_not_depend_on_each_other(layer):
    x = floats(9, 3)
    parts = [layer(part) for part in np.split(x, [2, 5])]
    np.testing.assert_allclose(np.concatenate(parts), layer(x), rtol=1e-6)


def test_onnx_is_the_same(layer, tmp_path):
    path = tmp_path / "layer.onnx"
    model = to_onnx(layer, [("N", 3)])
    onnx.save(model, path)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(path)
    for rows in (1, 2, 5):
        for scale in (1.0, 30.0):
            x = (scale * floats(rows, 3)).astype("float32")
            (y,) = session.run(None, {session.get_inputs()[0].name: x})
            np.testing.assert_allclose(y, layer(x), rtol=1e-5, atol=1e-6)


def test_round_trip(layer, tmp_path):
    equinox.tree_serialise_leaves(tmp_path / "layer.eqx", layer)
    again = equinox.tree_deserialise_leaves(tmp_path / "layer.eqx", RadialBasis(3, 4, key=jax.random.key(1)))
    np.testing.assert_array_equal(layer(floats(5, 3)), again(floats(5, 3)))


def test_shapes(layer):
    assert layer(floats(7, 3)).shape == (7, 4)
    with pytest.raises(ValueError, match="expected floats"):
        layer(floats(7, 2, 3))
    with pytest.raises(ValueError, match="expected a positive int"):
        RadialBasis(3, 0, key=jax.random.key(0))
