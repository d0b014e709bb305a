"""Export and verify: the file an expert would write, its proof, and every refusal."""

from __future__ import annotations

import base64
import copy
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from forging import forge

import lamella as lm
import lamella_onnx
from lamella import cli
from lamella_layers import (
    LSTM,
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling1D,
    GroupNormalization,
    LayerNormalization,
    MaxPooling2D,
    Normalization,
    PositionEmbedding,
    Rescaling,
)
from lamella_onnx import ParityError, ParityReport, TraceError, export, verify
from lamella_onnx.models import trace_model, trace_step
from lamella_onnx.parity import compare
from lamella_onnx.probes import PLACES, ranges
from lamella_onnx.rounding import Rounding, near
from lamella_onnx.runtime import installed, resolve


def cnn(**options):
    layers = [
        Conv2D(4, 3, padding="same", activation="relu"),
        MaxPooling2D(2),
        Conv2D(5, 3),
        Activation("relu"),
        Flatten(),
        Dropout(0.5),
        Dense(3),
    ]
    return lm.Sequential(layers, input_shape=(1, 8, 8), seed=1, **options)


def nodes(path):
    return [(node.op_type, node.name) for node in onnx.load(path).graph.node]


def ort(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {given.name: x for given, x in zip(session.get_inputs(), inputs, strict=True)})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


# The file


@pytest.mark.smoke
def test_a_cnn_is_what_an_expert_would_write(path):
    model = cnn()
    report = export(model, path, append=Activation("softmax"))
    assert nodes(path) == [
        ("Conv", "conv2d_1"),
        ("Relu", "conv2d_1/activation"),
        ("MaxPool", "max_pooling2d_1"),
        ("Conv", "conv2d_2"),
        ("Relu", "activation_1"),
        ("Reshape", "flatten_1"),
        ("MatMul", "dense_1"),
        ("Add", "dense_1/Add"),
        ("Softmax", "activation_2"),
    ]
    proto = onnx.load(path)
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in proto.graph.initializer}
    assert set(arrays) == {*model.parameters, "constant_0_20"}
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(arrays[name], value)
    values = [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in proto.graph.input]
    assert values == [("input_1", ["N", 1, 8, 8])]
    assert [v.name for v in proto.graph.output] == ["activation_2"]
    assert "conv2d_2" in {v.name for v in proto.graph.value_info}
    assert (proto.ir_version, proto.opset_import[0].version, proto.producer_name) == (10, 21, "lamella")
    assert proto.producer_version == lm.__version__
    assert [row.data for row in report.agreements] == ["batch of 1", "batch of 2", "batch of 7"]
    assert report.agrees
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype("float32")
    logits = model.predict(x)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ort(path, x)[0], expected, atol=1e-6)


@pytest.mark.parametrize("opset", sorted({18, 19, 20, 21, installed().opset}))
def test_every_opset_agrees(opset, path):
    model = cnn()
    report = export(model, path, opset=opset)
    assert (report.opset, onnx.load(path).opset_import[0].version) == (opset, opset)
    assert verify(path, model).agrees


class Mixed(lm.Layer):
    """Two inputs, integers among them, and three outputs, one of integers, one used by nobody."""

    def build(self, declare, x, labels):
        declare.parameter("table", (5, x.shape[-1]), "glorot_uniform", fan_in=5, fan_out=5)
        declare.state("shift", (x.shape[-1],), "ones")
        return x, labels.replace(low=None, high=None), x

    def forward_pass(self, ctx, x, labels):
        y = x + lm.primitives.take_rows(ctx, ctx.params.table, labels) - ctx.state.shift
        return y, ctx.xp.argmax(y, axis=-1) + 0 * labels, -y


