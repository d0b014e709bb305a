"""Every example runs, in a reduced form, and does what it says."""

import re
import runpy

import numpy as np
import pytest
from wheels import ROOT, Environment

import lamella as lm
import lamella_onnx
from lamella_layers import Activation, Dense, Flatten

EXAMPLES = ROOT / "examples"


def main_of(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_custom_layer(capsys):
    accuracy = main_of("custom_layer")(epochs=3)
    assert accuracy > 0.8
    text = capsys.readouterr().out
    assert re.search(r"onnx +holds", text)
    assert "agrees" in text


@pytest.mark.parametrize("name", ["mnist_cnn", "mnist_resnet", "electricity_lstm", "text_transformer"])
def test_real_data_in_quick_form(name, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)  # where Python looks for mnist.py when it runs a script beside it
    losses = main_of(name)(quick=True, folder=tmp_path / "runs")["loss"]
    assert losses[-1] < 0.95 * losses[0]
    assert capsys.readouterr().out.count("agrees") >= 5  # batches of 1, 2 and 7, the samples, the proof
    assert lamella_onnx.verify(tmp_path / "runs" / f"{name}.onnx").agrees
    assert (tmp_path / "runs" / f"{name}.png").stat().st_size > 20_000


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
