"""Models of a server: where they are found, which are refused and why, and how they come and go while it serves."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import threading
import weakref

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from serving import Client, one, tensor, values, write

import lamella as lm
import lamella_serve

SAME = "g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }"
LABELS = ["ant", "bee", "cat"]


def plus(folder, number, name="model.onnx"):
    """Write a model that adds a number, so that answers tell who gave them."""
    return write(folder / name, f"g (float[N,3] x) => (float[N,3] y) <float n = {{{number}}}> {{ y = Add(x, n) }}")


def configure(folder, text):
    (folder / "config.pbtxt").write_text(text)


def answer(client, name, version=""):
    path = f"/v2/models/{name}/infer" if not version else f"/v2/models/{name}/versions/{version}/infer"
    return values(client.post(path, one([0, 1, 2])))


def classes(client, name):
    wanted = [{"name": "y", "parameters": {"classification": 1}}]
    return values(client.infer(name, one([0, 5, 0], outputs=wanted)))


def index(client, **body):
    rows = client.post("/v2/repository/index", body).json
    return {row["name"] + row.get("version", ""): (row.get("state"), row.get("reason")) for row in rows}


def refused(*paths, **options):
    """Why these paths can't be served."""
    with pytest.raises(lm.DataError) as caught:
        lamella_serve.application(*paths, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Places


def test_a_file_is_a_model_of_its_name(tmp_path):
    client = Client(plus(tmp_path, 1, "grüne Ziffern.v2.onnx"))
    assert index(client) == {"grüne Ziffern.v21": ("READY", None)}
    assert answer(client, "grüne Ziffern.v2") == answer(client, "grüne Ziffern.v2", "1") == [1, 2, 3]


def test_a_folder_holds_a_model_for_each_file(tmp_path):
    plus(tmp_path, 1, "a.onnx")
    plus(tmp_path, 2, "b.onnx")
    (tmp_path / ".hidden.onnx").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    client = Client(tmp_path)
    assert list(index(client)) == ["a1", "b1"]
    assert (answer(client, "a"), answer(client, "b")) == ([1, 2, 3], [2, 3, 4])


def test_a_repository_holds_versions_of_each_model(tmp_path):
    for version in (2, 10, 1):
        plus(tmp_path / "digits" / str(version), version)
    for other in ("0", "01", "v3", "-1", ".4", "latest"):
        (tmp_path / "digits" / other).mkdir()
    plus(tmp_path / "words" / "7", 7)
    plus(tmp_path, 3, "alone.onnx")
    client = Client(tmp_path)
    assert list(index(client)) == ["alone1", "digits1", "digits2", "digits10", "words7"]
    assert client.get("/v2/models/digits").json["versions"] == ["1", "2", "10"]
    assert client.get("/v2/models/digits/versions/2").json["versions"] == ["2"]
    assert answer(client, "digits") == [10, 11, 12]  # the newest by number
    assert answer(client, "digits", "2") == [2, 3, 4]
    assert client.infer("words", one([0, 0, 0])).json["model_version"] == "7"


def test_the_folder_of_one_model_is_a_place_too(tmp_path, monkeypatch):
    plus(tmp_path / "digits" / "1", 1)
    assert answer(Client(tmp_path / "digits"), "digits") == [1, 2, 3]
    monkeypatch.chdir(tmp_path / "digits")
    assert answer(Client("."), "digits") == [1, 2, 3]


def test_several_paths_are_served_together(tmp_path):
    client = Client(plus(tmp_path, 1, "a.onnx"), plus(tmp_path / "elsewhere", 2, "b.onnx").parent)
    assert (answer(client, "a"), answer(client, "b")) == ([1, 2, 3], [2, 3, 4])


def test_links_within_a_folder_are_followed_and_those_out_of_it_are_not(tmp_path):
    outside = plus(tmp_path / "outside" / "1", 1)
    (tmp_path / "models").mkdir()
    plus(tmp_path / "models" / "..data", 2)  # so Kubernetes mounts files
    (tmp_path / "models" / "inside.onnx").symlink_to("..data/model.onnx")
    assert answer(Client(tmp_path / "models"), "inside") == [2, 3, 4]
    (tmp_path / "models" / "a.onnx").symlink_to(outside)
    assert "is a link to a place outside of" in refused(tmp_path / "models")
    (tmp_path / "models" / "a.onnx").unlink()
    (tmp_path / "models" / "b").symlink_to(outside.parent.parent)
    assert "is a link to a place outside of" in refused(tmp_path / "models")
    assert answer(Client(tmp_path / "models" / "b"), "b") == [1, 2, 3]  # this folder was named


def test_links_out_of_a_folder_are_not_followed_for_configurations_and_labels_either(tmp_path):
    outside, models = tmp_path / "outside", tmp_path / "models"
    plus(models / "digits" / "1", 1)
    outside.mkdir()
    (outside / "secret").write_text("password: hunter2")
    (models / "digits" / "config.pbtxt").symlink_to(outside / "secret")
    assert "config.pbtxt is a link to a place outside of" in refused(models)
    (models / "digits" / "config.pbtxt").unlink()
    configure(models / "digits", 'output { name: "y" label_filename: "names" }')
    (models / "digits" / "names").symlink_to(outside / "secret")
    assert "outside of the model's folder" in refused(models)
    shutil.rmtree(models / "digits")
    (models / "digits").symlink_to(outside)  # a folder elsewhere, whose model is a link back into this one
    (outside / "1").mkdir()
    (outside / "1" / "model.onnx").symlink_to(plus(models / ".kept", 1))
    configure(outside, 'output { name: "y" label_filename: "secret" }')
    assert "is a link to a place outside of" in refused(models)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: None, "no model is in this folder"),
        (lambda folder: (folder / "a" / "1").mkdir(parents=True), "/a/1/model.onnx: No such file"),
        (lambda folder: (folder / "a.onnx").write_bytes(b""), "a.onnx: this is no ONNX file"),
        (lambda folder: (folder / "a.onnx").write_bytes(b"\xff" * 99), "a.onnx: this is no ONNX file"),
        (lambda folder: (folder / "a.onnx").write_bytes(plus(folder, 1, "b").read_bytes()[:-9]), "is no ONNX file"),
        (lambda folder: (plus(folder, 1, "a.onnx"), plus(folder / "a" / "1", 1)), "two models have the name 'a'"),
        (lambda folder: os.mkfifo(folder / "a"), "no model is in this folder"),
        (lambda folder: (plus(folder / "a" / "1", 1), os.mkfifo(folder / "a" / "config.pbtxt")), "this is a pipe"),
        (lambda folder: (folder / "a" / "1" / "model.onnx").mkdir(parents=True), "expected a file, this is a folder"),
    ],
)
def test_a_place_without_a_model_is_refused(tmp_path, make, reason):
    make(tmp_path)
    assert reason in refused(tmp_path)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.onnx: there is no such file or folder"):
        lamella_serve.application(tmp_path / "nowhere.onnx")
    path = plus(tmp_path, 1)
    assert "two models have the name 'model'" in refused(path, path)