def test_several_inputs_and_outputs_symbolic_axes_and_sharing(path):
    x, labels = lm.Input(("T", 3), name="signal"), lm.Input(("T",), "int64", name="label")
    labels.spec = labels.spec.replace(low=0, high=5)
    dense = Dense(3).named("shared")
    y, best, _ = Mixed()(dense(dense(x)), labels)
    model = lm.Model([x, labels], [y, best])
    report = export(model, path, metadata={"author": "me"})
    assert {row.rule for row in report.agreements} == {"1e-05 of the row's scale", "equal"}
    proto = onnx.load(path)
    assert [v.name for v in proto.graph.input] == ["signal", "label"]
    assert [array.name for array in proto.graph.initializer][:2] == ["shared.kernel", "shared.bias"]
    assert [node.name for node in proto.graph.node][:4] == ["shared", "shared/Add", "shared#2", "shared#2/Add"]
    assert {prop.key: prop.value for prop in proto.metadata_props}["author"] == "me"
    assert [d.dim_param for d in proto.graph.input[1].type.tensor_type.shape.dim] == ["N", "T"]
    signal, label = np.ones((4, 6, 3), "float32"), np.arange(24).reshape(4, 6) % 5
    for got, want in zip(ort(path, signal, label), model.predict((signal, label)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert verify(path, model).agrees


def test_samples_set_the_range_and_are_compared(path):
    model = lm.Sequential([Dense(16, activation="tanh"), Dense(4)], input_shape=(8,))
    samples = np.random.default_rng(0).uniform(0, 255, (50, 8)).astype("float32")
    report = export(model, path, samples=samples)
    assert [row.data for row in report.agreements][-1] == "50 samples"
    (given,) = proof_of(path)["inputs"]
    np.testing.assert_array_equal([given["low"], given["high"]], [samples.min(axis=0), samples.max(axis=0)])
    with pytest.raises(lm.DataError, match=r"expected \(N, 8\)"):
        export(model, path, samples=samples[:, :3])


def test_ranges_of_inputs():
    def range_of(low=None, high=None, dtype=None, samples=None):
        x = lm.Input((3,), dtype)
        x.spec = x.spec.replace(low=low, high=high)
        samples = None if samples is None else (np.array(samples, x.spec.dtype),)
        (row,) = ranges(lm.Model(x, Flatten()(x)), samples)
        return row.low, row.high

    assert range_of() == (None, None)  # drawn from [-1, 1), in the batch of 7 from [-10, 10)
    assert range_of(high=-3) == (-4.0, -3.0)
    assert range_of(low=5) == (5.0, 6.0)
    assert range_of(samples=[[1, 2, 4], [1, 0, 8]]) == ([1.0, 0.0, 4.0], [1.0, 2.0, 8.0])  # the 1 stays what it is
    assert range_of(samples=[[1, 2, 4]]) == ([1.0, 2.0, 4.0], [2.0, 3.0, 5.0])
    assert range_of(high=2, samples=[[1, 2, 4]]) == ([0.0, 1.0, 2.0], [1.0, 2.0, 2.0])
    assert range_of(low=0, high=9, samples=[[1, 1, 1], [3, 3, 3]]) == (1.0, 3.0)
    assert range_of(dtype="int8") == (0.0, 2.0)
    assert range_of(dtype="int8", samples=[[127, 0, -128], [127, 3, 4]]) == ([127.0, 0.0, -128.0], [128.0, 4.0, 5.0])
    assert range_of(samples=[[np.nan, 0, 1]]) == (None, None)


def test_places_share_a_range_where_their_axis_has_no_size_or_is_too_long():
    def shape_of(*shape):
        x = lm.Input(shape)
        sizes = [5 if size == "T" else size for size in shape]
        (row,) = ranges(lm.Model(x, Activation("relu")(x)), (np.random.default_rng(0).random((2, *sizes), "float32"),))
        return np.shape(row.low)

    assert shape_of("T", 3) == (1, 3)
    assert shape_of("T") == ()
    assert shape_of(2, 8, 8) == (2, 8, 8)
    assert shape_of(3, 64, 32) == (3, 1, 32)  # channels and columns
    assert shape_of(PLACES, 4) == (1, 4)
    assert shape_of(PLACES + 1) == ()


def test_columns_of_a_table_keep_their_scale_and_a_small_change_is_found(path):
    rng = np.random.default_rng(0)
    x = np.stack([rng.integers(0, 2, 99), rng.uniform(0, 1e6, 99)], axis=1)
    model = lm.Sequential([Normalization().adapted(x), Dense(1)], input_shape=(2,))
    report = export(model, path, samples=x)
    assert max(row.allowed for row in report.agreements) < 1e-4
    change(path, lambda proto: add_to(proto, "dense_1.bias", 0.01))
    with pytest.raises(ParityError, match=r"on the proof differs by 0\.01"):
        verify(path)


# Sizes that are not known


class Clock(lm.Layer):
    """The time at the end of each sequence, for lengths of 1 to the longest."""

    def build(self, declare, x, length):
        return x.replace(shape=("N",))

    def forward_pass(self, ctx, x, length):
        xp = ctx.xp
        times = xp.arange(x.shape[1], dtype=x.dtype)
        return lm.primitives.take_rows(ctx, times, length - 1) + 0.0 * xp.sum(x, axis=(1, 2))


SERIES = (np.random.default_rng(0).normal(size=(5, 30, 2)), np.array([30, 3, 7, 20, 1]))


@pytest.mark.parametrize("layer", [LSTM(3, return_sequences=False), Clock()])
@pytest.mark.parametrize(
    ("limits", "samples"), [((1, 31), None), ((1, 31), SERIES), ((None, None), SERIES), ((1, 10_001), SERIES)]
)
def test_lengths_fit_into_a_time_of_unknown_size(layer, limits, samples, path):
    x, length = lm.Input(("T", 2)), lm.Input((), "int64", low=limits[0], high=limits[1])
    model = lm.Model([x, length], layer(x, length))
    export(model, path, samples=samples)
    proof = proof_of(path)
    assert proof["sizes"] == {"1": {"T": 30}, "2": {"T": 31}, "7": {"T": 30}}
    assert (proof["inputs"][1]["low"], proof["inputs"][1]["high"]) == (1.0, 31.0)
    assert verify(path, model).agrees


@pytest.mark.parametrize(("limits", "drawn"), [((None, None), [1.0, 2.0]), ((1, 10_001), [1.0, 7.0])])
def test_lengths_that_the_engine_refuses_are_drawn_from_what_fits(limits, drawn, path):
    x, length = lm.Input(("T", 2)), lm.Input((), "int64", low=limits[0], high=limits[1])
    model = lm.Model([x, length], Clock()(x, length))
    export(model, path)
    proof = proof_of(path)
    assert proof["sizes"] == {"1": {"T": 6}, "2": {"T": 7}, "7": {"T": 6}}
    assert [proof["inputs"][1][side] for side in ("low", "high")] == drawn
    assert verify(path, model).agrees


@pytest.mark.parametrize(
    ("longest", "samples", "sizes"),
    [(6, None, (4, 3)), (1, None, (1, 1)), (7, None, (6, 7)), (5, np.zeros((2, 5, 3)), (5, 5))],
)
def test_sizes_that_the_engine_refuses_are_not_tried(longest, samples, sizes, path):
    model = lm.Sequential([PositionEmbedding(longest), Dense(2)], input_shape=("T", 3))
    export(model, path, samples=samples)
    assert proof_of(path)["sizes"] == {"1": {"T": sizes[0]}, "2": {"T": sizes[1]}, "7": {"T": sizes[0]}}
    assert verify(path, model).agrees


class Weekday(lm.Layer):
    def forward_pass(self, ctx, x):
        if ctx.xp.backend != "onnx":
            raise ValueError("not today")
        return x


def test_an_engine_that_refuses_all_that_is_drawn(path):
    words = r"is not written: the engine itself refuses all .*samples=.* first: weekday_1 .*not today"
    with pytest.raises(ParityError, match=f"(?s){words}"):
        export(lm.Sequential([Weekday()], input_shape=("T", 3)), path)
    assert not path.exists()


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 3e38), ("float64", 1.7e308)])
def test_samples_near_the_largest_number(dtype, largest, path):
    model = lm.Sequential([Activation("relu")], input_shape=(3,), dtype=dtype)
    assert export(model, path, samples=[[largest, -largest, 1.0]]).agrees


def test_float64_models(path):
    model = cnn(dtype="float64")
    assert export(model, path).max_error < 1e-12


def test_exports_of_equal_models_are_equal_files(path):
    export(cnn(), path)
    first = path.read_bytes()
    export(cnn(), path)
    assert path.read_bytes() == first


class Twice(lm.Layer):
    def build(self, declare, x):
        return x, x

    def forward_pass(self, ctx, x):
        return x, x


def test_append_leaves_the_model_alone_and_takes_several(path):
    model = lm.Sequential([Dense(3)], input_shape=(4,))
    model.parameters["dense_1.bias"] = [1.0, 2.0, 3.0]
    export(model, path, append=[Dense(2).named("head"), Activation("softmax")])
    assert [name for _, name in nodes(path)] == ["dense_1", "dense_1/Add", "head", "head/Add", "activation_1"]
    assert model.output_names == ("dense_1",)


def heads():
    x = lm.Input((4,))
    names = ("price", "sold", "kind")
    return lm.Model(x, [Dense(k).named(name)(x) for k, name in enumerate(names, 1)])


def test_layers_may_be_appended_to_some_outputs_and_names_stay(path):
    model = heads()
    export(model, path, append={"kind": [Dense(2), Activation("softmax")], "sold": Activation("sigmoid")})
    assert [output.name for output in onnx.load(path).graph.output] == ["price", "sold", "kind"]
    x = np.ones((5, 4), "float32")
    price, sold, kind = ort(path, x)
    np.testing.assert_allclose(price, model.predict(x)[0], atol=1e-6)
    np.testing.assert_allclose(sold, 1 / (1 + np.exp(-model.predict(x)[1])), atol=1e-6)
    np.testing.assert_allclose(kind.sum(axis=1), 1.0, atol=1e-6)
    assert verify(path).agrees


def test_an_appended_model_keeps_the_names_of_its_outputs(path):
    price, sold, kind = (lm.Input((size,)) for size in (1, 2, 3))
    head = lm.Model([price, sold, kind], [price, Activation("sigmoid").named("sold")(sold), Dense(2).named("k")(kind)])
    report = export(heads(), path, append=head)
    assert [output.name for output in onnx.load(path).graph.output] == ["price", "sold", "k"]
    assert {row.output for row in report.agreements} == {"price", "sold", "k"}
    assert verify(path).agrees


