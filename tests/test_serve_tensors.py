"""Tensors in requests and answers: their values, how they are written, and what is wrong with them in what words."""

from __future__ import annotations

import copy
import json
import math
import random
import time

import numpy as np
import pytest
from serving import DATATYPES, PACK, SEED, TIMES, Client, in_binary, one, packed, read, tensor, values, write

NAN, INFINITY = math.nan, math.inf


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, (onnx_type, _, _) in DATATYPES.items():
        write(folder / f"same_{name}.onnx", f"g ({onnx_type}[N,K] x) => ({onnx_type}[N,K] y) {{ y = Identity(x) }}")
        write(folder / f"scalar_{name}.onnx", f"g ({onnx_type} x) => ({onnx_type} y) {{ y = Identity(x) }}")
    write(
        folder / "digits.onnx",
        "g (float[N,3] x) => (float[N,3] p) { p = Identity(x) }",
        labels="ant\nbee\ncat",
    )
    write(
        folder / "two.onnx",
        "g (float[N,2] a, int64[N] b) => (float[N,2] sum, int64[N] twice) "
        "{ twice = Add(b, b)  c = Cast<to=1>(b)  axes = Constant<value_ints=[1]>()  d = Unsqueeze(c, axes)  "
        "sum = Add(a, d) }",
    )
    write(
        folder / "cells.onnx",
        "g (float[N,2,2] x) => (float[N,2,2] y, int32[N,2,2] whole, bool[N,2,2] some) "
        "{ y = Identity(x)  whole = Cast<to=6>(x)  some = Cast<to=9>(x) }",
    )
    write(
        folder / "state.onnx",
        "g (float[1,2] x, float[1,2] h) => (float[1,2] y, float[1,2] after) { after = Add(x, h)  y = Relu(after) }",
    )
    write(folder / "matrix.onnx", "g (float[2,3] x) => (float[3,2] y) { y = Transpose(x) }")
    write(folder / "sum.onnx", "g (float[A,B] x) => (float s) { s = ReduceSum<keepdims=0>(x) }")
    write(folder / "constant.onnx", "g () => (float[2] y) { y = Constant<value_floats=[1.0, 2.0]>() }")
    write(folder / "any_rank.onnx", "g (float[] x) => (float[] y) { y = Relu(x) }")
    write(
        folder / "by_four.onnx",  # the declared shape admits what the graph does not
        "g (float[N,K] x) => (float[N,4] y) { s = Constant<value_ints=[-1, 4]>()  y = Reshape(x, s) }",
    )
    return Client(folder)


# Values


@pytest.mark.parametrize("answered", ["JSON", "binary"])
@pytest.mark.parametrize("sent", ["JSON", "binary"])
@pytest.mark.parametrize("name", DATATYPES)
def test_values_come_back_as_they_went(client, name, sent, answered):
    _, numpy_type, data = DATATYPES[name]
    request, headers = one(data, name, parameters={"binary_data_output": answered == "binary"}), {}
    if sent == "binary":
        request, headers = in_binary(request, packed(data, numpy_type))
    said, blob = read(client.infer(f"same_{name}", request, **headers))
    (output,) = said["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", name, [1, len(data)])
    if answered == "binary":
        assert output["parameters"] == {"binary_data_size": len(blob)}
        assert blob == packed(data, numpy_type)
    elif name == "BYTES":
        assert output["data"] == data
    else:
        assert packed(output["data"], numpy_type) == packed(data, numpy_type)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("name", DATATYPES)
def test_scalars_and_axes_without_elements_work(client, name, binary):
    _, numpy_type, data = DATATYPES[name]
    for model, shape, some in ((f"scalar_{name}", [], data[-1:]), (f"same_{name}", [1, 0], [])):
        request, headers = {"inputs": [tensor(name, shape, some)], "parameters": {"binary_data_output": binary}}, {}
        if binary:
            request, headers = in_binary(request, packed(some, numpy_type))
        said, blob = read(client.infer(model, request, **headers))
        assert said["outputs"][0]["shape"] == shape
        if binary:
            assert blob == packed(some, numpy_type)
        else:
            assert repr(said["outputs"][0]["data"]) == repr(some)


def test_a_row_of_one_is_a_scalar(client):
    assert values(client.infer("scalar_INT64", {"inputs": [tensor("INT64", [1], [7])]})) == [7]