# config.pbtxt


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", ["3"]),  # as in Triton: the newest
        ("version_policy { latest { num_versions: 2 } }", ["2", "3"]),
        ("version_policy { latest { } }", ["3"]),
        ("version_policy { all { } }", ["1", "2", "3"]),
        ("version_policy { specific { versions: [1, 3, 9] } }", ["1", "3"]),
        (None, ["1", "2", "3"]),
    ],
)
def test_a_configuration_chooses_versions(tmp_path, policy, served):
    for version in (1, 2, 3):
        plus(tmp_path / "digits" / str(version), version)
    if policy is not None:
        configure(tmp_path / "digits", f'name: "digits" platform: "onnxruntime_onnx" {policy}')
    client = Client(tmp_path)
    assert client.get("/v2/models/digits").json["versions"] == served
    assert [row.removeprefix("digits") for row in index(client)] == served


@pytest.mark.parametrize(
    ("said", "most", "joined"),
    [
        ("", 1024, True),
        ("max_batch_size: 2", 2, True),
        ("max_batch_size: 2000", 1024, True),
        ("max_batch_size: 0", 0, False),
    ],
)
def test_a_configuration_limits_the_batch(tmp_path, said, most, joined):
    plus(tmp_path / "digits" / "1", 1)
    configure(tmp_path / "digits", f'backend: "onnxruntime" {said}')
    client = Client(tmp_path)
    assert client.get("/v2/models/digits/config").json["max_batch_size"] == most
    assert client.get("/about/digits").json["batching"]["joined"] is joined
    assert ("dynamic_batching" in client.get("/v2/models/digits/config").json) is joined
    request = {"inputs": [tensor("FP32", [3, 3], [0] * 9)]}
    assert client.infer("digits", request).status == (400 if most == 2 else 200)