@pytest.mark.parametrize(
    ("append", "words"),
    [
        (
            Activation("tanh"),
            r"can't take all 3 outputs, price, sold, kind, at once.* append=\{'kind': Activation\('tanh",
        ),
        ({"sould": Activation("tanh")}, r"unknown output 'sould'; expected price, sold, kind\. Did you mean 'sold'\?"),
        ({"sold": LSTM}, r"append: expected a layer or several, got .*; did you mean LSTM\(\.\.\.\)\?"),
        ({"sold": Twice()}, "append: expected one output in place of 'sold', got 2"),
    ],
)
def test_what_can_not_be_appended_to_several_outputs(append, words, path):
    with pytest.raises(lm.ArgumentError, match=words):
        export(heads(), path, append=append)


def test_models_may_share_layers_with_the_appended_one_only_if_they_share_values(path):
    layer = Dense(4)
    model, other = (lm.Sequential([layer], input_shape=4, seed=seed) for seed in (1, 2))
    with pytest.raises(lm.ArgumentError, match="share dense_1, one layer object, which has other values"):
        export(model, path, append=other)
    export(model, path, append=copy.deepcopy(other))
    x = np.ones((3, 4), "float32")
    np.testing.assert_allclose(ort(path, x)[0], other.predict(model.predict(x)), atol=1e-6)
    export(lm.Sequential([Rescaling(0.5)], input_shape=4), path, append=other)  # which has nothing to share
    np.testing.assert_allclose(ort(path, x)[0], other.predict(0.5 * x), atol=1e-6)


def test_a_model_may_be_appended(path):
    model = lm.Sequential([Dense(2)], input_shape=(4,))
    head = lm.Sequential([Dense(3), Activation("softmax")], input_shape=(2,))
    head.parameters["dense_1.bias"] = [1.0, 2.0, 3.0]
    export(model, path, append=head)
    x = np.ones((5, 4), "float32")
    np.testing.assert_allclose(ort(path, x)[0], head.predict(model.predict(x)), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "x"}, r"export: model: expected a lamella\.Model, got 'x'"),
        ({"model": Dense(3)}, r"got Dense\(3\); put it into lamella\.Sequential\(\[\.\.\.\], input_shape="),
        ({"append": "softmax"}, r"append: expected a layer or several, got 'softmax'; did you mean Activation\('softm"),
        ({"append": [Dense]}, r"append: .*; did you mean Dense\(\.\.\.\)\?"),
        ({"append": 5}, "append: expected a layer or several, got 5"),
        ({"metadata": ["a"]}, r"metadata: expected a dict of texts by name, got \['a'\]"),
        ({"metadata": {"a": "\ud800"}}, r"metadata: expected texts that UTF-8 can hold, .* got 'a': '\\ud800'"),
        ({"metadata": {"lamella.proof": "mine"}}, r"names starting with 'lamella\.' are taken"),
    ],
)
def test_arguments_of_the_wrong_kind(options, words, path):
    with pytest.raises(lm.ArgumentError, match=words):
        export(**{"model": cnn(), "path": path, **options})
    assert not path.exists()


def test_every_node_carries_the_name_of_its_layer(path):
    x = lm.Input(("T", 3))
    export(lm.Model(x, Dense(2)(PositionEmbedding(9)(x))), path)
    named = [(operator, name.partition("/")[0]) for operator, name in nodes(path)]
    assert named[-2:] == [("MatMul", "dense_1"), ("Add", "dense_1")]
    assert {name for _, name in named[:-2]} == {"position_embedding_1"}
    assert {"Shape", "Expand"} < {operator for operator, _ in named[:-2]}


def test_the_report_prints_as_a_table_and_stands_in_the_file(path):
    report = export(cnn(), path)
    assert isinstance(report, ParityReport)
    lines = str(report).splitlines()
    assert lines[0] == f"{path}: opset 21, IR 10"
    assert sum("agrees" in line and "batch of" in line for line in lines) == 3
    assert f"onnxruntime {onnxruntime.__version__}" in lines[-1]
    assert str(report).replace(str(path), "").isascii()  # a log or pipe may take nothing else
    stored = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["lamella.report"])
    assert stored["agreements"][0]["output"] == "dense_1"


# Refusals


@lm.primitive
def double(xp, x):
    return x * 2.0


class Double(lm.Layer):
    def backward_pass(self, ctx, dy):
        return dy * 2.0

    def forward_pass(self, ctx, x):
        return double(ctx, x)


WRONG = {
    "a factor": (lambda xp, x: xp.node("Mul", x, np.float32(2.01), shape=x.shape, dtype=x.dtype), "by 0.0"),
    "NaN": (lambda xp, x: xp.log(-xp.abs(x)), "NaN and infinity in the same places"),
    "an operator that is none": (lambda xp, x: xp.node("Doble", x, shape=x.shape, dtype=x.dtype), "not valid ONNX"),
    "a rank that is none": (
        lambda xp, x: xp.node("Unsqueeze", x, np.array([0]), shape=x.shape, dtype=x.dtype),
        "not valid ONNX: .*rank",
    ),
    "what onnxruntime lacks": (lambda xp, x: xp.node("Bernoulli", x, shape=x.shape, dtype=x.dtype), "NOT_IMPLEMENTED"),
}


def test_a_kernel_that_is_wrong_for_larger_numbers_is_caught(path, monkeypatch):
    wrong = lambda xp, x: xp.where(xp.abs(x) > 6.0, x * 2.1, x * 2.0)  # noqa: E731
    monkeypatch.setitem(double.kernels, "onnx", wrong)
    with pytest.raises(ParityError, match="twice .* on the batch of 7"):
        export(lm.Sequential([Double().named("twice")], input_shape=(4,)), path)
    with pytest.raises(lm.testing.ConformanceError, match="onnx: output 0 in inference, batch of 1, values around 30"):
        lm.testing.check_layer(Double(), lm.ArraySpec(("N", 4)))


def test_a_kernel_that_is_wrong_for_a_single_row_is_caught(monkeypatch):
    def squeezed(xp, x):  # all axes of size 1, and so a batch of 1 too
        return xp.node("Squeeze", xp.reshape(x * 2.0, (x.shape[0], 1, 4)), shape=x.shape, dtype=x.dtype)

    monkeypatch.setitem(double.kernels, "onnx", squeezed)
    with pytest.raises(lm.testing.ConformanceError, match="onnx: output 0 in inference, batch of 1"):
        lm.testing.check_layer(Double(), lm.ArraySpec(("N", 4)))


def test_onnxruntime_says_nothing_beside_our_own_error(path, monkeypatch, capfd):
    def beyond(xp, x):
        places = xp.astype(x * 0.0 + 99.0, xp.int64)
        return xp.node("Gather", np.zeros(3, "float32"), places, shape=x.shape, dtype=x.dtype)

    monkeypatch.setitem(double.kernels, "onnx", beyond)
    with pytest.raises(ParityError, match="can't run the graph on .*Name:'twice.* out of data bounds"):
        export(lm.Sequential([Double().named("twice")], input_shape=(4,)), path)
    assert capfd.readouterr() == ("", "")


