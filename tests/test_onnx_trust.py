"""Exported files: each change is seen, strangers' files end in words, and at no moment is a file without its proof."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lamella as lm
from lamella import cli
from lamella_layers import LSTM, BatchNormalization, Conv2D, Dense, Flatten
from lamella_onnx import ParityError, export, verify

SEED = int(os.environ.get("LAMELLA_SEED", random.randrange(10**6)))
TIMES = int(os.environ.get("LAMELLA_TIMES", "1"))  # more of everything that is random
FILES = Path(__file__).parent / "files"
ERRORS = (lm.DataError, ParityError)


@pytest.fixture
def rng():
    print("LAMELLA_SEED =", SEED)
    return random.Random(SEED)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def dense(seed=0, width=10):
    return lm.Sequential([Dense(32, activation="relu"), Dense(width)], input_shape=(64,), seed=seed)


def wide(seed=0):
    return dense(seed, 3000)  # its proof stands beside the file


NETS = {
    "dense": dense,
    "convolution": lambda: lm.Sequential(
        [Conv2D(4, 3, activation="relu"), BatchNormalization(), Flatten(), Dense(3)], input_shape=(1, 8, 8)
    ),
    "recurrent": lambda: lm.Sequential([LSTM(5), Dense(2)], input_shape=("T", 3)),
}


def change(path, edit):
    proto = onnx.load(path)
    edit(proto)
    path.write_bytes(proto.SerializeToString())


# The seal


@pytest.mark.parametrize("kind", NETS)
def test_every_bit_of_every_array_is_looked_at(kind, path, rng):
    export(NETS[kind](), path)
    proto, found = onnx.load(path), 0
    for _ in range(100 * TIMES):
        array = rng.choice(proto.graph.initializer)
        sound = array.raw_data
        wrong = bytearray(sound)
        wrong[rng.randrange(len(wrong))] ^= 1 << rng.randrange(8)
        array.raw_data = bytes(wrong)
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ParityError, match=f"was changed after the export: array {array.name} differs"):
            verify(path)
        array.raw_data = sound
        found += 1
    print(found, "changed bits found")


def test_weights_that_the_proof_does_not_use_are_looked_at(path):
    samples = np.random.default_rng(0).normal(size=(100, 64))
    samples[:, 5] = 0.0  # a pixel that is always black
    export(dense(), path, samples=samples)

    def edit(proto):
        (array,) = (array for array in proto.graph.initializer if list(array.dims) == [64, 32])
        values = numpy_helper.to_array(array).copy()
        values[5] = 1e6
        array.raw_data = values.tobytes()

    change(path, edit)
    with pytest.raises(ParityError, match=r"array dense_1\.kernel differs\. Only metadata may be added"):
        verify(path)


def first(proto, operator):
    return next(node for node in proto.graph.node if node.op_type == operator)


CHANGES = {
    "nodes conv2d_1 differs": lambda p: setattr(first(p, "Conv").attribute[0], "name", "x"),
    "nodes dense_1 differs": lambda p: setattr(first(p, "MatMul"), "op_type", "Gemm"),
    "nodes batch_normalization_1 differs": lambda p: setattr(first(p, "BatchNormalization").attribute[0], "f", 0.5),
    "nodes x is new": lambda p: setattr(p.graph.node[0], "name", "x"),
    "nodes flatten_1 is gone": lambda p: p.graph.node.remove(first(p, "Reshape")),
    "array dense_1.bias is gone": lambda p: p.graph.initializer.remove(
        next(array for array in p.graph.initializer if array.name == "dense_1.bias")
    ),
    "array x is new": lambda p: p.graph.initializer.add(name="x", data_type=1, dims=[1], raw_data=bytes(4)),
    "opset_import differs": lambda p: setattr(p.opset_import[0], "version", 20),
    "ir_version differs": lambda p: setattr(p, "ir_version", 9),
    "doc_string is new": lambda p: setattr(p, "doc_string", "mine"),
    "functions is new": lambda p: p.functions.add(name="f", domain="d"),
    "graph.name differs": lambda p: setattr(p.graph, "name", "x"),
    "graph.input differs": lambda p: p.graph.input[0].type.tensor_type.shape.dim[1].Clear(),
    "graph.value_info differs": lambda p: p.graph.value_info.pop(),
    "metadata author differs": lambda p: setattr(p.metadata_props[0], "value", "you"),
    "metadata author is gone": lambda p: p.metadata_props.pop(0),
    "metadata lamella.report differs": lambda p: setattr(p.metadata_props[1], "value", "{}"),
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_differs_is_told(said, path, capsys):
    export(NETS["convolution"](), path, metadata={"author": "me"})
    change(path, CHANGES[said])
    with pytest.raises(ParityError, match=f"was changed after the export: .*{said}"):
        verify(path)
    assert cli.main(["verify", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_a_proof_is_sealed_too(path):
    export(dense(), path)
    entry = next(entry for entry in onnx.load(path).metadata_props if entry.key == "lamella.proof")
    text = path.read_bytes()
    path.write_bytes(text.replace(entry.value.encode(), entry.value.replace('"seed": 0', '"seed": 1').encode()))
    with pytest.raises(ParityError, match="changed after the export: proof differs"):
        verify(path)
    path.write_bytes(text.replace(b'"seal"', b'"sael"'))
    with pytest.raises(lm.DataError, match="the proof is damaged .*unknown entries sael"):
        verify(path)


def test_who_saves_the_file_again_keeps_the_seal(path):
    model = NETS["convolution"]()
    export(model, path)
    proto = onnx.load(path)
    onnx.save(proto, path)
    assert verify(path, model).sealed
    onnx.save(proto, path, format="textproto")
    onnx.save(onnx.load(path, format="textproto"), path)
    assert verify(path).sealed
    last = onnx.ModelProto(graph=proto.graph)
    proto.ClearField("graph")
    path.write_bytes(last.SerializeToString() + proto.SerializeToString())  # fields in another order
    assert verify(path).sealed
    change(path, lambda proto: proto.metadata_props.add(key="license", value="MIT"))
    report = verify(path)
    assert report.sealed
    assert "hash" not in str(report)


@pytest.mark.parametrize("name", ["cnn_of_0.1.onnx", "layers_at_10000_of_0.1.onnx"])
def test_older_files_verify_and_are_told_to_have_no_hash(name, capsys):
    report = verify(FILES / name)
    assert report.agrees
    assert not report.sealed
    assert cli.main(["verify", str(FILES / name)]) == 0
    assert "the file carries no hash: only what its proof runs is looked at" in capsys.readouterr().out


def same(a, b):
    """Whether two files say the same, but for metadata that was added."""
    a, b = onnx.load_from_string(a), onnx.load_from_string(b)
    for proto in (a, b):
        proto.DiscardUnknownFields()
    kept = [entry for entry in b.metadata_props if entry in a.metadata_props]
    del b.metadata_props[:]
    b.metadata_props.extend(kept)
    return a.SerializeToString() == b.SerializeToString()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", ["flipped", "cut", "cut out", "doubled"])
def test_damaged_files_are_refused(kind, old, path, rng):
    """In files without a hash, damage may go unnoticed, but ends in words."""
    export(NETS["convolution"](), path)
    sound = (FILES / "cnn_of_0.1.onnx").read_bytes() if old else path.read_bytes()
    refused = agreed = 0
    for _ in range((20 if old else 60) * TIMES):
        content = bytearray(sound)
        at, length = rng.randrange(len(content)), rng.randrange(1, 40)
        if kind == "flipped":
            content[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del content[at:]
        elif kind == "cut out":
            del content[at : at + length]
        else:
            content[at:at] = content[at : at + length]
        path.write_bytes(content)
        started = time.monotonic()
        try:
            verify(path, timeout=5)
        except ERRORS:
            refused += 1
        else:
            agreed += 1
            assert old or same(sound, bytes(content))
        assert time.monotonic() - started < 30
    print(f"{kind}: {refused} refused, {agreed} agreed")


def test_damaged_proofs_beside_a_file_are_refused(path, rng):
    export(wide(), path)
    (beside,) = path.parent.glob("*.proof")
    sound = beside.read_bytes()
    for k in range(60 * TIMES):
        content = bytearray(sound)
        if k % 2:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        else:
            del content[rng.randrange(len(content)) :]
        beside.write_bytes(content)
        with pytest.raises(lm.DataError, match="is not the proof that was written with the file"):
            verify(path)


# What is not finite


def test_a_model_that_is_not_finite_is_not_exported(path):
    model = dense()
    model.parameters["dense_2.kernel"] = np.where(np.arange(320).reshape(32, 10) == 57, np.nan, 0.0)
    with pytest.raises(
        lm.NonFiniteError, match=r"export: dense_2\.kernel has 1 of 320 values that are not finite; at \[5, 7\] stands"
    ):
        export(model, path)
    model = NETS["convolution"]()
    model.state["batch_normalization_1.variance"] = [1.0, np.nan, 1.0, 1.0]
    with pytest.raises(lm.NonFiniteError, match=r"batch_normalization_1\.variance has 1 of 4 values"):
        export(model, path)
    assert not path.exists()


class Logarithm(lm.Layer):
    def forward_pass(self, ctx, x):
        return ctx.xp.log(x)


class Root(lm.Layer):
    def forward_pass(self, ctx, x):
        return ctx.xp.sqrt(x - 50.0)


def test_outputs_that_are_not_finite_are_not_exported(path):
    model = lm.Sequential([Logarithm().named("log"), Dense(2)], input_shape=(1,))
    export(model, path)  # half of what is drawn is negative, which says nothing of the model
    samples = np.array([[1.0], [np.nan], [2.0], [0.0]])
    with pytest.raises(
        lm.NonFiniteError, match=r"output 'dense_1' has NaN or infinity for sample 3, .* finite; log \(Logarithm\) is"
    ):
        export(model, path, samples=samples)
    export(model, path, samples=samples[:3])
    with pytest.raises(
        lm.NonFiniteError, match=r"'root_1' is nowhere finite, .* first layer to give such.*Likely fix: .*samples"
    ):
        export(lm.Sequential([Root()], input_shape=(3,)), path)
    export(lm.Sequential([Root()], input_shape=(3,)), path, samples=[[50.0, 51.0, 52.0]])
    assert verify(path).agrees


# Strangers' files


def packed(array):
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}


def stranger(nodes, arrays=(), output=None, opsets=(("", 21),), functions=(), value=None):
    """A file whose proof fits its names: x of shape (N, 4) in, zeros of shape (2, 4) out as y."""
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])]
    output = output or helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    arrays = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(arrays).items()]
    graph = helper.make_graph(nodes, "graph", given, [output], initializer=arrays)
    imports = [helper.make_opsetid(*one) for one in opsets]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions)
    value = packed(np.zeros((2, 4), "float32") if value is None else value)
    range_ = {"name": "x", "shape": ["N", 4], "dtype": "float32", "low": None, "high": None}
    outputs = [{"name": "y", "value": value, "exact": value}]
    proof = {"seed": 0, "batch": 2, "inputs": [range_], "outputs": outputs}
    helper.set_model_props(proto, {"lamella.proof": json.dumps(proof)})
    return proto


def loop(*nodes, turns=2**62):
    info = helper.make_tensor_value_info
    given = [info("turn", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("s", TensorProto.FLOAT, None)]
    after = [info("on_too", TensorProto.BOOL, []), info("t", TensorProto.FLOAT, None)]
    body = helper.make_graph([helper.make_node("Identity", ["on"], ["on_too"]), *nodes], "body", given, after)
    node = helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=body)
    return stranger([node], {"turns": turns, "yes": True})


def doubling(levels=40):
    functions = []
    for k in range(levels):
        again = [helper.make_node(f"f{k + 1}", [a], [b], domain="d") for a, b in ("ab", "bc")]
        nodes = again if k < levels - 1 else [helper.make_node("Neg", ["a"], ["c"])]
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("d", 1)]
        functions.append(helper.make_function("d", f"f{k}", ["a"], ["c"], nodes, imports))
    return stranger([helper.make_node("f0", ["x"], ["y"], domain="d")], (), None, (("", 21), ("d", 1)), functions)


def large():
    expand = helper.make_node("Expand", ["x", "sizes"], ["e"])
    reduced = [
        helper.make_node("ReduceSum", ["e", "axes"], ["r"], keepdims=0),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    return stranger([expand, *reduced], {"sizes": [2**35, 1, 1], "axes": [0]})


def busy():
    nodes = [helper.make_node("Transpose", ["v"], ["t"], perm=[1, 0]), helper.make_node("Add", ["v", "t"], ["p0"])]
    nodes += [helper.make_node("MatMul", [f"p{k}", f"p{k}"], [f"p{k + 1}"]) for k in range(20)]
    nodes += [helper.make_node("ReduceSum", ["p20"], ["r"], keepdims=0), helper.make_node("Add", ["x", "r"], ["y"])]
    return stranger(nodes, {"v": np.ones((1, 10_000), "float32")})


def concatenated(levels=24):
    """Sizes of sizes: shape inference that follows them does not end."""
    nodes = [helper.make_node("Shape", ["x"], ["s0"])]
    nodes += [helper.make_node("Concat", [f"s{k}"] * 2, [f"s{k + 1}"], axis=0) for k in range(levels)]
    nodes += [helper.make_node("Expand", ["x", f"s{levels}"], ["y"])]
    return stranger(nodes)


def many_axes(levels=200):
    """Twice as many axes with each node: shape inference does not end."""
    nodes = [helper.make_node("Cast", ["x"], ["i0"], to=TensorProto.INT64)]
    nodes += [helper.make_node("Gather", [f"i{k}"] * 2, [f"i{k + 1}"], axis=0) for k in range(levels)]
    nodes += [helper.make_node("Cast", [f"i{levels}"], ["y"], to=TensorProto.FLOAT)]
    return stranger(nodes)


def lying(*dims):
    nodes = [helper.make_node("Gather", ["w", "zero"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    proto = stranger(nodes, {"zero": 0})
    proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(4))
    return proto


def sparse():
    proto = stranger(
        [helper.make_node("ReduceSum", ["w"], ["r"], keepdims=0), helper.make_node("Add", ["x", "r"], ["y"])]
    )
    values, places = helper.make_tensor("w", 1, [1], [1.0]), helper.make_tensor("places", 7, [1], [5])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2**36]))
    return proto


ENDLESS = r"took longer than 0\.7 seconds"
MACHINE_LEARNING = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[0.0])
STRANGERS = {
    "a loop without end": (lambda: loop(helper.make_node("Identity", ["s"], ["t"])), ENDLESS),
    "functions that double": (doubling, ENDLESS),
    "much work": (busy, ENDLESS),
    "a loop that grows": (lambda: loop(helper.make_node("Concat", ["s", "s"], ["t"], axis=0)), f"can't run|{ENDLESS}"),
    "a large array": (large, "can't run the graph"),
    "sizes of sizes": (concatenated, "can't run|can't load"),
    "many axes": (many_axes, f"can't load|can't run|damaged|died|{ENDLESS}"),
    "an array that lies": (lambda: lying(2**40), "too small for the declared shape"),
    "an array of negative size": (lambda: lying(-4, -(2**40)), "Negative dimension"),
    "a sparse array": (sparse, "can't load the graph"),
    "a sequence": (
        lambda: stranger(
            [helper.make_node("SequenceConstruct", ["x"], ["y"])],
            output=helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None),
        ),
        "'y' is no array but sequence; lamella_onnx.export writes arrays only",
    ),
    "a map": (
        lambda: stranger(
            [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])],
            output=helper.make_value_info(
                "y",
                helper.make_sequence_type_proto(
                    helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
                ),
            ),
            opsets=(("", 21), ("ai.onnx.ml", 1)),
        ),
        "'y' is no array but sequence",
    ),
    "no type": (
        lambda: stranger([helper.make_node("Identity", ["x"], ["y"])], output=onnx.ValueInfoProto(name="y")),
        "'y' is no array but a value without a type",
    ),
    "strings": (
        lambda: stranger(
            [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)],
            output=helper.make_tensor_value_info("y", TensorProto.STRING, ["N", 4]),
        ),
        "output 'y' on the proof differs by inf where 0 is allowed",
    ),
    "an odd kind of number": (
        lambda: stranger(
            [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
            output=helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["N", 4]),
        ),
        "'y' has elements of a kind that lamella does not know",
    ),
    "a scalar, and a scalar in the proof": (
        lambda: stranger([helper.make_node("ReduceSum", ["x"], ["y"])], value=np.float32(0)),
        "the proof is damaged .*output 'y'",
    ),
    "a scalar": (
        lambda: stranger(
            [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
            output=helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
        ),
        "differs by inf",
    ),
    "no operator set of ONNX": (
        lambda: stranger([MACHINE_LEARNING], opsets=(("ai.onnx.ml", 3),)),
        "uses no operator set of ONNX itself",
    ),
    "an unknown domain": (
        lambda: stranger([helper.make_node("Foo", ["x"], ["y"], domain="foo")], opsets=(("", 21), ("foo", 1))),
        "can't load the graph: .*foo:Foo",
    ),
    "an operator set of the future": (
        lambda: stranger([helper.make_node("Neg", ["x"], ["y"])], opsets=(("", 10**6),)),
        "can't load the graph",
    ),
    "a node that is none": (lambda: stranger([helper.make_node("Nog", ["x"], ["y"])]), "no ONNX file.*Nog"),
    "no outputs": (
        lambda: stranger([helper.make_node("Identity", ["x"], ["z"])]),
        "no ONNX file, or it is damaged|can't load the graph",
    ),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_files_of_strangers_end_in_words(kind, path):
    make, words = STRANGERS[kind]
    path.write_bytes(make().SerializeToString())
    started = time.monotonic()
    with pytest.raises(ERRORS, match=words) as caught:
        verify(path, timeout=0.7 if ENDLESS in words else 30)
    assert str(caught.value).startswith(f"verify {path}: ")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 20


def test_what_names_tell_a_terminal_is_not_obeyed(path, capsys):
    name = "\x1b[2J"
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])
    proto = stranger([helper.make_node("Sub", ["x", "x"], [name])], output=output)
    proto.metadata_props[0].value = proto.metadata_props[0].value.replace('"y"', json.dumps(name))
    path.write_bytes(proto.SerializeToString())
    assert cli.main(["verify", str(path)]) == 0
    proto.graph.node[0].op_type = "\x1b[2J\n"
    path.write_bytes(proto.SerializeToString())
    assert cli.main(["verify", str(path)]) in (1, 2)
    out, error = capsys.readouterr()
    assert "\x1b" not in out + error
    assert error.count("\n") == 1
    proto.graph.output[0].name = "y" * 10**6
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(lm.DataError, match="the file's outputs are") as caught:
        verify(path)
    assert len(str(caught.value)) < 3000


def test_loops_that_end_and_other_domains_agree(path):
    for proto in (
        loop(helper.make_node("Mul", ["s", "s"], ["t"]), turns=200),
        stranger([MACHINE_LEARNING], opsets=(("", 21), ("ai.onnx.ml", 3))),
        doubling(3),
    ):
        if proto.functions:
            proto.graph.node.insert(0, helper.make_node("Sub", ["x", "x"], ["nothing"]))
            proto.graph.node[1].input[0] = "nothing"
        path.write_bytes(proto.SerializeToString())
        assert verify(path).agrees


def test_ordinary_files_need_no_process(path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    for make in NETS.values():
        export(make(), path)
        assert verify(path, make()).agrees


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", None, True])
def test_a_timeout_is_a_number_of_seconds(timeout, path):
    with pytest.raises(lm.ArgumentError, match="verify: timeout: expected"):
        verify(path, timeout=timeout)


@pytest.mark.parametrize("path", [None, 5, b"model.onnx", "a\0b"])
def test_a_path_is_a_path(path):
    with pytest.raises(lm.ArgumentError, match="verify: path: expected"):
        verify(path)
    with pytest.raises(lm.ArgumentError, match="export: path: expected"):
        export(dense(), path)


# External data


def externalize(proto, location, **more):
    """Say that the first array stands elsewhere, and return its bytes."""
    array = proto.graph.initializer[0]
    data = array.raw_data
    array.ClearField("raw_data")
    array.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        array.external_data.add(key=key, value=str(value))
    return data


def test_external_data_is_refused_unless_asked_for(path, tmp_path, monkeypatch, capsys):
    export(dense(), path)
    proto = onnx.load(path)
    data = externalize(proto, "w.bin")
    sent = tmp_path / "sent"
    sent.mkdir()
    (sent / "a.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "w.bin").write_bytes(data)
    monkeypatch.chdir(tmp_path)  # where the right data stand, which onnxruntime will not use
    with pytest.raises(lm.DataError, match=r"array 'dense_1.kernel' stand in another file.*external_data=True"):
        verify("sent/a.onnx")
    with pytest.raises(lm.DataError, match=r"the data of array 'dense_1.kernel' stand in 'w.bin': no such file"):
        verify("sent/a.onnx", external_data=True)
    (sent / "w.bin").write_bytes(bytes(len(data)))
    with pytest.raises(ParityError, match=r"array dense_1\.kernel differs"):
        verify("sent/a.onnx", external_data=True)
    (sent / "w.bin").write_bytes(data)
    assert verify("sent/a.onnx", external_data=True).agrees
    assert cli.main(["verify", "sent/a.onnx"]) == 2
    assert cli.main(["verify", "sent/a.onnx", "--external-data"]) == 0
    assert capsys.readouterr().err.count("\n") == 1
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="all.bin", size_threshold=0)
    assert verify(path, external_data=True).sealed


@pytest.mark.parametrize(
    ("location", "more", "words"),
    [
        ("../w.bin", {}, "outside of the model's folder"),
        ("/dev/zero", {}, "outside of the model's folder"),
        ("link", {}, "outside of the model's folder"),
        ("pipe", {}, "a pipe or a device"),
        ("", {}, "this is a folder"),
        ("a\0b", {}, "null"),
        ("w.bin", {"length": 10**12}, "no bytes 0 to"),
        ("w.bin", {"offset": -4}, "no bytes -4 to"),
        ("w.bin", {"offset": 10**40}, "no bytes"),
        ("w.bin", {"length": "x"}, "invalid literal"),
        ("w.bin", {"length": 4}, "array dense_1.kernel differs"),
    ],
)
def test_external_data_come_from_the_models_folder_only(location, more, words, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "model.onnx"
    export(dense(), path)
    proto = onnx.load(path)
    data = externalize(proto, location, **more)
    path.write_bytes(proto.SerializeToString())
    for file in (folder / "w.bin", tmp_path / "w.bin"):
        file.write_bytes(data)
    (folder / "link").symlink_to(tmp_path / "w.bin")
    os.mkfifo(folder / "pipe")
    with pytest.raises(ERRORS, match=words):
        verify(path, external_data=True)


def test_arrays_in_nodes_stand_nowhere_else_either(path):
    value = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    nodes = [helper.make_node("Constant", [], ["w"], value=value), helper.make_node("Mul", ["x", "w"], ["y"])]
    path.write_bytes(stranger(nodes).SerializeToString())
    with pytest.raises(lm.DataError, match="array 'w' stand in another file"):
        verify(path)


# Reading


def place(kind, path):
    """Make something that is no file that could be read."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(3 * 2**30)
    elif kind == "link to itself":
        path.symlink_to(path)