def test_a_configuration_may_hold_whatever_triton_knows(tmp_path):
    plus(tmp_path / "digits" / "1", 1, "other.onnx")
    configure(
        tmp_path / "digits",
        """
        name: "digits"
        platform: "onnxruntime_onnx"
        default_model_filename: "other.onnx"
        max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [3] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [3] label_filename: "names.txt" } ]
        instance_group [ { count: 2 kind: KIND_CPU } ]
        dynamic_batching { max_queue_delay_microseconds: 100 }
        optimization { graph { level: 1 } }
        parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
        something_new { of: "tomorrow" }
        """,
    )
    (tmp_path / "digits" / "names.txt").write_text("ant\nbee\ncat\n")
    client = Client(tmp_path)
    assert classes(client, "digits") == ["6.000000:1:bee"]
    assert client.get("/v2/models/digits/config").json["output"][0]["label_filename"] == "labels.txt"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "config.pbtxt can't be read"),
        ('platform: "tensorflow_graphdef"', "is for 'tensorflow_graphdef'"),
        ('backend: "python"', "is for 'python'"),
        ('default_model_filename: "../secret.onnx"', "expected one in the folder of a version"),
        ('default_model_filename: "other.onnx"', "No such file"),
        ("max_batch_size: -1", "max_batch_size"),
        ("version_policy { specific { versions: [2] } }", "there is no version to serve"),
        ('output [ { name: "y" label_filename: "none.txt" } ]', "labels 'none.txt', which are not there"),
        ('output [ { name: "y" label_filename: "../secret.txt" } ]', "outside of the model's folder"),
        ('output [ { name: "y" label_filename: "/etc/hostname" } ]', "outside of the model's folder"),
        ('output [ { name: "y" label_filename: "link.txt" } ]', "outside of the model's folder"),
        ('output [ { name: "y" label_filename: "latin.txt" } ]', "no text in UTF-8"),
        ('output [ { name: "y" label_filename: "1" } ]', "expected a file, this is a folder"),
    ],
)
def test_a_configuration_that_asks_for_something_else_is_refused(tmp_path, text, reason):
    plus(tmp_path / "models" / "digits" / "1", 1)
    plus(tmp_path / "models" / "digits", 1, "secret.onnx")
    (tmp_path / "models" / "secret.txt").write_text("secret")
    (tmp_path / "models" / "digits" / "link.txt").symlink_to("../secret.txt")
    (tmp_path / "models" / "digits" / "latin.txt").write_bytes("grün".encode("latin-1"))
    configure(tmp_path / "models" / "digits", text)
    said = refused(tmp_path / "models")
    assert "digits" in said
    assert reason in said


def test_a_configuration_that_is_no_text_is_refused(tmp_path):
    plus(tmp_path / "digits" / "1", 1)
    (tmp_path / "digits" / "config.pbtxt").write_bytes(b"\xff\xfe\0")
    assert "config.pbtxt can't be read" in refused(tmp_path)


# Labels


@pytest.mark.parametrize(
    ("entry", "got"),
    [
        (json.dumps(LABELS), "5.000000:1:bee"),
        ("ant\nbee\ncat", "5.000000:1:bee"),
        ("ant\nbee\ncat\n", "5.000000:1:bee"),
        ('["ant", "bee"]', "5.000000:1"),  # of something else, then
        ('["ant", "bee", 3]', "5.000000:1"),
        ('{"0": "ant", "1": "bee", "2": "cat"}', "5.000000:1"),
        ("[" * 100_000, "5.000000:1"),
        ('["\\ud800", "b", "c"]', "5.000000:1"),  # half of a surrogate pair
        ("", "5.000000:1"),
    ],
)
def test_labels_stand_in_the_metadata_of_the_file(tmp_path, entry, got):
    assert classes(Client(write(tmp_path / "digits.onnx", SAME, labels=entry)), "digits") == [got]