def test_a_layer_that_is_no_pure_function_is_named(path):
    class Noisy(lm.Layer):
        def forward_pass(self, ctx, x):
            return x + float(np.random.default_rng().random())

    with pytest.raises(ParityError, match=r"noisy_1 \(Noisy\) gives something else each time on equal inputs"):
        export(lm.Sequential([Dense(3), Noisy()], input_shape=(4,)), path)


@pytest.mark.smoke
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_kernel_writes_nothing(fault, path, monkeypatch):
    kernel, words = WRONG[fault]
    monkeypatch.setitem(double.kernels, "onnx", kernel)
    path.write_bytes(b"what was there")
    model = lm.Sequential([Dense(3), Double().named("twice"), Dense(2)], input_shape=(4,))
    with pytest.raises(ParityError, match=f"(?s)is not written: .*{words}") as caught:
        export(model, path, opset=22)
    if fault in ("a factor", "NaN"):
        assert "twice (Double) is the first layer to differ, on the batch of 1" in str(caught.value)
        assert "onnxruntime gives" in str(caught.value)
        assert "Its operators: " in str(caught.value)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"what was there"


def wide(seed=0):
    return lm.Sequential([Dense(6000)], input_shape=(2,), seed=seed)  # its proof stands beside the file


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("old", [cnn, wide])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_write_leaves_what_was_there(old, failing, path, monkeypatch):
    export(old(), path)
    before, replace, count = files(path.parent), os.replace, itertools.count(1)

    def fail(*names):
        if next(count) == failing:
            raise OSError("disk full")
        replace(*names)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export(wide(seed=5), path)
    assert files(path.parent) == before
    assert verify(path).agrees


def test_a_failed_write_keeps_the_proof_that_it_shares_with_what_was_there(path, monkeypatch):
    export(wide(), path)
    before, replace = files(path.parent), os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) if str(b).endswith(".proof") else os.stat("/nowhere"))
    with pytest.raises(FileNotFoundError):
        export(wide(), path, metadata={"author": "me"})
    assert files(path.parent) == before


def test_a_new_file_takes_the_old_ones_proof_away(path):
    other = path.with_name("other.onnx")
    for target in (path, other):
        export(wide(), target)
    export(wide(seed=5), path)
    assert len(files(path.parent)) == 4
    assert verify(path).agrees
    export(cnn(), path)
    assert sorted(name.rpartition(".")[2] for name in files(path.parent)) == ["onnx", "onnx", "proof"]
    assert verify(path).agrees
    assert verify(other).agrees


class Odd(lm.Layer):
    def __init__(self, what):
        self.what = what

    def forward_pass(self, ctx, x):
        if self.what == "branch" and ctx.xp.sum(x) > 0:
            return x
        if self.what == "loop":
            return ctx.xp.stack([x[k, :] for k in range(x.shape[0])], axis=0)
        if self.what == "shape":
            return x[:, :1]
        return ctx.xp.asarray(np.asarray(x)) if self.what == "numpy" else None


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("branch", r"odd_1 \(Odd\): the value of <traced array"),
        ("loop", r"odd_1 \(Odd\): .*batch size is not known when a model is exported"),
        ("shape", r"odd_1 \(Odd\): build said \(N, 3\) float32, forward_pass gives \(N, 1\) float32"),
        ("numpy", r"odd_1 \(Odd\): .*can't become a number or a NumPy"),
        ("nothing", r"odd_1 \(Odd\).* returned None, which is no array"),
    ],
)
def test_what_cannot_be_traced_names_the_layer(what, words, path):
    with pytest.raises(TraceError, match=words):
        export(lm.Sequential([Odd(what)], input_shape=(3,)), path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"opset": 17}, "opset: expected 18 or newer, got 17"),
        ({"opset": "21"}, "opset: expected 18 or newer, got '21'"),
        ({"opset": 99}, rf"opset=99: onnxruntime=={onnxruntime.__version__} reads opsets 18 to"),
        ({"opset": 22, "target": "onnxruntime==1.20"}, r"onnxruntime==1\.20 reads opsets 18 to 21"),
        (
            {"target": "onnxruntime==1.2"},
            r"from 1\.14 to 1\.\d+, or None for the installed one, got 'onnxruntime==1\.2'",
        ),
        ({"target": "tensorrt"}, "expected 'onnxruntime==<version>'"),
    ],
)
def test_targets_out_of_reach(options, words, path):
    with pytest.raises(lm.ArgumentError, match=words):
        export(cnn(), path, **options)
    assert not path.exists()


def test_targets_choose_opset_and_ir(path):
    assert (resolve(None, "onnxruntime==1.16.3"), resolve(None, None), resolve(18, "onnxruntime==1.14")) == (19, 21, 18)
    report = export(cnn(), path, target="onnxruntime==1.17")
    assert (report.opset, report.ir) == (20, 9)


def test_the_rule():
    y = np.array([1.0, -3.0, np.inf], "float32")
    assert compare(y, y, y.astype("float64")) == (0.0, 1e-5 * 3, "1e-05 of the largest")
    off = y + np.array([1e-3, 0, 0], "float32")
    assert compare(off, y, y.astype("float64"))[0] > 5e-4
    error, allowed, rule = compare(off, y, y + 5e-4)
    assert error <= allowed
    assert rule == "4 x float32 rounding"
    far = np.array([0.0, 0.0, np.inf])  # what no rounding explains allows nothing
    assert compare(far.astype("float32"), y, far)[1:] == (1e-5 * 3, "1e-05 of the largest")
    assert compare(np.array([1.0, np.nan, np.inf], "float32"), y, y)[0] == np.inf
    assert compare(np.array([1.0, -3.0, -np.inf], "float32"), y, y)[0] == np.inf
    assert compare(np.array([1, 2]), np.array([1, 3]), np.array([1, 3]))[:2] == (1.0, 0.0)
    assert compare(y.astype("float64"), y, y)[0] == np.inf


def test_the_rule_for_each_row():
    def judged(got, e32, e64):
        return compare(
            *(np.array(values, kind) for values, kind in ((got, "f4"), (e32, "f4"), (e64, "f8"))), by_row=True
        )

    wild = [[1.0, 2.0], [1e6, 0.0], [0.5, -1.0]]
    assert judged(wild, wild, wild)[0] == 0.0
    off = [[1.0, 2.0], [1e6 + 5, 0.0], [0.5, -1.0]]
    assert judged(off, wild, wild) == (5.0, 1e-5 * 1e6, "1e-05 of the row's scale")
    error, allowed, rule = judged([[1.0, 2.0], [1e6, 0.0], [0.51, -1.0]], wild, wild)
    assert (round(error, 3), allowed, rule) == (0.01, 2e-5, "1e-05 of the row's scale")
    rounded = [[1.0, 2.0], [1e6 + 50, 0.0], [0.5, -1.0]]  # by 5e-5 of the largest: 1e-4 is explained where that is 1
    assert judged([[1.0, 2.0], [1e6, 0.0], [0.5001, -1.0]], wild, rounded)[2] == "4 x float32 rounding"
    error, allowed, _ = judged([[1.0, 2.0], [1e6, 0.0], [0.51, -1.0]], wild, rounded)
    assert error > 9 * allowed
    small = [[100.0], [0.01], [1e6]]  # what is small by chance is computed from numbers as large as the median row's
    assert judged([[100.0], [0.0108], [1e6]], small, small)[:2] == (pytest.approx(8e-4, rel=0.01), 1e-5 * 100)
    error, allowed, rule = judged([[100.0], [0.013], [1e6]], small, [[100.001], [0.01], [1e6]])
    assert (error, allowed, rule) == (pytest.approx(3e-3), pytest.approx(4e-3), "4 x float32 rounding")
    assert judged(np.zeros((2, 0)), np.zeros((2, 0)), np.zeros((2, 0)))[0] == 0.0
    two = [[1.0], [1.0]]
    assert judged([[1.003], [1.0]], two, [[1.0], [1.0009]])[:2] == (
        pytest.approx(3e-3, rel=0.01),
        pytest.approx(3.6e-3),
    )
    error, allowed, _ = judged([[1.003], [1.0]], two, [[1.002], [1.0009]])  # what the engine is off by is no rounding
    assert (error, allowed) == (pytest.approx(3e-3, rel=0.01), 1e-5)


