"""Whether requests may be joined: models whose answers depend on the batch are found, and others are not accused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from serving import Client, write

from lamella_onnx.seal import PROOF
from lamella_serve.model import ServedModel, Settings


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def whole(*shape):
    return np.random.default_rng(0).integers(0, 255, shape).astype("uint8")


ROW_BY_ROW = {
    "perceptron": (
        "(float[N,8] x) => (float[N,4] y) { h = MatMul(x, a)  r = Relu(h)  z = MatMul(r, b)  y = Softmax(z) }",
        {"a": normal(8, 16), "b": normal(16, 4)},
    ),
    "first axis without a name": ("(float[?,8] x) => (float[?,4] y) { y = MatMul(x, a) }", {"a": normal(8, 4)}),
    "any number of axes": ("(float[] x) => (float[] y) { y = Relu(x) }", {}),
    "convolution": (
        "(float[N,1,8,8] x) => (float[N,3] y) { c = Conv<pads=[1,1,1,1]>(x, k)  r = Relu(c) "
        "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)  f = Flatten(p)  y = MatMul(f, a) }",
        {"k": normal(4, 1, 3, 3), "a": normal(64, 3)},
    ),
    "batch normalization as trained": (
        "(float[N,3,4,4] x) => (float[N,3,4,4] y) { y = BatchNormalization(x, s, s, s, v) }",
        {"s": normal(3), "v": normal(3) ** 2},
    ),
    "layer normalization": (
        "(float[N,T,6] x) => (float[N,T,6] y) { y = LayerNormalization(x, s) }",
        {"s": normal(6)},
    ),
    "embedding": (
        "(int64[N,T] x) => (float[N,4] y) <int64[1] one = {1}> { e = Gather(t, x) y = ReduceMean<keepdims=0>(e, one) }",
        {"t": normal(30, 4)},  # trial values of 0 to 255 are too large for it
    ),
    "recurrent network over the second axis": (
        "(float[N,T,3] x) => (float[N,5] y) <int64[1] zero = {0}> { t = Transpose<perm=[1,0,2]>(x) "
        "s, h = LSTM<hidden_size=5>(t, w, r)  y = Squeeze(h, zero) }",
        {"w": normal(1, 20, 3), "r": normal(1, 20, 5)},
    ),
    "attention": (
        "(float[N,T,8] x) => (float[N,T,8] y) { q = MatMul(x, a)  k = Transpose<perm=[0,2,1]>(x)  s = MatMul(q, k) "
        "p = Softmax(s)  y = MatMul(p, x) }",
        {"a": normal(8, 8)},
    ),
    "images of any size": (
        '(float[N,1,H,W] x) => (float[N,1,P,Q] y) <float[4] s = {1, 1, 2, 2}> { y = Resize<mode="linear">(x, , s) }',
        {},
    ),
    "sum along a row": ("(float[N,T] x) => (float[N,T] y) <int64 one = {1}> { y = CumSum(x, one) }", {}),
    "places of the largest": (
        "(float[N,8] x) => (float[N,3] v, int64[N,3] i, int64[N] y) <int64[1] k = {3}> { h = MatMul(x, a) "
        "v, i = TopK(h, k)  y = ArgMax<axis=1, keepdims=0>(h) }",
        {"a": normal(8, 10)},
    ),
    "quantized by fixed scales": (
        "(float[N,8] x) => (float[N,4] y) <float s = {0.05}, uint8 z = {128}> { q = QuantizeLinear(x, s, z) "
        "m = MatMulInteger(q, w, z)  f = Cast<to=1>(m)  y = Mul(f, s) }",
        {"w": whole(8, 4)},
    ),
    "lengths that mask rows": (
        "(float[N,T] x, int64[N] lens) => (float[N,T] y) <int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}> "
        "{ s = Shape(x)  t = Gather(s, one)  r = Range(zero, t, one)  u = Unsqueeze(lens, axis)  m = Less(r, u) "
        "z = Cast<to=1>(m)  y = Mul(x, z) }",
        {},
    ),
    "several kinds of inputs": (
        "(float[N,2] a, int64[N] b, bool[N,1] c) => (float[N,2] s, int64[N] t) "
        "{ n = Neg(a)  s = Where(c, a, n)  t = Add(b, b) }",
        {},
    ),
    "strings": (
        '(string[N] x) => (bool[N] y, string[N] z) { y = RegexFullMatch<pattern="[a-z]+">(x)  z = StringConcat(x, x) }',
        {},
    ),
    "values that are not finite": (
        "(float[N,5] x) => (float[N,5] y, float[N,5] z) { y = Log(x)  z = Exp(x) }",
        {},
    ),
    "half precision": (
        "(float16[N,8] x) => (float16[N,4] y) { y = MatMul(x, a) }",
        {"a": normal(8, 4).astype("float16")},
    ),
    "double precision": ("(double[N,8] x) => (double[N,8] y) { y = Tanh(x) }", {}),
    "bfloat16": ("(bfloat16[N,8] x) => (float[N,8] y) { y = Cast<to=1>(x) }", {}),
}

ON_THE_BATCH = {
    "softmax over the rows": ("(float[N,4] x) => (float[N,4] y) { y = Softmax<axis=0>(x) }", {}, "depend"),
    "softmax of scalars": ("(float[N] x) => (float[N] y) { y = Softmax<axis=0>(x) }", {}, "depend"),
    "sum along the rows": ("(float[N,4] x) => (float[N,4] y) <int64 a = {0}> { y = CumSum(x, a) }", {}, "depend"),
    "recurrent network over the first axis": (
        "(float[T,N,3] x) => (float[T,N,5] y) <int64[1] one = {1}> { s, h = LSTM<hidden_size=5>(x, w, r) "
        "y = Squeeze(s, one) }",
        {"w": normal(1, 20, 3), "r": normal(1, 20, 5)},
        "depend",
    ),
    "scaled by the loudest": ("(float[N,4] x) => (float[N,4] y) { m = ReduceMax(x)  y = Sub(x, m) }", {}, "depend"),
    "largest of whole numbers": ("(int64[N,4] x) => (int64[N,4] y) { m = ReduceMax(x)  y = Sub(x, m) }", {}, "depend"),
    "any of booleans": (
        "(bool[N] x) => (bool[N] y) { i = Cast<to=6>(x)  m = ReduceMax(i)  b = Cast<to=9>(m)  y = Or(x, b) }",
        {},
        "depend",
    ),
    "pixels by the brightest of the batch": (
        "(uint8[N,3,8,8] x) => (float[N,3] y) <int64[2] a = {2, 3}> { f = Cast<to=1>(x)  m = ReduceMax<keepdims=0>(f) "
        "d = Div(f, m)  y = ReduceMean<keepdims=0>(d, a) }",
        {},
        "depend",
    ),
    "sound of whole numbers by the loudest": (
        "(int16[N,400] x) => (float[N,400] y) { f = Cast<to=1>(x)  a = Abs(f)  m = ReduceMax<keepdims=0>(a) "
        "y = Div(f, m) }",
        {},
        "depend",
    ),
    "texts cut to the longest mask": (
        "(int64[N,T] ids, int64[N,T] mask) => (float[N,4] y) <int64[1] zero = {0}, int64[1] one = {1}> "
        "{ b = Cast<to=9>(mask)  i = Cast<to=7>(b)  n = ReduceSum<keepdims=0>(i, one)  m = ReduceMax(n) "
        "c = Slice(ids, zero, m, one)  e = Gather(w, c)  y = ReduceMean<keepdims=0>(e, one) }",
        {"w": normal(300, 4)},
        "depend",
    ),
    "until the last row ends": (
        "(int32[N,16] x) => (int32[N,L] y) <int64[1] zero = {0}, int64[1] one = {1}, int32 lo = {1}, int32 hi = {16}> "
        "{ r = ReduceMax<keepdims=0>(x, one)  c = Clip(r, lo, hi)  m = ReduceMax(c)  n = Cast<to=7>(m) "
        "y = Slice(x, zero, n, one) }",
        {},
        "changes its shape",
    ),
    "any of many booleans": (
        "(bool[N,32] x) => (float[N,32] y) { f = Cast<to=1>(x)  m = ReduceMax<keepdims=0>(f)  y = Add(f, m) }",
        {},
        "depend",
    ),
    "scores beside large boxes, by the best score": (
        "(float[N,8] x) => (float[N,16] y) <float k = {1280.0}> { s = Sigmoid(x)  b = Mul(s, k) "
        "m = ReduceMax<keepdims=0>(s)  p = Div(s, m)  y = Concat<axis=1>(b, p) }",
        {},
        "depend",
    ),
    "only where values are large": (
        "(float[N,8] x) => (float[N,8] y, float[N,8] z) <float t = {100000.0}, float one = {1.0}> "
        "{ y = Identity(x)  u = Sub(x, t)  r = Relu(u)  m = ReduceMax<keepdims=0>(r)  n = Add(m, one)  z = Div(r, n) }",
        {},
        "depend",
    ),
    "NaN of one row goes to all": (
        "(float[N,8] x) => (float[N,8] y) <int64[1] a = {1}> { n = LayerNormalization(x, w) "
        "m = ReduceMax<keepdims=0>(n)  d = Sub(n, m)  e = Exp(d)  s = ReduceSum(e, a)  y = Div(e, s) }",
        {"w": np.ones(8, "float32")},
        "depend",
    ),
    "the place of a row from the sixth on": (
        "(float[N,4] x) => (float[N,4] y) <int64 zero = {0}, int64 one = {1}, int64 five = {5}, int64[1] a = {1}> "
        "{ n = Shape<start=0, end=1>(x)  m = Squeeze(n)  r = Range(zero, m, one)  q = Sub(r, five)  f = Cast<to=1>(q) "
        "w = Relu(f)  u = Unsqueeze(w, a)  y = Add(x, u) }",
        {},
        "depend",
    ),
    "quantized by the batch": (
        "(float[N,8] x) => (float[N,4] y) { q, s, z = DynamicQuantizeLinear(x)  m = MatMulInteger(q, w, z) "
        "f = Cast<to=1>(m)  y = Mul(f, s) }",
        {"w": whole(8, 4)},
        "depend",
    ),
    "normalized by the batch": (
        "(float[N,3] x) => (float[N,3] y) <int64[1] a = {0}> { m = ReduceMean(x, a)  y = Sub(x, m) }",
        {},
        "depend",
    ),
    "strings padded to the most words": (
        '(string[N] x) => (string[N,P] y, int64[N] n) { y, n = StringSplit<delimiter=" ">(x) }',
        {},
        "changes its shape",
    ),
    "padded to the longest": (
        "(int64[N] lens) => (bool[N,T] y) <int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}> "
        "{ m = ReduceMax<keepdims=0>(lens)  r = Range(zero, m, one)  u = Unsqueeze(lens, axis)  y = Less(r, u) }",
        {},
        "changes its shape",
    ),
    "cut to the longest": (
        "(float[N,T] x, int64[N] lens) => (float[N,P] y) <int64[1] zero = {0}, int64[1] one = {1}> "
        "{ m = ReduceMax(lens)  y = Slice(x, zero, m, one) }",
        {},
        "changes its shape",
    ),
    "divided by the longest": (
        "(float[N,T] x, int32[N] lens) => (float[N,T] y) { m = ReduceMax(lens)  f = Cast<to=1>(m)  y = Div(x, f) }",
        {},
        "depend",
    ),
    "sorted rows": (
        "(float[N,2] x) => (float[N,2] y) { n = Shape<start=0, end=1>(x)  y, i = TopK<axis=0>(x, n) }",
        {},
        "depend",
    ),
    "rows in reverse": (
        "(float[N,2] x) => (float[N,2] y) <int64[1] last = {-1}, int64[1] end = {-99}, int64[1] axis = {0}> "
        "{ y = Slice(x, last, end, axis, last) }",
        {},
        "depend",
    ),
    "the place of a row": (
        "(float[N,2] x) => (float[N,2] y) <int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}> "
        "{ n = Shape<start=0, end=1>(x)  m = Squeeze(n)  r = Range(zero, m, one)  f = Cast<to=1>(r) "
        "u = Unsqueeze(f, axis)  y = Add(x, u) }",
        {},
        "depend",
    ),
    "the number of rows": (
        "(float[N,4] x) => (float[N,4] y) <int64 four = {4}> { n = Shape<start=0, end=1>(x)  m = Squeeze(n) "
        "c = Greater(m, four)  y = If(c) <then_branch = t () => (float[N,4] a) { a = Neg(x) }, "
        "else_branch = e () => (float[N,4] b) { b = Identity(x) }> }",
        {},
        "depend",
    ),
    "normalized in half precision": (
        "(float16[N,3] x) => (float16[N,3] y) <int64[1] a = {0}> { m = ReduceMean(x, a)  y = Sub(x, m) }",
        {},
        "depend",
    ),
    "normalized in double precision": (
        "(double[N,3] x) => (double[N,3] y) <int64[1] a = {0}> { m = ReduceMean(x, a)  y = Sub(x, m) }",
        {},
        "depend",
    ),
    "normalized in bfloat16": (
        "(bfloat16[N,3] x) => (bfloat16[N,3] y) <int64[1] a = {0}> { f = Cast<to=1>(x)  m = ReduceMean(f, a) "
        "d = Sub(f, m)  y = Cast<to=16>(d) }",
        {},
        "depend",
    ),
    "each row with each": (
        "(float[N,4] x) => (float[N,M] y) { t = Transpose(x)  y = MatMul(x, t) }",
        {},
        "changes its shape",
    ),
    "random numbers": (
        "(float[N,4] x) => (float[N,4] y) { r = RandomNormalLike(x)  y = Add(x, r) }",
        {},
        "equal requests get different answers",
    ),
    "random numbers from a seed": (
        "(float[N,4] x) => (float[N,4] y) { r = RandomNormalLike<seed=1.0>(x)  y = Add(x, r) }",
        {},
        "equal requests get different answers",
    ),
    "places that are not 0": (
        "(float[N,2] x) => (int64[D,K] y) { y = NonZero(x) }",
        {},
        "of 1 row has the shape [2, 2]",
    ),
    "distinct rows": ("(int64[N] x) => (int64[K] y) { y = Unique(x) }", {}, "of 6 rows has the shape"),
    "one row is none": ("(float[N,1,M] x) => (float[N,M] y) { y = Squeeze(x) }", {}, "of 1 row has the shape [16]"),
    "all rows in one": (
        "(float[N,4] x) => (float[M,K] y) { y = Flatten<axis=0>(x) }",
        {},
        "of 6 rows has the shape [1, 24]",
    ),
    "each row twice": (
        "(float[N,4] x) => (float[M,4] y) { y = Concat<axis=0>(x, x) }",
        {},
        "of 1 row has the shape [2, 4]",
    ),
    "the shape": ("(float[N,4] x) => (int64[M] y) { y = Shape(x) }", {}, "of 1 row has the shape [2]"),
    "rows on the second axis": (
        "(float[7,N,3] x) => (float[7,N,3] y) { y = Relu(x) }",
        {},
        "input 'x' has a first axis of",
    ),
    "a fixed number of rows": (
        "(float[3,4] x) => (float[3,4] y) { y = Relu(x) }",
        {},
        "input 'x' has a first axis of",
    ),
    "a scalar beside the rows": (
        "(float[N,4] x, float s) => (float[N,4] y) { y = Mul(x, s) }",
        {},
        "input 's' has no axes",
    ),
    "a sum over all": (
        "(float[N,4] x) => (float[N,4] y, float s) { y = Relu(x)  s = ReduceSum<keepdims=0>(x) }",
        {},
        "output 's' has no axes",
    ),
    "nothing that shows": (
        "(float[N,4] x) => (float[N,4] y) <float zero = {0}> { y = Mul(x, zero) }",
        {},
        "is the same for all inputs that were tried",
    ),
    "nothing": ("() => (float[N] y) <float[2] c = {1, 2}> { y = Identity(c) }", {}, "no inputs"),
}


def examined(path, graph, weights, **options):
    return ServedModel("model", 1, write(path / "model.onnx", f"g {graph}", weights), Settings(), **options).verdict


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_models_whose_rows_are_their_own_are_joined(tmp_path, name):
    verdict = examined(tmp_path, *ROW_BY_ROW[name])
    assert verdict.joined, verdict.reason
    assert verdict.reason == (
        "answers do not depend on the batch: 6 rows of scales 0 to 1000 gave the same alone and side by side"
    )


@pytest.mark.parametrize("name", ON_THE_BATCH)
def test_models_whose_answers_depend_on_the_batch_are_not_joined(tmp_path, name):
    graph, weights, reason = ON_THE_BATCH[name]
    verdict = examined(tmp_path, graph, weights)
    assert not verdict.joined
    assert reason in verdict.reason


def test_a_model_that_no_trial_input_fits_is_not_joined(tmp_path):
    graph = "(float[N,K] x) => (float[N,7,11] y) { s = Constant<value_ints=[-1, 7, 11]>()  y = Reshape(x, s) }"
    verdict = examined(tmp_path, graph, {})
    assert (verdict.joined, "not checked, since no inputs were found" in verdict.reason) == (False, True)
    assert "Reshape" in verdict.reason


def test_a_model_that_fails_for_several_rows_is_not_joined(tmp_path):
    graph = "(float[N,8] x) => (float[N,8] y) { s = Constant<value_ints=[1, 8]>()  y = Reshape(x, s) }"
    verdict = examined(tmp_path, graph, {})
    assert (verdict.joined, "rows that work alone fail together" in verdict.reason) == (False, True)


def test_a_configuration_may_say_that_requests_are_not_joined(tmp_path):
    verdict = examined(tmp_path, *ROW_BY_ROW["perceptron"], max_batch_size=0)
    assert (verdict.joined, verdict.reason) == (False, "its config.pbtxt says max_batch_size: 0")


# Inputs to try


@pytest.mark.parametrize("size", [16, 32, 48, 64, 224, 512, 1024, 16000, 8])
def test_usual_sizes_are_tried(tmp_path, size):
    path = write(tmp_path / "model.onnx", "g (float[N,K] x) => (float[N,K] y) { y = Add(x, w) }", {"w": normal(size)})
    model = ServedModel("model", 1, path, Settings())
    assert model.example["x"].shape == (1, size)
    assert model.verdict.joined


PLACES = """g (int64[N,2] i, float[N,2] x) => (float[N,2] y) <int64 n = {500}>
  { k = Sub(i, n)  t = Gather(w, k)  y = Add(t, x) }"""


def test_values_are_tried_within_the_limits_of_the_proof(tmp_path):
    limits = [{"name": "i", "low": [500, 505], "high": [505, 510]}, {"name": "x", "low": [-3, -3], "high": [1, -2]}]
    path = write(tmp_path / "model.onnx", PLACES, {"w": normal(10)}, **{PROOF: json.dumps({"inputs": limits})})
    client = Client(path)
    about = client.get("/about/model").json
    assert about["batching"]["joined"]
    assert [(given["low"], given["high"]) for given in about["inputs"]] == [(500, 510), (-3, 1)]
    (i, j), (x, y) = (given["data"] for given in about["example"]["inputs"])
    assert 500 <= i < 505 <= j < 510
    assert -3 <= x < 1
    assert -3 <= y < -2
    assert client.infer("model", about["example"]).status == 200


@pytest.mark.parametrize(
    "proof",
    [
        "{",
        "[]",
        "[" * 100_000,
        {},
        {"inputs": 5},
        {"inputs": [5]},
        {"inputs": [{"name": "i"}]},
        {"inputs": [{"name": "i", "low": "a", "high": 510}]},
        {"inputs": [{"name": "i", "low": 510, "high": 500}]},
        {"inputs": [{"name": "i", "low": [500], "high": [500, 510]}]},
        {"inputs": [{"name": "i", "low": [500] * 3, "high": [510] * 3}]},
        {"inputs": [{"name": "i", "low": [[500]], "high": [[510]]}]},
        {"inputs": [{"name": "i", "low": None, "high": None}]},
        {"inputs": [{"name": "z", "low": 500, "high": 510}]},
    ],
    ids=lambda proof: str(proof)[:40],
)
def test_a_proof_that_says_nothing_of_the_inputs_is_passed_over(tmp_path, proof):
    said = proof if isinstance(proof, str) else json.dumps(proof)
    path = write(tmp_path / "model.onnx", PLACES, {"w": normal(10)}, **{PROOF: said})
    verdict = ServedModel("model", 1, path, Settings()).verdict
    assert "no inputs were found that the model answers" in verdict.reason