def test_labels_belong_to_each_output_with_as_many_places(tmp_path):
    graph = (
        "g (float[N,3] x) => (float[N,3] y, int64[N] i, float[N,2] z) { y = Identity(x)  "
        "i = ArgMax<axis=1, keepdims=0>(x)  two = Constant<value_ints=[2]>()  z, j = TopK(x, two) }"
    )
    about = Client(write(tmp_path / "digits.onnx", graph, labels=json.dumps(LABELS))).get("/about/digits").json
    assert [output["labels"] for output in about["outputs"]] == [LABELS, None, None]
    two = "g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Identity(x)  z = Neg(x) }"
    config = Client(write(tmp_path / "two.onnx", two, labels=json.dumps(LABELS))).get("/v2/models/two/config").json
    assert [output["label_filename"] for output in config["output"]] == ["labels_1.txt", "labels_2.txt"]


# Models that are refused


def with_output(kind, graph="g (float[N,3] x) => ({} y) {{ y = {} }}"):
    return lambda folder: write(folder / "model.onnx", graph.format(*kind))


def value(element, shape=("N", 3)):
    return helper.make_tensor_value_info("x", element, shape)


def passing(given):
    """A graph that passes on one value."""

    def make(folder):
        out = type(given).FromString(given.SerializeToString())
        out.name = "y"
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [given], [out])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return make


def elements_of(kind):
    def make(folder):
        proto = onnx.load(plus(folder, 1))
        proto.graph.input[0].type.tensor_type.elem_type = kind
        (folder / "model.onnx").write_bytes(proto.SerializeToString())

    return make


def spoilt(folder, text):
    """A file some of whose text is no UTF-8."""
    content = (folder / "model.onnx").read_bytes()
    assert text in content
    return content.replace(text, text[:1] + b"\xff" * (len(text) - 1))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (with_output(["seq(float[N,3])", "SequenceConstruct(x, x)"]), "output 'y' is a sequence, and the"),
        (with_output(["optional(float[N,3])", "Optional(x)"]), "output 'y' is an optional"),
        (with_output(["float8e4m3fn[N,3]", "Cast<to=17>(x)"]), "elements of FLOAT8E4M3FN"),
        (with_output(["int4[N,3]", "Cast<to=22>(x)"]), "elements of INT4"),
        (passing(value(TensorProto.COMPLEX64)), "input 'x' has elements of COMPLEX64"),
        (passing(value(TensorProto.UNDEFINED)), "input 'x' has elements of UNDEFINED"),
        (passing(helper.make_value_info("x", onnx.TypeProto())), "input 'x' is a value without a type"),
        (
            passing(helper.make_value_info("x", helper.make_map_type_proto(7, helper.make_tensor_type_proto(1, ())))),
            "input 'x' is a map, and the protocol knows tensors only",
        ),
        (with_output(["float[N,3]", "Nonsense(x)"]), "can't load it: "),
        (with_output(["float[N,3]", "Add(x, z)"]), "can't load it: "),
        (passing(value(TensorProto.FLOAT, ("N", *[1] * 70))), "it can't be read: "),
        (elements_of(999), "it can't be read: "),
        (lambda folder: plus(folder, 1).write_bytes(spoilt(folder, b"\x01x")), "has a name that is no UTF-8"),
        (
            with_output(["bfloat16[N]", "Cast<to=16>(x)"], "g (float[N] x, string[N] s) => ({} y) {{ y = {} }}"),
            "BF16 beside strings",
        ),
    ],
)
def test_a_model_that_the_protocol_can_t_carry_is_refused(tmp_path, make, reason):
    make(tmp_path)
    said = refused(tmp_path / "model.onnx")
    assert said.startswith(f"{tmp_path / 'model.onnx'}: ")
    assert reason in said
    assert len(said) < 500
    with pytest.raises(lm.DataError) as caught:
        lamella_serve.export_repository([tmp_path / "model.onnx"], tmp_path / "models")
    assert str(caught.value) == said


def test_maps_of_scikit_learn_are_refused_with_the_way_out(tmp_path):
    scores = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, ()))
    )
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    graph = helper.make_graph([node], "g", [value(TensorProto.FLOAT)], [helper.make_value_info("y", scores)])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 4)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
    assert "options={'zipmap': False}" in refused(tmp_path / "model.onnx")