UNREADABLE = {
    "folder": "this is a folder",
    "pipe": "this is a pipe or a device",
    "huge": "3,221,225,472 bytes; an ONNX file of one piece holds less than 2 GiB",
    "link to itself": "can't be read",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_can_not_be_read_is_told_at_once(kind, path):
    place(kind, path)
    with pytest.raises(lm.DataError, match=UNREADABLE[kind]):
        verify(path)


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_proof_that_can_not_be_read_is_told_at_once(kind, path):
    export(wide(), path)
    (beside,) = path.parent.glob("*.proof")
    beside.unlink()
    place(kind, beside)
    with pytest.raises(lm.DataError, match=UNREADABLE[kind]):
        verify(path)


def test_devices_long_names_and_closed_files_are_told_at_once(path, tmp_path):
    with pytest.raises(lm.DataError, match="this is a pipe or a device"):
        verify("/dev/zero")
    with pytest.raises(lm.DataError, match="can't be read .File name too long"):
        verify(tmp_path / ("x" * 300))
    export(dense(), path)
    path.chmod(0)
    if not os.access(path, os.R_OK):  # root may read all
        with pytest.raises(lm.DataError, match="can't be read .Permission denied"):
            verify(path)


PROOFS = {
    "deep": "[" * 10**6,
    "deep in a dict": '{"inputs": ' + "[" * 10**5 + "]" * 10**5 + "}",
    "cut": '{"inputs": [',
    "a list": "[]",
    "a number": "1",
    "nothing": "",
    "a long number": '{"seed": ' + "9" * 10**5 + "}",
    "a digest of another kind": '{"sha256": [1]}',
    "a seal of another kind": '{"seed": 0, "batch": 2, "inputs": [], "outputs": [], "seal": 5}',
    "half a seal": '{"seed": 0, "batch": 2, "inputs": [], "outputs": [], "seal": {"sha256": "a"}}',
    "no outputs": '{"seed": 0, "batch": 2, "inputs": [], "outputs": []}',
}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("kind", PROOFS)
def test_proofs_of_strangers_end_in_words(kind, beside, path):
    from lamella_onnx.files import digest, proof_path

    export(dense(), path)
    text = PROOFS[kind]
    if beside:
        proof_path(path, digest(text.encode())).write_text(text)
        text = json.dumps({"sha256": digest(text.encode())})
    change(path, lambda proto: setattr(proto.metadata_props[-1], "value", text))
    with pytest.raises(lm.DataError, match="the proof is damaged"):
        verify(path)


# Writing


def test_a_link_is_followed_to_the_file_and_its_proof(tmp_path):
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "model.onnx", tmp_path / "link.onnx"
    link.symlink_to(real)
    for seed in range(2):
        export(wide(seed), link)
        assert link.is_symlink()
        assert verify(link).agrees
        assert verify(real).agrees
    assert sorted(file.suffix for file in real.parent.iterdir()) == [".onnx", ".proof"]


def in_a_process(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **options)


EXPORTS = """
import sys
import numpy as np, lamella as lm, lamella_onnx
from lamella_layers import Dense
lm.set_threads(1)
model = lm.Sequential([Dense(3000)], input_shape=3, seed=int(sys.argv[2]))
for _ in range(int(sys.argv[3])):
    model.parameters["dense_1.bias"] = model.parameters["dense_1.bias"] + 1.0
    lamella_onnx.export(model, sys.argv[1])
"""


def test_two_exports_to_one_path_leave_a_whole_file_at_any_moment(path):
    export(lm.Sequential([Dense(3000)], input_shape=3), path)
    writers = [in_a_process(EXPORTS, path, seed, 15 * TIMES) for seed in (1, 2)]
    verified = 0
    while any(writer.poll() is None for writer in writers):
        assert verify(path).agrees
        verified += 1
    assert [writer.returncode for writer in writers] == [0, 0]
    assert verify(path).agrees
    assert sorted(file.suffix for file in path.parent.iterdir()) == [".onnx", ".proof"]
    print(verified, "verified while", 30 * TIMES, "were written")


def test_an_export_does_not_wait_for_ever(path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("lamella_onnx.files.PATIENCE", 0.1)
    handle = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        export(wide(), path)
    finally:
        os.close(handle)
    assert verify(path).agrees


INTERRUPTED = """
import os, random, signal, sys, time
import lamella as lm, lamella_onnx
from lamella_layers import Dense
path, seed, times, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
lm.set_threads(1)
rng = random.Random(seed)
model = lm.Sequential([Dense(3000)], input_shape=3)
long = 1.0
for _ in range(5):
    started = time.monotonic()
    lamella_onnx.export(model, path)
    long = min(long, time.monotonic() - started)
stopped = 0
for _ in range(times):
    model.parameters["dense_1.bias"] = model.parameters["dense_1.bias"] + 1.0
    if kind == "SIGKILL":
        if not (child := os.fork()):
            while True:
                model.parameters["dense_1.bias"] = model.parameters["dense_1.bias"] + 1.0
                lamella_onnx.export(model, path)
        time.sleep(rng.uniform(long, 4 * long))
        os.kill(child, signal.SIGKILL)
        stopped += os.waitpid(child, 0)[1] != 0
    else:
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.2 * long, 1.2 * long))
            lamella_onnx.export(model, path)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except (KeyboardInterrupt, FileNotFoundError):
            stopped += 1
    assert lamella_onnx.verify(path).agrees
lamella_onnx.export(model, path)
proofs = [name for name in os.listdir(os.path.dirname(path)) if name.endswith(".proof")]
assert len(proofs) == 1, proofs
print(stopped, "of", times, "stopped")
"""


@pytest.mark.parametrize("kind", ["SIGINT", "SIGKILL"])
def test_an_export_that_is_stopped_leaves_a_whole_file(kind, path, rng):
    process = in_a_process(
        INTERRUPTED, path, rng.randrange(10**6), 30 * TIMES, kind, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, error = process.communicate(timeout=60 * TIMES)
    assert process.returncode == 0, error
    print(kind, out)


@pytest.mark.parametrize("then", ["before", "after"])
@pytest.mark.parametrize("name", ["proof", "model.onnx"])
def test_an_interrupt_in_a_rename_leaves_a_whole_file(name, then, path, monkeypatch):
    export(wide(0), path)
    replace = os.replace

    def interrupted(a, b):
        if then == "after":
            replace(a, b)
        if str(b).endswith(name):
            signal.raise_signal(signal.SIGINT)
        if then == "before":
            replace(a, b)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, FileNotFoundError)):
        export(wide(1), path)
    monkeypatch.undo()
    report = verify(path, wide(int((name, then) == ("model.onnx", "after"))))
    assert report.agrees


def test_a_file_exported_anew_while_it_is_verified_agrees(path, monkeypatch):
    from lamella_onnx import proof

    export(wide(0), path)
    read, first_time = proof.read, [True]

    def slow(file):
        content = read(file)
        if first_time:
            first_time.clear()
            export(wide(1), path)
        return content

    monkeypatch.setattr(proof, "read", slow)
    assert verify(path, wide(1)).agrees


# The command


def test_a_saved_model_is_exported_by_a_command(tmp_path, capsys):
    saved, file = tmp_path / "model.lamella", tmp_path / "model.onnx"
    model = dense()
    model.save(saved)
    assert cli.main(["export", str(saved), str(file)]) == 0
    assert "batch of 7" in capsys.readouterr().out
    assert verify(file, model).agrees
    assert cli.main(["export", str(tmp_path / "nowhere"), str(file)]) == 2
    assert cli.main(["export", str(saved), str(tmp_path / "nowhere" / "model.onnx")]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("module", ["lamella_onnx.runtime", "lamella_serve.session", "lamella_onnx.commands"])
def test_onnxruntime_reports_nothing(module, tmp_path):
    """What it is going to report stands in a folder of the user's home."""
    code = f"""
import {module}, numpy, onnxruntime
from onnx import TensorProto, helper
x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
"""
    clean = {key: value for key, value in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")}
    clean |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], env=clean, check=True)
    assert list(tmp_path.rglob("*")) == []