def test_an_engine_that_is_inexact_itself_is_told(path):
    x = lm.Input((8, 100), low=1e4, high=1e4 + 1.0)
    far = np.random.default_rng(0).uniform(1e4, 1e4 + 1.0, (99, 8, 100))
    pooled = GlobalAveragePooling1D()(x)  # whose sums onnxruntime adds up in another order on every processor
    mean = lm.Model(x, pooled, seed=1).predict(far).mean(axis=0)
    model = lm.Model(x, BatchNormalization(epsilon=1e-8).named("norm")(pooled), seed=1)
    model.state["norm.mean"], model.state["norm.variance"] = mean, np.full(8, 1e-4)
    words = r"engine's own result in float32 is off by .* Normalization does, or use dtype='float64'"
    with pytest.raises(ParityError, match=words):
        export(model, path)


# Where native operators round too much


def normalized(layer, shape, low=None, high=None):
    x = lm.Input(shape, low=low, high=high)
    model = lm.Model(x, layer.named("norm")(x), seed=3)
    rng = np.random.default_rng(0)
    for name, value in model.parameters.items():
        model.parameters[name] = rng.uniform(0.5, 2.0, value.shape)
    return model


FAR = {
    "layers at 500": lambda: normalized(LayerNormalization(), (16,), 500.0, 501.0),
    "layers at 10000": lambda: normalized(LayerNormalization(), (16,), 1e4, 1e4 + 1),
    "groups at 100": lambda: normalized(GroupNormalization(2), (4, 6, 6), 100.0, 101.0),
    "groups at 10000": lambda: normalized(GroupNormalization(2), (4, 6, 6), 1e4, 1e4 + 1),
    "pairs of numbers": lambda: lm.Sequential(
        [Dense(2), LayerNormalization(epsilon=1e-5).named("norm")], input_shape=(50, 16), seed=5
    ),
}


@pytest.mark.parametrize("kind", FAR)
def test_a_formula_stands_in_for_operators_that_round_too_much(kind, path):
    model = FAR[kind]()
    report = export(model, path)
    assert {row.rule for row in report.agreements} <= {"1e-05 of the row's scale", "4 x float32 rounding"}
    assert report.max_error < 5e-6
    assert not {name for name, _ in nodes(path) if "Normalization" in name}
    assert verify(path).agrees
    assert verify(path, model).agrees


@pytest.mark.parametrize("layer", [BatchNormalization, LayerNormalization, lambda: GroupNormalization(2)])
def test_operators_stay_native_where_they_agree(layer, path):
    export(normalized(layer(), (4, 6, 6)), path)
    assert [name for name, _ in nodes(path) if "Normalization" in name]


WRONG_VALUES = {
    "beta": lambda model: changed(model, "norm.beta", lambda v: v + 0.01 * (np.arange(v.size) == 1)),
    "gamma": lambda model: changed(model, "norm.gamma", lambda v: v + 0.01),
    "beta for gamma": lambda model: changed(model, "norm.gamma", lambda v: model.parameters["norm.beta"]),
}


def changed(model, name, edit):
    twin = model.copy()
    twin.parameters[name] = edit(np.array(twin.parameters[name]))
    return twin


def refused(model, wrong, path, monkeypatch):
    """Whether the graph of a wrong model is refused: at export, and in a file that has the right one's proof."""
    monkeypatch.setattr("lamella_onnx.exporter.trace_model", lambda _, *args, **how: trace_model(wrong, *args, **how))
    with pytest.raises(ParityError, match="is not written"):
        export(model, path)
    monkeypatch.undo()
    export(model, path)
    proto = trace_model(wrong, names=model.output_names).proto
    proto.metadata_props.extend(onnx.load(path).metadata_props)
    forge(proto, path)
    onnx.save(proto, path)
    for given in ((), (model,)):
        with pytest.raises(ParityError, match="on the proof differs"):
            verify(path, *given)


@pytest.mark.parametrize("fault", WRONG_VALUES)
@pytest.mark.parametrize("kind", ["layers at 500", "groups at 100", "layers at 10000", "pairs of numbers"])
def test_rounding_hides_no_wrong_value(kind, fault, path, monkeypatch):
    model = FAR[kind]()
    refused(model, WRONG_VALUES[fault](model), path, monkeypatch)


@pytest.mark.parametrize("far", [{}, {"low": 100.0, "high": 101.0}])
@pytest.mark.parametrize("layer", [LayerNormalization, lambda **options: GroupNormalization(2, **options)])
def test_rounding_hides_no_wrong_epsilon_or_weight(layer, far, path, monkeypatch):
    model, wrong = (normalized(layer(epsilon=epsilon), (16,), **far) for epsilon in (1e-3, 1e-5))
    refused(model, wrong, path, monkeypatch)
    x = lm.Input((16,), **far)
    model = lm.Model(x, Dense(3).named("head")(layer()(x)))
    wrong = changed(model, "head.kernel", lambda v: v + 0.01 * (np.arange(v.size) == 5).reshape(v.shape))
    refused(model, wrong, path, monkeypatch)


@lm.primitive
def variance(xp, x):
    return xp.mean((x - xp.mean(x, axis=-1, keepdims=True)) ** 2, axis=-1)


class Variance(lm.Layer):
    def build(self, declare, x):
        return x.replace(shape=x.shape[:-1])

    def forward_pass(self, ctx, x):
        return variance(ctx, x)


def test_an_unstable_formula_is_no_rounding(path, monkeypatch):
    unstable = lambda xp, x: xp.mean(x * x, axis=-1) - xp.mean(x, axis=-1) ** 2  # noqa: E731
    x = lm.Input((50,), low=300.0, high=301.0)
    model = lm.Model(x, Variance()(x))
    export(model, path)
    monkeypatch.setitem(variance.kernels, "onnx", unstable)
    with pytest.raises(ParityError, match=r"variance_1 \(Variance\) is the first layer to differ"):
        export(model, path)


class Counting(lm.Layer):
    """Counts what the engine runs, by rows and dtype."""

    runs: ClassVar[Counter] = Counter()

    def forward_pass(self, ctx, x):
        if ctx.xp.backend == "numpy":
            self.runs[x.shape[0], str(x.dtype)] += 1
        return x * 2.0