@pytest.mark.parametrize("text", [b"\x06author", b"\x08somebody", b"\x05maker", b"\x05notes"])
def test_texts_that_are_no_text_are_shown_as_far_as_they_are(tmp_path, text):
    proto = onnx.load(write(tmp_path / "model.onnx", SAME, author="somebody"))
    proto.producer_name, proto.doc_string = "maker", "notes"
    onnx.save(proto, tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(spoilt(tmp_path, text))
    assert "\ufffd" in str(Client(tmp_path).get("/about/model").json)


@pytest.mark.parametrize("report", ['{"a": 123456789012345678901234567890}', "[" * 400 + "]" * 400, '"\\ud800"'])
def test_a_report_that_can_t_be_written_as_json_is_left_out(tmp_path, report):
    client = Client(write(tmp_path / "model.onnx", SAME, **{"lamella.report": report}))
    assert client.get("/about/model").json["parity"] is None


def test_a_file_whose_name_is_no_text_is_shown_as_far_as_it_is(tmp_path):
    plus(tmp_path, 1)
    (tmp_path / "model.onnx").rename(tmp_path / os.fsdecode(b"\xff.onnx"))
    assert index(Client(tmp_path)) == {"\ufffd1": ("READY", None)}


def test_inputs_with_a_default_are_left_out(tmp_path):
    graph = "g (float[N,3] x, float[3] w) => (float[N,3] y) { y = Mul(x, w) }"
    client = Client(write(tmp_path / "model.onnx", graph, {"w": np.array([1, 2, 3.0])}))
    assert [given["name"] for given in client.get("/v2/models/model").json["inputs"]] == ["x"]
    assert answer(client, "model") == [0, 2, 6]


# Arrays in other files


def external(folder, location, data="weights.bin"):
    """Write a model whose only array stands in another file."""
    plus(folder, 5)
    proto = onnx.load(folder / "model.onnx")
    (array,) = proto.graph.initializer
    (folder / data).parent.mkdir(parents=True, exist_ok=True)
    (folder / data).write_bytes(np.float32(5).tobytes())
    array.ClearField("float_data")
    array.data_location = TensorProto.EXTERNAL
    array.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("location", ["weights.bin", "deep/weights.bin"])
def test_arrays_in_other_files_are_read_if_that_is_allowed(tmp_path, location):
    path = external(tmp_path, location, location)
    said = refused(path)
    assert f"the data of array 'n' stand in another file, '{location}'. Likely fix: --external-data" in said
    client = Client(path, external_data=True)
    assert answer(client, "model") == [5, 6, 7]
    assert client.get("/about/model").json["size"] == path.stat().st_size + 4


def test_arrays_outside_of_the_folder_of_a_model_are_never_read(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(4))
    (folder / "link.bin").symlink_to("../weights.bin")
    for location in ("../weights.bin", str(tmp_path / "weights.bin"), "link.bin"):
        assert "outside of the model's folder" in refused(external(folder, location), external_data=True)
    for location in ("none.bin", ".", ""):
        assert "is no file" in refused(external(folder, location), external_data=True)


def test_arrays_that_are_cut_short_are_refused(tmp_path):
    path = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"\0")
    assert "can't load it" in refused(path, external_data=True)


# Arguments


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_batch_size": 0}, "max_batch_size: expected a positive int, got 0"),
        ({"batch_delay": -1}, "batch_delay: expected"),
        ({"batch_delay": float("nan")}, "batch_delay: expected"),
        ({"instances": 1.5}, "instances: expected a positive int, got 1.5"),
        ({"max_queue": 0}, "max_queue: expected a positive int"),
        ({"max_body": 0}, "max_body: expected a positive int"),
        ({"timeout": 0}, "timeout: expected"),
        ({"external_data": "yes"}, "external_data: expected"),
        ({"token": ""}, "token: expected one word of printable ASCII"),
        ({"token": " "}, "token: expected one word of printable ASCII"),
        ({"token": "grün"}, "token: expected one word of printable ASCII"),
        ({"token": 123}, "token: expected one word of printable ASCII"),
        ({"local": 1}, "local: expected"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, options, reason):
    with pytest.raises(lm.ArgumentError) as caught:
        lamella_serve.application(plus(tmp_path, 1), **options)
    assert str(caught.value).startswith(f"application: {reason}")


