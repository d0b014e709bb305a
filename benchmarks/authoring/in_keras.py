import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from keras import ops


@keras.saving.register_keras_serializable(package="authoring")
class RadialBasis(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"units: expected a positive int, got {units}")
        self.units = units

    def build(self, input_shape):
        if len(input_shape) != 2:
            raise ValueError(f"expected floats (N, features), got {input_shape}")
        self.centers = self.add_weight(shape=(self.units, input_shape[1]), initializer="glorot_uniform", name="centers")

    def call(self, x):
        apart = ops.expand_dims(x, 1) - self.centers
        return ops.exp(-ops.sum(apart * apart, axis=2))

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def model():
    return keras.Sequential([keras.Input((3,)), RadialBasis(4)])


def test_gradient():
    layer = RadialBasis(4, dtype="float64")
    layer.build((None, 3))
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.centers.value))


def test_inputs_stay_and_calls_repeat():
    layer, x = RadialBasis(4), floats(5, 3)
    before = x.copy()
    first, second = ops.convert_to_numpy(layer(x)), ops.convert_to_numpy(layer(x))
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(first, second)


def test_float32_is_accurate():
    layer, exact, x = RadialBasis(4), RadialBasis(4, dtype="float64"), floats(5, 3)
    y = ops.convert_to_numpy(layer(x))
    exact.build((None, 3))
    exact.set_weights(layer.get_weights())
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, ops.convert_to_numpy(exact(x.astype("float64"))), rtol=1e-5, atol=1e-6)


def test_rows_do_not_depend_on_each_other():
    layer, x = RadialBasis(4), floats(9, 3)
    parts = [ops.convert_to_numpy(layer(part)) for part in np.split(x, [2, 5])]
    np.testing.assert_allclose(np.concatenate(parts), ops.convert_to_numpy(layer(x)), rtol=1e-6)


def test_onnx_is_the_same(tmp_path):
    built, path = model(), tmp_path / "layer.onnx"
    built.predict(floats(2, 3), verbose=0)
    built.export(path, format="onnx", verbose=False)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path)
    for rows in (1, 2, 5):
        for scale in (1.0, 30.0):
            x = scale * floats(rows, 3)
            (y,) = session.run(None, {session.get_inputs()[0].name: x})
            np.testing.assert_allclose(y, built.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_round_trip(tmp_path):
    built, x = model(), floats(5, 3)
    built.save(tmp_path / "layer.keras")
    again = keras.models.load_model(tmp_path / "layer.keras")
    np.testing.assert_array_equal(built.predict(x, verbose=0), again.predict(x, verbose=0))
    assert RadialBasis.from_config(RadialBasis(4).get_config()).units == 4


def test_shapes():
    assert model().output_shape == (None, 4)
    with pytest.raises(ValueError, match="expected floats"):
        RadialBasis(4)(floats(7, 2, 3))
    with pytest.raises(ValueError, match="expected a positive int"):
        RadialBasis(0)
