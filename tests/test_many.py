"""Long, large and many: what grows with layers, rows and steps, and models that several threads use."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import lamella as lm
from lamella_layers import Concatenate, Dense

RELU = {"kind": "layers", "type": "lamella:activation", "version": None, "config": {"function": "relu"}}


def calls_of(run):
    """How many functions of Python and C a function calls."""
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def chain(depth):
    return lm.Sequential([Dense(2) for _ in range(depth)], input_shape=2)


def nested(depth):
    return lm.Sequential([chain(depth), Dense(2)], input_shape=2)


def with_many_inputs_and_outputs(count):
    inputs = [lm.Input(2) for _ in range(count)]
    return lm.Model(inputs, [Concatenate()(*inputs), *(Dense(2)(x) for x in inputs)])


def read_again(depth):
    return lm.from_config(chain(depth).config())


@pytest.mark.parametrize("build", [chain, nested, with_many_inputs_and_outputs, read_again])
def test_the_work_of_building_grows_with_the_number_of_layers_and_not_with_its_square(build):
    build(4)
    few, many = (calls_of(lambda n=n: build(n)) for n in (250, 500))
    assert many < 2.2 * few


def write_models_within_models(path, levels, times):
    """A file of one kilobyte or so; each model calls the one before some times."""

    def model(layer, times):
        calls = [{"layer": layer, "inputs": [[k, 0]]} for k in range(times)]
        given = {"class": "Model", "dtype": "float32", "seed": 0, "inputs": [{"shape": [2], "dtype": None}]}
        return {**given, "calls": calls, "outputs": [[times, 0]], "frozen": []}

    layers = [{**RELU, "name": None, "trainable": True}, *({"model": model(k, times)} for k in range(levels))]
    header = {"format": 1, "step": 0, "model": {**model(levels, 1), "layers": layers}}
    save_file({"x": np.zeros(1, "f4")}, path, {"lamella": json.dumps(header)})


@pytest.mark.parametrize(("levels", "times"), [(40, 2), (400, 2), (6, 50)])
def test_models_that_call_one_another_are_refused_before_they_are_expanded(tmp_path, monkeypatch, levels, times):
    monkeypatch.setattr("lamella.files.structure.MOST", 3000)
    write_models_within_models(tmp_path / "m", levels, times)
    with pytest.raises(lm.DataError, match=r"load .*come to [\d,]+ layers and more; expected 3,000 at most"):
        lm.load(tmp_path / "m")


def test_a_model_of_too_many_layers_is_refused(monkeypatch):
    monkeypatch.setattr("lamella.graph.operations.MOST", 10)
    with pytest.raises(lm.errors.GraphError, match="11 layers, composites expanded; expected 10 at most"):
        chain(11)