# How models come and go


@pytest.fixture
def client(tmp_path):
    plus(tmp_path, 1, "digits.onnx")
    plus(tmp_path, 2, "words.onnx")
    return Client(tmp_path, local=True)


def load(client, name="digits", **body):
    return client.post(f"/v2/repository/models/{name}/load", body)


def unload(client, name="digits", **body):
    return client.post(f"/v2/repository/models/{name}/unload", body)


def test_a_model_is_unloaded_and_loaded_again(client):
    reply = unload(client, parameters={"unload_dependents": True})
    assert (reply.status, reply.body) == (200, b"")
    for request in (
        ("GET", "/v2/models/digits"),
        ("GET", "/v2/models/digits/ready"),
        ("POST", "/v2/models/digits/infer"),
    ):
        reply = client.ask(*request)
        assert (reply.status, "is not loaded (unloaded)" in reply.error) == (404, True)
    assert index(client) == {"digits1": ("UNAVAILABLE", "unloaded"), "words1": ("READY", None)}
    assert list(index(client, ready=True)) == ["words1"]
    assert client.get("/v2/health/ready").status == 200
    assert b'model="digits"' not in client.get("/metrics").body
    assert answer(client, "words") == [2, 3, 4]
    assert unload(client).status == 200
    reply = load(client)
    assert (reply.status, reply.body) == (200, b"")
    assert answer(client, "digits") == [1, 2, 3]


def test_a_model_is_loaded_anew_as_it_is_there(client, tmp_path):
    assert answer(client, "digits") == [1, 2, 3]
    plus(tmp_path, 7, "digits.onnx")
    assert answer(client, "digits") == [1, 2, 3]
    assert load(client).status == 200
    assert answer(client, "digits") == [7, 8, 9]
    (stats,) = client.get("/v2/models/digits/stats").json["model_stats"]
    assert stats["inference_count"] == 1  # it is another model


def test_a_model_that_came_later_can_be_loaded(client, tmp_path):
    plus(tmp_path, 3, "new.onnx")
    assert index(client)["new"] == (None, None)
    assert client.infer("new", one([0, 0, 0])).status == 404
    assert load(client, "new").status == 200
    assert answer(client, "new") == [3, 4, 5]


def test_a_model_that_can_t_be_loaded_anew_stays(client, tmp_path):
    (tmp_path / "digits.onnx").write_bytes(b"damaged")
    reply = load(client)
    assert (reply.status, "model 'digits' can't be loaded" in reply.error) == (400, True)
    assert answer(client, "digits") == [1, 2, 3]
    assert index(client)["digits1"] == ("READY", None)
    (tmp_path / "digits.onnx").unlink()
    assert load(client).status == 404
    assert answer(client, "digits") == [1, 2, 3]


def test_the_index_tells_why_a_model_is_not_there(tmp_path):
    plus(tmp_path / "good" / "1", 1)
    client = Client(tmp_path, local=True)
    (tmp_path / "broken" / "7").mkdir(parents=True)
    (tmp_path / "broken" / "7" / "model.onnx").write_bytes(b"damaged")
    assert index(client) == {"broken": (None, None), "good1": ("READY", None)}
    assert load(client, "broken").status == 400
    state, reason = index(client)["broken7"]
    assert (state, "this is no ONNX file" in reason) == ("UNAVAILABLE", True)
    assert reason in client.get("/v2/models/broken").error
    assert list(index(client, ready=True)) == ["good1"]
    plus(tmp_path / "broken" / "7", 7)
    assert load(client, "broken").status == 200
    assert answer(client, "broken") == [7, 8, 9]


def test_versions_come_and_go_with_the_folders(tmp_path):
    for version in (1, 2):
        plus(tmp_path / "digits" / str(version), version)
    client = Client(tmp_path, local=True)
    plus(tmp_path / "digits" / "3", 3)
    shutil.rmtree(tmp_path / "digits" / "1")
    assert load(client).status == 200
    assert client.get("/v2/models/digits").json["versions"] == ["2", "3"]
    assert answer(client, "digits") == [3, 4, 5]