def test_each_batch_is_predicted_once(path):
    model = lm.Sequential([Counting(), Dense(2)], input_shape=(3,))
    Counting.runs.clear()
    export(model, path, samples=np.ones((5, 3)))
    once = {(rows, dtype): 1 for rows in (1, 2, 7, 5) for dtype in ("float32", "float64")}
    assert Counting.runs == once
    Counting.runs.clear()
    verify(path)
    assert not Counting.runs
    del once[5, "float32"], once[5, "float64"]
    verify(path, model)
    assert Counting.runs == once


def test_a_second_graph_needs_no_second_prediction(path):
    x = lm.Input((16,), low=1e4, high=1e4 + 1)
    model = lm.Model(x, LayerNormalization()(Counting()(x)))
    Counting.runs.clear()
    export(model, path)
    assert "LayerNormalization" not in {name for name, _ in nodes(path)}
    assert Counting.runs == {(rows, dtype): 1 for rows in (1, 2, 7) for dtype in ("float32", "float64")}


# Proofs


def test_verify_replays_the_proof_without_the_model(path, capsys):
    export(cnn(), path)
    report = verify(path)
    assert [row.data for row in report.agreements] == ["proof"]
    assert cli.main(["verify", str(path)]) == 0
    assert "agrees" in capsys.readouterr().out


def change(path, edit):
    """Change a file on purpose, with a seal to go with it."""
    proto = onnx.load(path)
    edit(proto)
    forge(proto, path)
    onnx.save(proto, path)


def add_to(proto, name, number):
    (initializer,) = (array for array in proto.graph.initializer if array.name == name)
    array = onnx.numpy_helper.to_array(initializer).copy()
    array.flat[0] += number
    initializer.CopyFrom(onnx.numpy_helper.from_array(array, name))


def test_a_changed_file_is_caught(path, capsys):
    export(cnn(), path)
    change(path, lambda proto: add_to(proto, "conv2d_1.kernel", 0.1))
    with pytest.raises(ParityError, match=r"output 'dense_1' on the proof differs by .* file was changed"):
        verify(path)
    assert cli.main(["verify", str(path)]) == 1
    assert "differs by" in capsys.readouterr().err


def test_a_changed_model_is_caught(path):
    model = cnn()
    export(model, path)
    model.parameters["dense_1.bias"] = [0.0, 1.0, 0.0]
    assert verify(path).agrees
    with pytest.raises(ParityError, match="on the batch of 1 differs .* file or the model was changed"):
        verify(path, model)


def drop_proof(proto):
    del proto.metadata_props[:]


def damage_proof(proto):
    next(prop for prop in proto.metadata_props if prop.key == "lamella.proof").value = '{"seed": 0}'


def rewrite_proof(proto, edit):
    """Change the proof, and leave the rest."""
    (prop,) = (prop for prop in proto.metadata_props if prop.key == "lamella.proof")
    proof = json.loads(prop.value)
    edit(proof)
    prop.value = json.dumps(proof)


def proof_of(path):
    return json.loads({prop.key: prop.value for prop in onnx.load(path).metadata_props}["lamella.proof"])


def test_proofs_of_older_files_say_no_sizes_and_hold(path):
    model = lm.Sequential([Dense(2)], input_shape=("T", 3))
    export(model, path)
    change(path, lambda proto: rewrite_proof(proto, lambda proof: proof.pop("sizes")))
    assert verify(path, model).agrees


TAMPERED = {
    "a large size": lambda p: (p["inputs"][0].update(shape=["N", "T", 8, 8]), p.update(sizes={"7": {"T": 10**12}})),
    "a size that is none": lambda p: p.update(sizes={"2": {"T": "x"}}),
    "sizes that are none": lambda p: p.update(sizes=[1]),
    "sizes of no batch": lambda p: p.update(sizes={"T": {}}),
    "limits of another shape": lambda p: p["inputs"][0].update(low=[[[0.0] * 7]], high=1.0),
    "limits for other axes": lambda p: p["inputs"][0].update(low=[0.0], high=1.0),
    "limits that are none": lambda p: p["inputs"][0].update(low=[[[float("nan")]]], high=1.0),
    "a large axis": lambda p: p["inputs"][0].update(shape=["N", 10**12]),
    "a large product": lambda p: p["inputs"][0].update(shape=["N", *"ABCDEFGHIJKL"]),
    "a negative axis": lambda p: p["inputs"][0].update(shape=["N", -3]),
    "no axes": lambda p: p["inputs"][0].update(shape=[]),
    "a large batch": lambda p: p.update(batch=10**12),
    "a large empty batch": lambda p: (p.update(batch=10**12), p["inputs"][0].update(shape=["N", 0])),
    "an empty batch": lambda p: p.update(batch=0),
    "a batch that is none": lambda p: p.update(batch=True),
    "a seed that is none": lambda p: p.update(seed=None),
    "a name that is none": lambda p: p["inputs"][0].update(name=3),
    "an unknown dtype": lambda p: p["inputs"][0].update(dtype="object"),
    "an unlimited range": lambda p: p["inputs"][0].update(low=-float("inf"), high=1.0),
    "half a range": lambda p: p["inputs"][0].update(low=1.0),
    "a range that is none": lambda p: p["inputs"][0].update(low="a", high="b"),
    "a list for a dict": lambda p: p.update(inputs=[[1, 2]]),
    "values of another shape": lambda p: p["outputs"][0]["exact"].update(shape=[3, 2]),
    "values of another size": lambda p: p["outputs"][0]["value"].update(shape=[10**12]),
    "values in no alphabet": lambda p: p["outputs"][0]["value"].update(data="?"),
    "rounding of other rows": lambda p: p["outputs"][0].update(
        rounding={"rows": [0.1], "mean": p["outputs"][0]["exact"]}
    ),
    "rounding without limits": lambda p: p["outputs"][0].update(
        rounding={"rows": [float("inf")] * 2, "mean": p["outputs"][0]["exact"]}
    ),
    "rounding without a mean": lambda p: p["outputs"][0].update(rounding={"rows": [0.1] * 2}),
    "an output without a name": lambda p: p["outputs"][0].update(name=["a"]),
    "a digest that is a path": lambda p: p.update(sha256="../../etc"),
}


@pytest.mark.parametrize("fault", TAMPERED)
def test_a_tampered_proof_is_damaged(fault, path):
    export(cnn(), path)
    change(path, lambda proto: rewrite_proof(proto, TAMPERED[fault]))
    with pytest.raises(lm.DataError, match="the proof is damaged"):
        verify(path)


def test_a_file_and_half_of_its_proof_changed_alike_are_caught(path):
    def nothing(array):
        return {**array, "data": base64.b64encode(bytes(len(base64.b64decode(array["data"])))).decode()}

    def edit(proto):
        for array in proto.graph.initializer:
            array.raw_data = bytes(len(array.raw_data))
        rewrite_proof(proto, lambda p: p["outputs"][0].update(exact=nothing(p["outputs"][0]["exact"])))

    export(lm.Sequential([Dense(2)], input_shape=(3,)), path)
    change(path, edit)
    with pytest.raises(ParityError, match="differs by .* file was changed"):
        verify(path)