@pytest.mark.parametrize(
    "data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1, 2], [3, 4]]], [[[[1], [2]], [[3], [4]]]]], ids=str
)
def test_data_may_be_nested(client, data):
    said = read(client.infer("cells", {"inputs": [tensor("FP32", [1, 2, 2], data)]}))[0]
    assert [output["data"] for output in said["outputs"]] == [[1, 2, 3, 4], [1, 2, 3, 4], [True] * 4]
    texts = [[str(value) for value in row] for row in np.reshape(data, (2, 2)).tolist()]
    request = {"inputs": [tensor("BYTES", [2, 2], texts)]}
    assert values(client.infer("same_BYTES", request)) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("datatype", "data", "got"),
    [
        ("BOOL", [1, 0], [True, False]),
        ("FP32", [1, 2**63, -1, 2**64, 10**30], [1, 2**63, -1, 2.0**64, 1e30]),
        ("FP32", [1, 10**30, 3 * 2**63, -3 * 2**63, NAN], [1, 1e30, 1.5 * 2.0**64, -1.5 * 2.0**64, NAN]),
        ("FP32", [1e39, -1e39], [INFINITY, -INFINITY]),
        ("FP16", [65520], [INFINITY]),
        ("UINT64", [2**64 - 1, 1], [2**64 - 1, 1]),
    ],
    ids=str,
)
def test_numbers_are_taken_as_the_datatype_has_them(client, datatype, data, got):
    numpy_type = DATATYPES[datatype][1]
    assert packed(values(client.infer(f"same_{datatype}", one(data, datatype))), numpy_type) == packed(got, numpy_type)


def test_any_byte_but_0_is_true(client):
    request = {"inputs": [tensor("BOOL", [1, 3], [])]}
    body, headers = in_binary(request, b"\0\2\xff")
    assert values(client.infer("same_BOOL", body, **headers)) == [False, True, True]


@pytest.mark.parametrize(
    ("datatype", "data", "reason"),
    [
        *((name, [2**63], "holds") for name in ("INT8", "INT16", "INT32", "INT64")),
        ("INT8", [128], "holds -128 to 127"),
        ("UINT8", [256], "holds 0 to 255"),
        ("UINT8", [-1], "holds 0 to 255"),
        ("UINT64", [-1], "holds 0 to 18446744073709551615"),
        ("UINT64", [2**63, -1], "holds 0 to"),
        ("UINT64", [2**64], "expected whole numbers for UINT64"),
        ("INT64", [-(2**63) - 1], "expected whole numbers for INT64"),
        ("INT64", [1.0], "expected whole numbers for INT64"),
        ("INT64", [2**63, 0.5], "expected whole numbers for INT64"),
        ("INT64", [True, 2], "expected numbers for INT64, got true or false"),
        ("FP32", [[2.5, False]], "expected numbers for FP32, got true or false"),
        ("INT64", [None], "expected whole numbers for INT64"),
        ("INT64", ["1"], "expected whole numbers for INT64"),
        ("FP32", ["1"], "expected numbers for FP32"),
        ("FP32", [True], "expected numbers for FP32"),
        ("FP32", [1, None], "expected numbers for FP32"),
        ("FP32", [{}], "expected numbers for FP32"),
        ("BOOL", [2], "expected true or false for BOOL"),
        ("BOOL", [1.0], "expected true or false for BOOL"),
        ("BYTES", [1], "expected strings"),
        ("BYTES", ["a", None], "expected strings"),
        ("BYTES", ["a", ["b"]], "expected strings"),
    ],
    ids=str,
)
def test_values_that_a_datatype_has_not_are_refused(client, datatype, data, reason):
    reply = client.infer(f"same_{datatype}", one(data, datatype))
    assert reply.status == 400
    assert reason in reply.error


# Inputs and outputs

TWO = {"inputs": [tensor("FP32", [2, 2], [1, 2, 3, 4], "a"), tensor("INT64", [2], [10, 20], "b")]}
SUM, TWICE = [11, 12, 23, 24], [20, 40]


@pytest.mark.parametrize("path", ["/v2/models/two/infer", "/v2/models/two/versions/1/infer"])
def test_several_inputs_give_several_outputs(client, path):
    for inputs in (TWO["inputs"], TWO["inputs"][::-1]):
        assert client.post(path, {"inputs": inputs}).json == {
            "model_name": "two",
            "model_version": "1",
            "outputs": [tensor("FP32", [2, 2], SUM, "sum"), tensor("INT64", [2], TWICE, "twice")],
        }


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ([], {"sum": SUM, "twice": TWICE}),
        (["twice"], {"twice": TWICE}),
        (["twice", "sum"], {"sum": SUM, "twice": TWICE}),  # in the model's order
        (["sum", "sum"], {"sum": SUM}),
    ],
    ids=str,
)
def test_only_the_outputs_that_are_asked_for_come(client, asked, got):
    reply = client.infer("two", {**TWO, "outputs": [{"name": name} for name in asked]})
    assert {output["name"]: output["data"] for output in reply.json["outputs"]} == got
    assert [output["name"] for output in reply.json["outputs"]] == list(got)