def test_models_come_from_the_folders_of_the_server_only(client):
    reply = load(client, parameters={"config": "{}"})
    assert (reply.status, "send no parameters" in reply.error) == (400, True)
    for name in ("nope", "..", "digits.onnx"):
        assert load(client, name).status == 404
    for body in (b"[]", b"{", b"5"):
        assert client.post("/v2/repository/models/digits/load", body).status == 400
        assert client.post("/v2/repository/models/digits/unload", body).status == 400
    assert answer(client, "digits") == [1, 2, 3]


def test_a_client_that_vanishes_within_its_request_changes_nothing(client):
    messages = [{"type": "http.request", "body": b"", "more_body": True}, {"type": "http.disconnect"}]
    client.run(client.exchange("POST", "/v2/repository/models/digits/unload", messages))
    assert answer(client, "digits") == [1, 2, 3]


LONG = 150_000


def test_a_model_that_is_unloaded_leaves_the_memory(client):
    assert answer(client, "digits") == [1, 2, 3]
    model = weakref.ref(client.application.state.repository.get("digits"))
    session = weakref.ref(model().session)
    assert unload(client).status == 200
    gc.collect()
    assert model() is None
    assert session() is None


COUNTING = """g (int64 n, float[1] x) => (float[1] y) <bool yes = {{1}}, float one = {{{}}}> {{
  y = Loop(n, yes, x) <body = b (int64 i, bool c, float[?] a) => (bool d, float[?] s)
    {{ d = Identity(c)  s = Add(a, one) }}> }}"""


@pytest.mark.parametrize("what", ["unload", "load"])
def test_what_was_accepted_is_answered_by_the_model_it_was_for(tmp_path, what):
    write(tmp_path / "digits.onnx", COUNTING.format(1))
    client = Client(tmp_path, local=True)
    request = {"inputs": [tensor("INT64", [], [LONG], "n"), tensor("FP32", [1], [0])]}
    path = "/v2/models/digits/infer"

    async def main():
        tasks = [asyncio.create_task(client.answer("POST", path, request)) for _ in range(2)]  # one runs, one waits
        await asyncio.sleep(0.02)
        write(tmp_path / "digits.onnx", COUNTING.format(2))
        await client.answer("POST", f"/v2/repository/models/digits/{what}")
        assert not tasks[0].done()
        return [*await asyncio.gather(*tasks), await client.answer("POST", path, request)]

    first, second, third = client.run(main())
    assert values(first) == values(second) == [LONG]
    if what == "unload":
        assert third.status == 404
    else:
        assert values(third) == [2 * LONG]


def test_loads_that_wait_for_each_other_leave_threads_to_others(client, monkeypatch):
    gate = threading.Event()
    repository = client.application.state.repository
    loaded = repository._loaded
    monkeypatch.setattr(repository, "_loaded", lambda place: (gate.wait(10), loaded(place))[1])

    async def main():
        loads = [
            asyncio.create_task(client.answer("POST", "/v2/repository/models/digits/load"))
            for _ in range(40)  # more than there are threads
        ]
        await asyncio.sleep(0.05)
        try:
            async with asyncio.timeout(2):
                await asyncio.to_thread(str)  # as bodies are packed
        finally:
            gate.set()
        return await asyncio.gather(*loads)

    assert {reply.status for reply in client.run(main())} == {200}


def test_others_are_answered_while_a_model_is_loaded(client, tmp_path):
    slow = (
        "g (float[N,3] x) => (float[N,3] y) <bool yes = {1}, int64 n = {5000}> { y = Loop(n, yes, x) "
        "<body = b (int64 i, bool c, float[?,?] a) => (bool d, float[?,?] s) { d = Identity(c)  s = Neg(a) }> }"
    )
    write(tmp_path / "digits.onnx", slow)

    async def main():
        loading = asyncio.create_task(client.answer("POST", "/v2/repository/models/digits/load"))
        answered = 0
        while not loading.done():
            reply = await client.answer("POST", "/v2/models/words/infer", one([0, 1, 2]))
            assert values(reply) == [2, 3, 4]
            assert (await client.answer("GET", "/metrics")).status == 200
            answered += 1
            await asyncio.sleep(0)
        assert (await loading).status == 200
        return answered

    assert client.run(main()) > 10
    assert answer(client, "digits") == [0, 1, 2]