def rename_input(proto):
    proto.graph.node[0].input[0] = proto.graph.input[0].name = "other"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop_proof, "carries no proof; it was not written by lamella_onnx.export"),
        (damage_proof, "the proof is damaged .KeyError"),
        (rename_input, r"the file's inputs are \['other'\]; the proof is for \['input_1'\]"),
    ],
)
def test_files_that_prove_nothing(edit, words, path, capsys):
    export(cnn(), path)
    change(path, edit)
    with pytest.raises(lm.DataError, match=words):
        verify(path)
    assert cli.main(["verify", str(path)]) == 2
    assert "verify" in capsys.readouterr().err


def test_what_is_no_onnx_file(path, capsys):
    for content in (b"not ONNX at all", b""):
        path.write_bytes(content)
        with pytest.raises(lm.DataError, match="this is no ONNX file, or it is damaged"):
            verify(path)
    path.unlink()
    assert cli.main(["verify", str(path)]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_file_of_another_model(path):
    export(cnn(), path)
    with pytest.raises(lm.ArgumentError, match=r"verify: model: expected a lamella\.Model, got 'x'"):
        verify(path, model="x")
    with pytest.raises(lm.DataError, match=r"the model's inputs are .*8.* Is this the right model"):
        verify(path, lm.Sequential([Dense(3)], input_shape=(8,)))
    with pytest.raises(lm.DataError, match=r"the model's outputs are \['flatten_1'\]"):
        verify(path, lm.Sequential([Flatten()], input_shape=(1, 8, 8)))


def test_a_long_proof_stands_beside_the_file(path):
    model = lm.Sequential([Dense(9000)], input_shape=(2,))
    export(model, path)
    (beside,) = path.parent.glob("model.onnx.????????.proof")
    assert verify(path).agrees
    text = beside.read_text()
    beside.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(
        lm.DataError, match=r"model\.onnx\.\w{8}\.proof is not the proof that was written with the file"
    ):
        verify(path)
    beside.unlink()
    with pytest.raises(lm.DataError, match=r"stands in .*model\.onnx\.\w{8}\.proof, which is missing"):
        verify(path)


# Files of the version before


FILES = Path(__file__).parent / "files"


def test_files_of_the_version_before_verify(path):
    model = lm.Sequential([Conv2D(2, 3, activation="relu"), Flatten(), Dense(3)], input_shape=(1, 6, 6), seed=1)
    softmax = Activation("softmax")
    assert verify(FILES / "cnn_of_0.1.onnx").agrees
    assert verify(FILES / "cnn_of_0.1.onnx", lm.Model(model.input_nodes, softmax(model.output_nodes[0]), seed=1)).agrees


def test_a_file_with_rounding_of_the_version_before_verifies(tmp_path):
    file, model = FILES / "layers_at_10000_of_0.1.onnx", FAR["layers at 10000"]()
    (output,) = proof_of(file)["outputs"]
    assert len(output["rounding"]["rows"]) == 2
    (row,) = verify(file).agreements
    assert row.error <= row.allowed == pytest.approx(4 * max(output["rounding"]["rows"]), rel=0.3)
    assert row.rule == "4 x onnxruntime's rounding"
    assert verify(file, model).agrees
    with pytest.raises(ParityError, match="on the batch of 2 differs .* file or the model was changed"):
        verify(file, changed(model, "norm.beta", lambda v: v + 0.01 * (np.arange(v.size) == 1)))


@pytest.mark.parametrize("name", ["norm.beta", "norm.gamma"])
def test_a_changed_file_with_rounding_is_caught(name, path):
    shutil.copy(FILES / "layers_at_10000_of_0.1.onnx", path)
    change(path, lambda proto: add_to(proto, name, 0.01))
    with pytest.raises(ParityError, match="on the proof differs"):
        verify(path)


def test_rounding_excuses_rows_whose_error_is_small_and_does_not_stay():
    exact = np.array([[1.0, 2.0], [3.0, 4.0], [np.inf, np.nan], [0.0, 1.0]])
    e32, rounding = exact.astype("float32"), Rounding(np.full(4, 1e-3), exact)
    off = e32 + np.float32([[3e-3, 0.0], [0.0, 2e-3], [0.0, 0.0], [0.0, 0.0]])
    error, allowed, rule = rounding.compare([off, e32, e32, e32, e32, e32], e32, exact)
    assert (error, allowed, rule) == (pytest.approx(3e-3, rel=1e-3), 4e-3, "4 x onnxruntime's rounding")
    assert rounding.compare([e32] * 6, e32, exact)[2] == "1e-05 of the row's scale"
    error, allowed, _ = rounding.compare([off] * 6, e32, exact)  # it stays
    assert error > allowed
    error, allowed, _ = rounding.compare([off, e32, e32, e32, e32, e32], e32 + np.float32(0.1), exact)  # the engine's
    assert error > allowed
    far = off + np.float32([[0.0] * 2] * 3 + [[5e-3, 0.0]])  # more than 4 times what is recorded, in one row
    error, allowed, _ = rounding.compare([far, e32, e32, e32, e32, e32], e32, exact)
    assert (error, allowed) == (pytest.approx(5e-3, rel=1e-3), 1e-5)
    assert rounding.compare([e32[:2]] * 6, e32, exact)[0] == np.inf


def test_inputs_are_moved_a_little_and_always_alike():
    x = np.array([[1.0, 1.5, 0.0, 2.0], [np.nan, np.inf, -np.inf, -1e4]], "float32")
    labels, finite = np.array([3, 4]), np.isfinite(x)
    first, *moved = near((x, labels))
    assert first[0] is x
    assert all(b is labels for _, b in moved)
    assert len({a.tobytes() for a, _ in moved}) == len(moved) > 8
    for (a, _), (again, _) in zip(moved, [*near((x, labels))][1:], strict=True):
        np.testing.assert_array_equal(a, again)
        np.testing.assert_array_equal(a[~finite], x[~finite])
        assert np.max(np.abs(a[finite] - x[finite]) / np.spacing(np.abs(x[finite]))) <= 256
    (low, *rest) = near((np.array([[0.0, 0.1], [0.2, 1.0]]),))
    assert all(low[0].min() <= a.min() and a.max() <= low[0].max() for (a,) in rest)


# Traces


def test_public_names():
    names = ["ParityError", "ParityReport", "TraceError", "TrainingSession", "export", "export_training_step", "verify"]
    assert lamella_onnx.__all__ == names
    assert all(hasattr(lamella_onnx, name) for name in lamella_onnx.__all__)
    with pytest.raises(AttributeError, match="no attribute 'exports'"):
        _ = lamella_onnx.exports


def test_a_training_step_as_a_graph_gives_the_engines_bits():
    model = lm.Sequential([Dense(6, activation="relu"), Dropout(0.5), Dense(2)], input_shape=(4,), seed=7)
    proto = trace_step(model)
    assert [v.name for v in proto.graph.input] == [
        "input_1",
        "dense_2.incoming",
        *model.parameters,
        "training.seed",
        "training.step",
    ]
    assert [v.name for v in proto.graph.output][:2] == ["dense_2", "input_1.gradient"]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x, y = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
    prediction = model.predict(x)  # of the right shape
    names = [v.name for v in proto.graph.output]
    key = {"training.seed": np.array([7, 0], "uint32"), "training.step": np.array(model.step, "uint32")}
    given = {"input_1": x, "dense_2.incoming": np.zeros_like(prediction), **model.parameters, **key}
    first = dict(zip(names, session.run(None, given), strict=True))["dense_2"]
    _, gradients, dx = model.gradients(x, y[:, :2], loss="mean_squared_error")
    got = dict(zip(names, session.run(None, {**given, "dense_2.incoming": (first - y[:, :2]) / 5.0}), strict=True))
    np.testing.assert_allclose(got["input_1.gradient"], dx, atol=1e-6)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(got[f"{name}.gradient"], gradient, atol=1e-6)


def test_names_in_a_training_step_never_meet():
    seed, step = lm.Input((3,), name="seed"), lm.Input((3,), name="step")
    proto = trace_step(lm.Model([seed, step], [seed, Dense(2)(step)]))  # an input that is an output has two gradients
    onnx.checker.check_model(proto, full_check=True)
    names = [v.name for v in (*proto.graph.input, *proto.graph.output)]
    assert {"seed", "training.seed", "seed.incoming", "seed.gradient"} <= set(names)
    x = lm.Input((3,))
    with pytest.raises(TraceError, match=r"two inputs of the graph would be called 'training\.seed'"):
        trace_step(lm.Model(x, Seeded().named("training")(x)))


def test_a_training_step_is_traced_in_a_fresh_process():
    """Nothing that happens to be imported before may be needed."""
    program = """
import lamella as lm
from lamella_onnx.models import trace_step
x = lm.Input((4,))
layer = lm.layer("activation", function="relu")
proto = trace_step(lm.Model(x, layer(lm.layer("dense", units=2)(x))))
assert "Relu" in [node.op_type for node in proto.graph.node], "the core's primitives have their kernels"
print(*[value.name for value in proto.graph.output])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [
        "activation_1",
        "input_1.gradient",
        "dense_1.kernel.gradient",
        "dense_1.bias.gradient",
    ]


class Seeded(lm.Layer):
    def build(self, declare, x):
        declare.parameter("seed", (), "zeros")
        return x

    def forward_pass(self, ctx, x):
        return x + ctx.params.seed


def test_layers_that_change_nothing_leave_no_node():
    model = lm.Sequential([Dropout(0.5), Activation("linear"), Dense(2)], input_shape=(4,))
    assert [node.op_type for node in trace_model(model).proto.graph.node] == ["MatMul", "Add"]


class Recurrent(lm.Layer):
    """h_t = tanh(x_t W + h_{t-1} U) over axis 1, forwards or backwards; returns all h."""

    def __init__(self, units, reverse=False):
        self.units = units
        self.reverse = reverse

    def build(self, declare, x):
        declare.parameter("kernel", (x.shape[-1], self.units), "glorot_uniform", fan_in=3, fan_out=3)
        declare.parameter("recurrent_kernel", (self.units, self.units), "glorot_uniform", fan_in=3, fan_out=3)
        return x.replace(shape=(*x.shape[:-1], self.units))

    def forward_pass(self, ctx, x):
        xp, w, u = ctx.xp, ctx.params.kernel, ctx.params.recurrent_kernel
        begin = xp.zeros((x.shape[0], self.units), dtype=ctx.dtype)

        def body(states, xs):
            h = xp.tanh(xs[0] @ w + states[0] @ u)
            return (h,), (h, states[0])

        _, (h, before) = lm.scan(ctx, body, (begin,), (xp.permute_dims(x, (1, 0, 2)),), reverse=self.reverse)
        ctx.save(x, h, before)
        return xp.permute_dims(h, (1, 0, 2))

    def backward_pass(self, ctx, dy):
        (x, h, before), xp, u = ctx.saved, ctx.xp, ctx.params.recurrent_kernel

        def body(states, xs):
            dz = (xs[0] + states[0]) * (1.0 - xs[1] * xs[1])
            return (dz @ u.T,), (dz,)

        begin = xp.zeros((x.shape[0], self.units), dtype=ctx.dtype)
        _, (dz,) = lm.scan(ctx, body, (begin,), (xp.permute_dims(dy, (1, 0, 2)), h), reverse=not self.reverse)
        rows = xp.reshape(dz, (-1, self.units))
        time_first = xp.permute_dims(x, (1, 0, 2))
        ctx.grad(kernel=xp.reshape(time_first, (-1, x.shape[-1])).T @ rows)
        ctx.grad(recurrent_kernel=xp.reshape(before, (-1, self.units)).T @ rows)
        return xp.permute_dims(dz @ ctx.params.kernel.T, (1, 0, 2))


class Standardize(lm.Layer):
    """(x - mean) / sqrt(variance + 1e-3) with the whole batch's statistics in training, kept ones in inference."""

    def build(self, declare, x):
        declare.state("mean", x.shape[1:], "zeros")
        declare.state("variance", x.shape[1:], "ones")
        return x

    def forward_pass(self, ctx, x):
        xp = ctx.xp
        if not (ctx.training and ctx.trainable):
            deviation = xp.sqrt(ctx.state.variance + 1e-3)
            ctx.save(None, deviation)
            return (x - ctx.state.mean) / deviation
        total, rows = yield xp.sum(x, axis=0), x.shape[0]
        mean = total / rows
        (squares,) = yield (xp.sum((x - mean) ** 2, axis=0),)
        deviation = xp.sqrt(squares / rows + 1e-3)
        ctx.update(mean=ctx.state.mean * 0.9 + mean * 0.1, variance=ctx.state.variance * 0.9 + squares / rows * 0.1)
        y = (x - mean) / deviation
        ctx.save(y, deviation)
        return y

    def backward_pass(self, ctx, dy):
        (y, deviation), xp = ctx.saved, ctx.xp
        if y is None:
            return dy / deviation
        first, second, rows = yield xp.sum(dy, axis=0), xp.sum(dy * y, axis=0), dy.shape[0]
        return (dy - first / rows - y * (second / rows)) / deviation


@pytest.mark.parametrize(
    ("layer", "shape"), [(Recurrent(3), ("N", "T", 2)), (Recurrent(3, True), ("N", 4, 2)), (Standardize(), ("N", 3))]
)
def test_layers_that_loop_and_layers_that_share_sums_obey_the_law(layer, shape, path):
    report = lm.testing.check_layer(layer, lm.ArraySpec(shape))
    assert {v.law: v.outcome for v in report.verdicts}["onnx"] == "holds"
    model = lm.Sequential([layer], input_shape=shape[1:])
    export(model, path)
    assert verify(path, model).agrees
    loops = [node for node in onnx.load(path).graph.node if node.op_type == "Scan"]
    assert [len(loop.output) for loop in loops] == [2] * isinstance(layer, Recurrent)  # what training saves is left out


def test_a_model_too_large_for_one_file_is_refused_before_tracing(path, monkeypatch):
    monkeypatch.setattr("lamella_onnx.exporter.LARGEST", 100)
    with pytest.raises(lm.ArgumentError, match="an ONNX file of one piece holds less than 2 GiB"):
        export(cnn(), path)
    assert not path.exists()
