"""Files: a model comes back as it was, and nothing else comes in."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lamella as lm
from lamella_layers import Conv2D, Dense, Flatten


def trained():
    model = lm.Sequential([Conv2D(3, 3, activation="relu"), Flatten(), Dense(2)], input_shape=(1, 5, 5), seed=2**40)
    x, y = np.random.default_rng(0).normal(size=(8, 1, 5, 5)), np.arange(8) % 2
    model.fit(x, y, loss="softmax_cross_entropy", optimizer="adam", epochs=2, batch_size=4, progress=False)
    return model.freeze("conv2d_1"), x, y


def test_saved_models_come_back_and_train_on_bit_by_bit(tmp_path):
    model, x, y = trained()
    path = tmp_path / "model.lamella"
    model.save(path)
    twin = lm.load(path)
    assert type(twin) is lm.Sequential
    assert twin.config() == model.config()
    assert (twin.step, twin.seed, twin.frozen_layers) == (4, 2**40, {"conv2d_1"})
    np.testing.assert_array_equal(twin.predict(x), model.predict(x))
    for one in (model, twin):
        one.unfreeze().train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="adam")
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, twin.parameters[name])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.lamella"]


def test_files_are_safetensors_with_names_and_no_code(tmp_path):
    model, _, _ = trained()
    model.save(tmp_path / "m")
    arrays = load_file(tmp_path / "m")
    np.testing.assert_array_equal(arrays["parameters/conv2d_1.kernel"], model.parameters["conv2d_1.kernel"])
    assert model.config()["layers"][0]["type"] == "lamella:conv2d"
    json.dumps(model.config())


def test_unregistered_layers_are_not_written_and_leave_nothing_behind(tmp_path):
    class Mine(lm.Layer):
        def forward_pass(self, ctx, x):
            return x

    model = lm.Sequential([Mine()], input_shape=3)
    assert lm.from_config(model.config()).predict(np.ones((1, 3))).shape == (1, 3)
    with pytest.raises(lm.DataError, match="registered by an installed plugin"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_loading_weights_with_a_mapping(tmp_path):
    model, _, _ = trained()
    save_file({"w": np.ones((4, 2), "float32"), "b": np.full(2, 3.0, "float32")}, tmp_path / "w")
    head = lm.Sequential([Dense(2)], input_shape=4)
    head.load_weights(tmp_path / "w", {"dense_1.kernel": "w", "dense_1.bias": "b"})
    assert head.predict([[1, 1, 1, 1]]).tolist() == [[7.0, 7.0]]
    model.save(tmp_path / "m")
    fresh = lm.from_config(model.config())
    fresh.load_weights(tmp_path / "m")
    np.testing.assert_array_equal(fresh.parameters["dense_1.kernel"], model.parameters["dense_1.kernel"])
    with pytest.raises(lm.DataError, match="no array 'dense_1.kernel'"):
        head.load_weights(tmp_path / "w")
    with pytest.raises(lm.DataError, match=r"shape \(2,\); 'dense_1.kernel' needs \(4, 2\)"):
        head.load_weights(tmp_path / "w", {"dense_1.kernel": "b", "dense_1.bias": "b"})
    with pytest.raises(lm.DataError, match="Did you mean 'dense_1.kernel'"):
        head.load_weights(tmp_path / "w", {"dense_1.kernle": "w"})


def edited(path, change):
    """The file with its header changed."""
    arrays, header = load_file(path), None
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["lamella"])
    change(header, arrays)
    save_file(arrays, path, metadata={"lamella": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda h, a: h.update(format=99), lm.DataError, "format 99; this version reads format 1"),
        (lambda h, a: h["model"].pop("calls"), lm.DataError, "no configuration of a model"),
        (lambda h, a: h["model"]["layers"][2].update(type="os:system"), lm.RegistryError, "no installed distribution"),
        (lambda h, a: h["model"]["layers"][2].update(type="lamella:sgd"), lm.RegistryError, "unknown name"),
        (lambda h, a: a.pop("parameters/dense_1.bias"), lm.DataError, "differ: dense_1.bias"),
        (lambda h, a: a.update({"parameters/dense_1.bias": np.ones(3)}), lm.DataError, r"expected shape \(2,\)"),
        (lambda h, a: a.update({"slots/m": np.ones(3)}), lm.DataError, "slot 'm' .* of another size"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, error, words):
    model, _, _ = trained()
    path = tmp_path / "m"
    model.save(path)
    edited(path, change)
    with pytest.raises(error, match=words):
        lm.load(path)


def test_files_that_are_no_models_are_refused(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(lm.DataError, match="no lamella model, or it is damaged"):
        lm.load(path)
    save_file({"x": np.ones(1)}, path)
    with pytest.raises(lm.DataError, match="not one that lamella wrote"):
        lm.load(path)
    with pytest.raises(FileNotFoundError):
        lm.load(tmp_path / "nothing")


def test_places_that_cannot_be_written_to_are_named(tmp_path):
    model, _, _ = trained()
    with pytest.raises(FileNotFoundError, match="no such folder; make it first: '.*nowhere'"):
        model.save(tmp_path / "nowhere" / "m")
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())
