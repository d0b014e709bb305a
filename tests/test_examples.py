"""Every example runs, in a reduced form, and does what it says."""

import re
import runpy

import numpy as np
import pytest
from matplotlib.image import imread
from wheels import ROOT, Environment

import lamella as lm
import lamella_onnx
from lamella_layers import Activation, Dense, Dropout, Flatten

EXAMPLES = ROOT / "examples"


def main_of(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_custom_layer(capsys):
    accuracy = main_of("custom_layer")(epochs=3)
    assert accuracy > 0.8
    text = capsys.readouterr().out
    assert re.search(r"onnx +holds", text)
    assert "agrees" in text


REAL_DATA = ["mnist_cnn", "mnist_resnet", "electricity_lstm", "text_transformer", "diamonds", "terrain"]


@pytest.mark.parametrize("name", REAL_DATA)
def test_real_data_in_quick_form(name, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)  # where Python looks for mnist.py when it runs a script beside it
    losses = main_of(name)(quick=True, folder=tmp_path / "runs")["loss"]
    assert losses[-1] < 0.95 * losses[0]
    assert capsys.readouterr().out.count("agrees") >= 5  # batches of 1, 2 and 7, the samples, the proof
    assert lamella_onnx.verify(tmp_path / "runs" / f"{name}.onnx").agrees
    picture = imread(tmp_path / "runs" / f"{name}.png")
    assert picture.shape[1] > 700
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20  # it is drawn, and not one colour


def test_pictures_of_the_gallery_are_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs" / "gallery").iterdir()}
    assert len(sizes) == 6
    assert max(sizes.values()) < 100_000
    assert sum(sizes.values()) < 500_000


def test_serve_needs_no_lamella(tmp_path):
    model = lm.Sequential([Flatten(), Dense(4)], input_shape=(1, 3, 3))
    lamella_onnx.export(model, tmp_path / "model.onnx", append=Activation("softmax"))
    batch = np.random.default_rng(0).normal(size=(5, 1, 3, 3)).astype("float32")
    np.save(tmp_path / "batch.npy", batch)
    environment = Environment(tmp_path, installed=tmp_path / "nothing")
    with pytest.raises(AssertionError, match="No module named 'lamella'"):
        environment.run("-c", "import lamella")
    text = environment.run(str(EXAMPLES / "serve.py"), "model.onnx", "batch.npy")
    first, second = text.splitlines()
    assert first.startswith("5 rows in ")
    assert [int(row.split()[0]) for row in second.split(", ")] == model.predict(batch).argmax(axis=1).tolist()


def test_training_needs_no_lamella(tmp_path):
    layers = [Flatten(), Dense(8, activation="relu"), Dropout(0.1), Dense(4)]
    model = lm.Sequential(layers, input_shape=(1, 3, 3), seed=1)
    loss, optimizer = "softmax_cross_entropy", lm.optimizers.Adam(0.05)
    lamella_onnx.export_training_step(model, tmp_path / "step", loss=loss, optimizer=optimizer)
    x = np.random.default_rng(0).normal(size=(70, 1, 3, 3)).astype("float32")
    y = x.reshape(70, 9)[:, :4].argmax(axis=1)
    np.savez(tmp_path / "data.npz", **{"input_1": x, "dense_2.target": y})
    environment = Environment(tmp_path, installed=tmp_path / "nothing")
    with pytest.raises(AssertionError, match="No module named 'lamella'"):
        environment.run("-c", "import lamella")
    np.savez(tmp_path / "other.npz", input_1=x)
    with pytest.raises(AssertionError, match="no array 'dense_2.target'; expected input_1, dense_2.target"):
        environment.run(str(EXAMPLES / "train_without_lamella.py"), "step", "other.npz")
    text = environment.run(str(EXAMPLES / "train_without_lamella.py"), "step", "data.npz", "trained")
    told = [float(line.rpartition(" ")[2]) for line in text.splitlines()]
    assert len(told) == 5
    assert told[-1] < 0.7 * told[0]
    session = lamella_onnx.TrainingSession(tmp_path / "step")
    session.load_state(tmp_path / "trained")
    assert session.steps == 15
    generator = np.random.default_rng(0)
    for line in told:  # the engine takes the same steps
        losses, order = [], generator.permutation(70)
        for start in range(0, 70, 32):
            rows = order[start : start + 32]
            losses += [model.train_on_batch(x[rows], y[rows], loss=loss, optimizer=optimizer)] * len(rows)
        assert line == pytest.approx(np.mean(losses), abs=2e-4)
    for name, array in session.parameters.items():
        np.testing.assert_allclose(array, model.parameters[name], atol=1e-4)
    trained = model.copy()
    trained.load_weights(tmp_path / "trained")
    assert trained.evaluate(x, y, loss=loss) == pytest.approx(session.evaluate(x, y))