@pytest.mark.parametrize(
    ("parameters", "outputs", "in_bytes"),
    [
        ({"binary_data_output": True}, None, ["sum", "twice"]),
        ({"binary_data_output": False}, None, []),
        ({}, {"sum": True, "twice": True}, ["sum", "twice"]),
        ({}, {"sum": False, "twice": True}, ["twice"]),
        ({"binary_data_output": True}, {"sum": None, "twice": True}, ["twice"]),  # those that are listed decide alone
    ],
    ids=str,
)
def test_each_output_comes_as_bytes_or_json_as_asked(client, parameters, outputs, in_bytes):
    request = {**TWO, "parameters": parameters}
    if outputs is not None:
        request["outputs"] = [
            {"name": name, "parameters": {} if binary is None else {"binary_data": binary}}
            for name, binary in outputs.items()
        ]
    said, blob = read(client.infer("two", request))
    for output, array in zip(said["outputs"], (np.array(SUM, "float32"), np.array(TWICE)), strict=True):
        if output["name"] in in_bytes:
            size = output["parameters"]["binary_data_size"]
            assert (blob[:size], "data" in output) == (array.tobytes(), False)
            blob = blob[size:]
        else:
            assert (output["data"], "parameters" in output) == (array.ravel().tolist(), False)
    assert blob == b""


def test_inputs_may_come_as_bytes_and_json_in_one_request(client):
    request = copy.deepcopy(TWO)
    del request["inputs"][0]["data"]
    request["inputs"][0]["parameters"] = {"binary_data_size": 16}
    head = json.dumps(request).encode()
    for padding in (b"", b" ", b"  ", b"   "):  # the bytes begin wherever the JSON ends
        body = head + padding + np.array([1, 2, 3, 4], "float32").tobytes()
        reply = client.infer("two", body, inference_header_content_length=str(len(head + padding)))
        assert [output["data"] for output in reply.json["outputs"]] == [SUM, TWICE]


