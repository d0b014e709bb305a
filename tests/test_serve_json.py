"""Requests in JSON: what is no number is not taken for one, nor a list for a parameter."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from lamella_serve.http.tensors import decode
from lamella_serve.model import ServedModel, Settings
from lamella_serve.refusals import Refusal

TYPES = {"FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE, "INT64": TensorProto.INT64, "BOOL": TensorProto.BOOL}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A model that gives back what it gets, for each datatype."""
    models = {}
    for name, number in TYPES.items():
        x, y = (helper.make_tensor_value_info(tensor, number, ["N", 2]) for tensor in "xy")
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "graph", [x], [y])
        path = tmp_path_factory.mktemp(name) / "model.onnx"
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        models[name] = ServedModel("model", 1, path, Settings())
    return models


def body(datatype, data, **more):
    tensor = {"name": "x", "datatype": datatype, "shape": [1, 2], "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


@pytest.mark.parametrize("data", [[True, 2], [2.5, False], [True, True], [[True, 2]], [[2], [False]]])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64"])
def test_true_is_no_number(served, datatype, data):
    with pytest.raises(Refusal, match=f"input 'x': expected values of {datatype}, got true or false"):
        decode(body(datatype, data), None, served[datatype])


def test_true_elsewhere_does_no_harm(served):
    request = decode(body("FP32", [1, 2], parameters={"binary_data_output": True}), None, served["FP32"])
    np.testing.assert_array_equal(request.inputs["x"], np.array([[1, 2]], np.float32), strict=True)
    request = decode(body("BOOL", [[True, False]]), None, served["BOOL"])
    np.testing.assert_array_equal(request.inputs["x"], np.array([[True, False]]), strict=True)


@pytest.mark.parametrize("value", [[1], {"a": 1}, None])
def test_a_parameter_is_a_string_a_number_or_a_boolean(served, value):
    with pytest.raises(Refusal, match="the request: parameter 'color': expected a string, a number or a boolean, got"):
        decode(body("FP32", [1, 2], parameters={"color": value}), None, served["FP32"])
    for good in ("red", 3, 0.5, True):
        decode(body("FP32", [1, 2], parameters={"color": good}), None, served["FP32"])