@pytest.mark.parametrize(
    ("model", "inputs", "outputs"),
    [
        ("matrix", [tensor("FP32", [2, 3], [1, 2, 3, 4, 5, 6])], [([3, 2], [1, 4, 2, 5, 3, 6])]),
        ("sum", [tensor("FP32", [2, 3], [1, 2, 3, 4, 5, 6])], [([], [21])]),
        ("sum", [tensor("FP32", [0, 3], [])], [([], [0])]),
        (
            "state",
            [tensor("FP32", [1, 2], [-1, 2]), tensor("FP32", [1, 2], [0, 5], "h")],
            [([1, 2], [0, 7]), ([1, 2], [-1, 7])],
        ),
        ("constant", [], [([2], [1, 2])]),
        ("any_rank", [tensor("FP32", [2, 1, 2], [-1, 2, 3, 4])], [([2, 1, 2], [0, 2, 3, 4])]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_without_a_batch_axis_answer(client, model, inputs, outputs):
    said = read(client.infer(model, {"inputs": inputs}))[0]
    assert [(output["shape"], output["data"]) for output in said["outputs"]] == outputs


@pytest.mark.parametrize("identifier", ["1", "grün 😀", "a" * 1000])
def test_an_id_comes_back(client, identifier):
    reply = client.infer("digits", {"id": identifier, **one([1, 2, 3])})
    assert reply.json["id"] == identifier
    request, headers = in_binary({"id": identifier, **one([1, 2, 3])}, packed([1, 2, 3], "float32"))
    assert client.infer("digits", request, **headers).json["id"] == identifier


def test_no_id_comes_back_where_none_went(client):
    assert "id" not in client.infer("digits", one([1, 2, 3])).json
    assert "id" not in client.infer("digits", one([1, 2, 3], id="")).json


def test_parameters_that_mean_nothing_here_are_passed_over(client):
    request = one([1, 2, 3], parameters={"priority": 1, "timeout": 5, "sequence_id": "a", "other": 1.5}, more=[])
    request["inputs"][0]["parameters"] = {"other": True}
    assert client.infer("digits", request, content_type="text/plain").status == 200


# Classes


def classes(client, count, rows, model="digits", datatype="FP32", output="p", **parameters):
    wanted = [{"name": output, "parameters": {"classification": count, **parameters}}]
    request = {"inputs": [tensor(datatype, list(np.shape(rows)), rows)], "outputs": wanted}
    return client.infer(model, request)


@pytest.mark.parametrize(
    ("count", "rows", "shape", "got"),
    [
        (1, [[0.25, 0.5, 0.125]], [1, 1], ["0.500000:1:bee"]),
        (2, [[0.25, 0.5, 0.125]], [1, 2], ["0.500000:1:bee", "0.250000:0:ant"]),
        (9, [[1, 3, 2]], [1, 3], ["3.000000:1:bee", "2.000000:2:cat", "1.000000:0:ant"]),
        (1, [[1, 1, 0], [0, 1, 1]], [2, 1], ["1.000000:0:ant", "1.000000:1:bee"]),  # the lower place of equals
        (3, [[NAN, 1e10, -INFINITY]], [1, 3], ["10000000000.000000:1:bee", "-inf:2:cat", "nan:0:ant"]),
    ],
    ids=str,
)
def test_the_likeliest_classes_come_with_place_and_label(client, count, rows, shape, got):
    (output,) = classes(client, count, rows).json["outputs"]
    assert output == {"name": "p", "datatype": "BYTES", "shape": shape, "data": got}


def test_classes_without_labels_have_their_places_only(client):
    assert values(classes(client, 2, [[5, 7]], "same_INT64", "INT64", "y")) == ["7:1", "5:0"]
    assert values(classes(client, 2, [[True, False]], "same_BOOL", "BOOL", "y")) == ["1:0", "0:1"]
    assert values(classes(client, 1, [[1, 2]], "same_FP16", "FP16", "y")) == ["2.000000:1"]
    assert values(classes(client, 1, [[1, 2]], "same_BF16", "BF16", "y")) == ["2.000000:1"]


def test_whole_numbers_beyond_those_of_floats_are_ranked_exactly(client):
    assert values(classes(client, 3, [[2**53, 2**53 + 1, -(2**63)]], "same_INT64", "INT64", "y")) == [
        f"{2**53 + 1}:1",
        f"{2**53}:0",
        f"{-(2**63)}:2",
    ]
    assert values(classes(client, 3, [[0, 2**64 - 1, 2**64 - 2]], "same_UINT64", "UINT64", "y")) == [
        f"{2**64 - 1}:1",
        f"{2**64 - 2}:2",
        "0:0",
    ]


def test_places_count_all_elements_of_a_row(client):
    (output,) = classes(client, 2, [[[1, 2], [4, 3]], [[8, 7], [6, 5]]], "cells", output="y").json["outputs"]
    assert (output["shape"], output["data"]) == ([2, 2], ["4.000000:2", "3.000000:3", "8.000000:0", "7.000000:1"])


def test_without_a_batch_axis_all_elements_are_one_row(client):
    (output,) = classes(client, 2, [[1, 2, 3], [6, 5, 4]], "matrix", output="y").json["outputs"]
    assert (output["shape"], output["data"]) == ([2], ["6.000000:1", "5.000000:3"])
    (output,) = classes(client, 2, [[1, 2, 3]], "sum", output="s").json["outputs"]
    assert (output["shape"], output["data"]) == ([1], ["6.000000:0"])


def test_rows_without_elements_have_no_classes(client):
    (output,) = classes(client, 2, [[], []], "same_FP32", output="y").json["outputs"]
    assert (output["shape"], output["data"]) == ([2, 0], [])
    (output,) = classes(client, 2, [[[], []]], "any_rank", output="y").json["outputs"]
    assert (output["shape"], output["data"]) == ([1, 0], [])


def test_classes_come_as_bytes_too(client):
    said, blob = read(classes(client, 1, [[0, 1, 0]], binary_data=True))
    assert said["outputs"][0]["datatype"] == "BYTES"
    assert blob == packed(["1.000000:1:bee"], "object")


@pytest.mark.parametrize("count", [1, 7, 400, 1000])
def test_the_likeliest_of_many_come_in_order(client, count):
    row = np.random.default_rng(count).integers(0, 50, 1000).astype("float32")  # each value about 20 times
    row[::100] = NAN
    order = np.argsort(-row, kind="stable")[:count]
    assert values(classes(client, count, [row.tolist()], "same_FP32", output="y")) == [f"{row[n]:f}:{n}" for n in order]


def test_an_answer_names_not_too_many_classes(client):
    rows = [[0.0] * 128] * 512
    assert len(values(classes(client, 64, rows, "same_FP32", output="y"))) == 2**15
    reply = classes(client, 65, rows, "same_FP32", output="y")
    assert (reply.status, "names at most 32,768 classes, this one 33,280" in reply.error) == (400, True)


def test_strings_have_no_classes(client):
    assert "needs scores" in classes(client, 1, [["a"]], "same_BYTES", "BYTES", "y").error


# Requests that are wrong

X = tensor("FP32", [1, 3], [1, 2, 3])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"{}trailing", "no JSON"),
        (b"{'a': 1}", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"id": NaN', "no JSON"),
        (b'{"inputs": [{"data": [1e400]}]}', "no JSON"),
        (b"[" * 100_00, "no JSON"),
        (b"NaN" + b"[" * 10_000, "no JSON"),
        (b"[]", "expected a JSON object, got a list"),
        (b"[" * 1000 + b"]" * 1000, "expected a JSON object, got a list"),
        (b'"x"', 'expected a JSON object, got "x"'),
        (b"5", "expected a JSON object, got 5"),
        (b"null", "expected a JSON object, got nothing"),
        (b"NaN", "expected a JSON object, got NaN"),
        ({}, "inputs: expected a list of objects, got nothing"),
        ({"inputs": {}}, "inputs: expected a list of objects, got an object"),
        ({"inputs": [X, 5]}, "inputs: expected a list of objects, got 5 in it"),
        ({"inputs": []}, "needs input 'x', got none"),
        ({"inputs": [X, X]}, "input 'x' is given twice"),
        ({"inputs": [X], "id": 5}, "id: expected a string, got 5"),
        ({"inputs": [X], "id": "\ud800", "more": NAN}, "id: expected a string, got half"),
        ({"inputs": [X], "parameters": 5}, "parameters: expected an object, got 5"),
        ({"inputs": [X], "parameters": {"color": [1]}}, "parameter 'color': expected a string, a number or a boolean"),
        ({"inputs": [X], "parameters": {"color": None}}, "parameter 'color': expected a string, a number or a boolean"),
        ({"inputs": [X], "parameters": {"a" * 5000: {}}}, "expected a string, a number or a boolean"),
        ({"inputs": [X], "outputs": "p"}, 'outputs: expected a list of objects, got "p"'),
        ({"inputs": [X], "outputs": [5]}, "outputs: expected a list of objects, got 5 in it"),
        ({"inputs": [X], "outputs": [{}]}, "outputs: each needs a name, a string, got nothing"),
        ({"inputs": [X], "outputs": [{"name": "y"}]}, "has no output 'y'; it has 'p'"),
        ({"inputs": [X], "outputs": [{"name": "\ud800", "data": NAN}]}, "has no output '\\ud800'"),
        *(
            ({"inputs": [X], "outputs": [{"name": "p", "parameters": {"classification": count}}]}, "classification")
            for count in (-1, 2.5, "2", True, None, [])
        ),
        (
            {"inputs": [X], "outputs": [{"name": "p", "parameters": {"shared_memory_region": "r"}}]},
            "no shared memory",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_is_wrong_is_refused_with_the_reason(client, body, reason):
    reply = client.infer("digits", body)
    assert reply.status == 400
    assert reason in reply.error
    assert len(reply.error) < 300


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": None}, "inputs: each needs a name, a string, got nothing"),
        ({"name": [[[]]] * 3}, "inputs: each needs a name, a string, got a list"),
        ({"name": "z"}, "has no input 'z'; it has 'x'"),
        ({"name": "z" * 50_000}, "has no input 'zz"),
        ({"datatype": None}, "expected datatype 'FP32', got nothing"),
        ({"datatype": "FP64"}, "expected datatype 'FP32', got \"FP64\""),
        ({"datatype": "float32"}, "expected datatype 'FP32'"),
        ({"datatype": ["FP32"]}, "expected datatype 'FP32', got a list"),
        ({"shape": None}, "expected shape as a list of sizes, got nothing"),
        ({"shape": "1,3"}, 'expected shape as a list of sizes, got "1,3"'),
        ({"shape": [-1, 3]}, "expected sizes of 0 or more"),
        ({"shape": [1.0, 3]}, "expected sizes of 0 or more"),
        ({"shape": [True, 3]}, "expected sizes of 0 or more"),
        ({"shape": [[1], 3]}, "expected sizes of 0 or more"),
        ({"shape": [1, 2**64]}, "expected sizes of 0 or more"),
        ({"shape": [1, 4]}, "shape [1, 4] takes 4 elements, got 3"),
        ({"shape": [2**31, 2**31]}, "is too large"),
        ({"shape": [0, 2**63], "data": []}, "is too large"),
        ({"shape": [0, 2**62], "data": []}, "is too large"),
        ({"shape": [1, 2**20 + 1, 0], "data": []}, "is too large"),  # a sum over the last axis has as many elements
        ({"shape": [1] * 65}, "expected at most 64 axes, got 65"),
        ({"shape": [1] * 64, "data": [1]}, "expected shape [-1, 3], -1 being any size"),
        ({"shape": [3]}, "expected shape [-1, 3], -1 being any size, got [3]"),
        ({"shape": [3, 1]}, "expected shape [-1, 3], -1 being any size, got [3, 1]"),
        ({"shape": [0, 3], "data": []}, "takes 1 to 1024 rows in a request, got 0"),
        ({"shape": [1025, 3], "data": [0] * 3075}, "takes 1 to 1024 rows in a request, got 1025"),
        ({"data": None}, "expected data as a list, got nothing"),
        ({"data": 5}, "expected data as a list, got 5"),
        ({"data": {"0": 1}}, "expected data as a list, got an object"),
        ({"data": [[1, 2], [3]]}, "lists of unequal lengths"),
        ({"data": [1, [2, 3]]}, "lists of unequal lengths"),
        ({"data": [[1, [True]], 2]}, "lists of unequal lengths"),
        ({"data": json.loads("[" * 500 + "]" * 500)}, "lists of unequal lengths"),
        ({"data": []}, "takes 3 elements, got 0"),
        ({"parameters": []}, "parameters: expected an object, got a list"),
        ({"parameters": {"binary_data_size": 12}}, "expected data or a binary_data_size, got both"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_input_that_is_wrong_is_refused_with_the_reason(client, change, reason):
    reply = client.infer("digits", {"inputs": [{**X, **change}]})
    assert reply.status == 400
    assert reason in reply.error
    assert len(reply.error) < 400


def test_large_json_is_refused_with_the_way_out(client):
    reply = client.infer("digits", b" " * 16_000_001)
    assert (reply.status, "send tensors as binary data" in reply.error) == (413, True)
    request = {"inputs": [tensor("FP32", [1, 4_000_001], None)], "outputs": [{"name": "s"}]}
    body, headers = in_binary(request, bytes(16_000_004))
    assert values(client.infer("sum", body, **headers)) == [0]


def test_lists_that_are_deep_beside_others_that_are_not_take_no_time(client):
    deep = json.loads("[" * 900 + "]" * 900)
    for model, datatype, value in (("same_BYTES", "BYTES", ""), ("same_FP32", "FP32", True)):
        began = time.monotonic()
        reply = client.infer(model, {"inputs": [tensor(datatype, [1, 1], [deep] + [value] * 100_000)]})
        assert time.monotonic() - began < 1  # 5 seconds, if each level were copied
        assert (reply.status, "lists of unequal lengths" in reply.error) == (400, True)


@pytest.mark.parametrize("datatype", ["INT32", "INT64"])
@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_what_faults_when_it_is_divided_is_refused(tmp_path, datatype, operator):
    kind = datatype.lower()
    graph = f"g ({kind}[N,K] x) => ({kind}[N,K] y) <{kind} n = {{-1}}> {{ y = {operator}(x, n) }}"
    client = Client(write(tmp_path / "quotients.onnx", graph))
    least = np.iinfo(kind).min
    reply = client.infer("quotients", one([5, least], datatype))
    assert (reply.status, f"{least} can't be divided" in reply.error) == (400, True)
    assert client.infer("quotients", one([5, least + 1], datatype)).status == 200
    assert values(client.infer("quotients", {"inputs": [tensor(datatype, [1, 0], [])]})) == []


def test_an_input_without_data_is_refused(client):
    given = {name: value for name, value in X.items() if name != "data"}
    assert "neither data nor binary_data_size" in client.infer("digits", {"inputs": [given]}).error
    given["parameters"] = {"shared_memory_region": "r"}
    assert "no shared memory" in client.infer("digits", {"inputs": [given]}).error


def test_inputs_of_different_rows_are_refused(client):
    request = {"inputs": [tensor("FP32", [2, 2], [1, 2, 3, 4], "a"), tensor("INT64", [3], [1, 2, 3], "b")]}
    assert "as many rows as each other: 'a' has [2, 2], 'b' has [3]" in client.infer("two", request).error


def test_a_scalar_for_a_model_of_rows_is_refused(client):
    assert "need a first axis" in client.infer("any_rank", {"inputs": [tensor("FP32", [], [1])]}).error


def test_what_onnxruntime_complains_of_is_the_client_s_matter(client):
    assert values(client.infer("by_four", one([1, 2, 3, 4]))) == [1, 2, 3, 4]
    reply = client.infer("by_four", one([1, 2, 3]))
    assert reply.status == 400
    assert "onnxruntime can't run the model on these inputs" in reply.error
    assert "Reshape" in reply.error
    assert ".cc" not in reply.error  # nor where in its source


@pytest.mark.parametrize(
    ("size", "tail", "reason"),
    [
        (12, b"", "binary_data_size is 12, and 0 bytes of binary data are left"),
        (12, bytes(11), "binary_data_size is 12, and 11 bytes of binary data are left"),
        (12, bytes(13), "13 bytes of binary data, of which the inputs take 12"),
        (8, bytes(8), "[1, 3] FP32 takes 12 bytes of binary data, got 8"),
        (-12, bytes(12), "expected a binary_data_size of 0 or more, got -12"),
        ("12", bytes(12), 'expected a binary_data_size of 0 or more, got "12"'),
        (12.0, bytes(12), "expected a binary_data_size of 0 or more, got 12.0"),
        (True, bytes(1), "expected a binary_data_size of 0 or more, got true"),
        (2**63, bytes(12), "binary_data_size is 9,223,372,036,854,775,808, and 12 bytes"),
    ],
)
def test_binary_data_of_another_size_are_refused(client, size, tail, reason):
    given = {**X, "parameters": {"binary_data_size": size}}
    del given["data"]
    head = json.dumps({"inputs": [given]}).encode()
    reply = client.infer("digits", head + tail, inference_header_content_length=str(len(head)))
    assert (reply.status, reason in reply.error) == (400, True), reply.error


@pytest.mark.parametrize("said", ["-1", "99999", "9" * 5000, "abc", "", "1.0", "0x10", "+5", " 5", "²"])
def test_a_header_length_that_is_none_is_refused(client, said):
    reply = client.infer("digits", one([1, 2, 3]), inference_header_content_length=said)
    assert reply.status == 400
    assert "Inference-Header-Content-Length is" in reply.error
    assert len(reply.error) < 300


@pytest.mark.parametrize("length", [1, 50])
def test_a_header_length_within_the_json_is_refused(client, length):
    reply = client.infer("digits", one([1, 2, 3]), inference_header_content_length=str(length))
    assert (reply.status, "no JSON" in reply.error) == (400, True)


def test_a_header_length_of_the_whole_body_changes_nothing(client):
    body = json.dumps(one([1, 2, 3])).encode()
    assert values(client.infer("digits", body, inference_header_content_length=str(len(body)))) == [1, 2, 3]


@pytest.mark.parametrize(
    ("shape", "blob"),
    [
        ([1, 1], b""),
        ([1, 1], b"\1\0\0"),
        ([1, 1], b"\2\0\0\0a"),
        ([1, 1], b"\xff\xff\xff\xffa"),
        ([1, 1], b"\1\0\0\0ab"),
        ([1, 2], b"\1\0\0\0a"),
        ([1, 2**40], b"\1\0\0\0a"),
        ([1, 0], b"\0\0\0\0"),
        ([1, 1], b"\1\0\0\0\xff"),
        ([1, 1], b"\3\0\0\0\xed\xa0\x80"),
    ],
    ids=str,
)
def test_strings_that_are_cut_short_or_not_utf8_are_refused(client, shape, blob):
    request, headers = in_binary({"inputs": [tensor("BYTES", shape, [])]}, blob)
    reply = client.infer("same_BYTES", request, **headers)
    assert reply.status == 400
    assert "strings" in reply.error


def test_half_a_surrogate_pair_is_refused(client):
    reply = client.infer("same_BYTES", one(["\ud800", "NaN"], "BYTES"))
    assert (reply.status, "surrogates" in reply.error) == (400, True)


# Requests that nobody thought of

JUNK = [
    None, True, 0, -1, 1.5, 2**31, 2**63, -(2**63), 1e300, NAN, -INFINITY, "", "x", "FP32", "BYTES", "\ud800", "\0",
    "a" * 5000, [], [[]], {}, [1, 2], {"x": 1}, [None], [[1], 2], ["a", 1], [[[[1.0]]]], {"binary_data_size": 4},
    {"classification": 1}, {"binary_data": True, "classification": 2**70}, {"binary_data_output": True},
]  # fmt: skip
GOOD = {
    "digits": one([0.5, 0.25, 0.125], id="1", outputs=[{"name": "p", "parameters": {"classification": 2}}]),
    "two": {**TWO, "outputs": [{"name": "twice", "parameters": {"binary_data": True}}, {"name": "sum"}]},
    "same_BYTES": one(["a", "", "grün"], "BYTES", parameters={"binary_data_output": True}),
    "same_UINT64": one([1, 2**63], "UINT64"),
    "same_FP16": one([1, 0.5], "FP16"),
    "same_BF16": one([1, 0.5], "BF16"),
    "same_BOOL": one([True, False], "BOOL"),
    "scalar_INT8": {"inputs": [tensor("INT8", [], [5])]},
    "any_rank": {"inputs": [tensor("FP32", [1, 2, 1], [[[1], [2]]])]},
    "by_four": one([1, 2, 3, 4]),
}


def mutated(rng, value):
    """A value with something else in one place, mostly deep inside."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(JUNK)
    value = copy.copy(value)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    what = rng.random()
    if what < 0.1:
        del value[key]
    elif what < 0.2 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = mutated(rng, value[key])
    return value


def damaged(rng, body):
    """Bytes, some of which are others."""
    body = bytearray(body)
    for _ in range(rng.choice([0, 1, 1, 3])):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(4):
            case 0:
                del body[at : at + rng.choice([1, 5, 1000])]
            case 1:
                body[at:at] = rng.choice([b"\0", b"\xff", b"[", b"]", b"NaN", b'"', b"9" * 30, b"\\ud800", b"{" * 2000])
            case _:
                body[at : at + 1] = rng.randbytes(1)
    return bytes(body)


def test_no_request_makes_the_server_fail(client):
    print("LAMELLA_SEED =", SEED)
    rng = random.Random(SEED)
    statuses = set()
    for _ in range(3000 * TIMES):
        name = rng.choice(list(GOOD))
        request = GOOD[name]
        for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
            request = mutated(rng, request)
        body, headers = json.dumps(request).encode(), {}
        if rng.random() < 0.4:
            headers["inference_header_content_length"] = rng.choice(
                ["0", "-1", "9" * 5000, str(len(body)), str(len(body) - 4)]
            )
            body += rng.randbytes(rng.choice([0, 0, 4, 8, 9, 24]))
        if rng.random() < 0.5:
            body = damaged(rng, body)
        if rng.random() < 0.2:
            headers["content_encoding"] = encoding = rng.choice(list(PACK))
            body = damaged(rng, PACK[encoding](body))
        if rng.random() < 0.2:
            headers["accept_encoding"] = rng.choice(["gzip", "deflate;q=x", ";q=", "*", "gzip;q=0.1"])
        reply = client.infer(name, body, **headers)
        statuses.add(reply.status)
        if reply.status == 200:
            read(reply)
        else:
            assert reply.status < 500, (name, body, headers, reply)
            assert reply.error
    assert statuses >= {200, 400}


# A body that is one tensor


@pytest.mark.parametrize(
    ("model", "body", "shape", "got"),
    [
        ("digits", packed([1, 2, 3], "float32"), [1, 3], packed([1, 2, 3], "float32")),
        ("same_INT16", packed([1, 2, 3], "int16"), [1, 3], packed([1, 2, 3], "int16")),
        ("same_BYTES", packed(["grün"], "object"), [1, 1], packed(["grün"], "object")),
        ("matrix", packed([1, 2, 3, 4, 5, 6], "float32"), [3, 2], packed([1, 4, 2, 5, 3, 6], "float32")),
        ("scalar_FP64", packed([0.1], "float64"), [], packed([0.1], "float64")),
    ],
)
def test_a_body_without_json_is_the_only_input(client, model, body, shape, got):
    said, blob = read(client.infer(model, body, inference_header_content_length="0"))
    assert said["outputs"][0]["shape"] == shape
    assert blob == got


@pytest.mark.parametrize(
    ("model", "size", "reason"),
    [
        ("digits", 11, "takes 12 bytes of binary data, got 11"),
        ("digits", 24, "takes 12 bytes of binary data, got 24"),
        ("same_INT16", 3, "takes 2 bytes of binary data, got 3"),
        ("two", 16, "for models with one input; model 'two' has 2"),
        ("constant", 16, "for models with one input; model 'constant' has 0"),
        ("sum", 16, "expected sizes of 0 or more, got [-1, -1]"),
        ("same_BYTES", 3, "expected 1 strings"),
    ],
)
def test_a_body_without_json_that_does_not_fit_is_refused(client, model, size, reason):
    reply = client.infer(model, bytes(size), inference_header_content_length="0")
    assert (reply.status, reason in reply.error) == (400, True), reply.error
