"""The protocol over gRPC: a server on a loopback port, asked by a client that knows the messages only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import uvicorn
from google.protobuf import descriptor_pb2
from google.protobuf.json_format import MessageToDict
from serving import DATATYPES, packed, write

import lamella_serve
from lamella import cli
from lamella_serve import description
from lamella_serve.configuration import configuration
from lamella_serve.grpc import service
from lamella_serve.grpc.server import GrpcServer
from lamella_serve.protocol import HEALTH, SERVICE, message
from lamella_serve.refusals import Refusal

PROTOCOL = Path(lamella_serve.__file__).parent / "protocol"
GRAPHS = {
    "two": "agraph (float[N, 2] a, float[N, 2] b) => (float[N, 2] sum, float[N, 2] product)"
    "{ sum = Add(a, b) product = Mul(a, b) }",
    "scores": "agraph (float[N, 3] x) => (float[N, 3] y) { y = Identity(x) }",
    "same": "agraph (float[N, M] x) => (float[N, M] y) { y = Identity(x) }",
    "scalar": "agraph (float x) => (float y) { y = Neg(x) }",
    "loop": "agraph (int64 n) => (float y) <float zero = {0}, float one = {1}, bool on = {1}> { y = Loop (n, on, zero) "
    "<body = turn (int64 i, bool go, float x) => (bool still, float z) { still = Identity(go) z = Add(x, one) }> }",
    **{
        name.lower(): f"agraph ({kind}[N, M] x) => ({kind}[N, M] y) {{ y = Identity(x) }}"
        for name, (kind, _, _) in DATATYPES.items()
    },
}
LONG = 30_000_000  # turns of a loop: some twenty seconds, if nobody stops it


def models(folder, *names):
    """A folder with some of the models above."""
    for name in names:
        write(folder / f"{name}.onnx", GRAPHS[name], labels=json.dumps(["zero", "one", "two"]))
    return folder


class Client:
    """Calls a server by the names of calls and messages."""

    def __init__(self, port):
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{port}", [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        )

    def method(self, name, kind="unary_unary", request=None, response=None, service=SERVICE):
        return getattr(self.channel, kind)(
            f"/{service}/{name}",
            lambda content: content if isinstance(content, bytes) else content.SerializeToString(),
            message(response or f"{name}Response", service).FromString,
        )

    def call(self, name, /, metadata=(), **fields):
        return self.method(name)(message(f"{name}Request")(**fields), timeout=20, metadata=metadata)

    def said(self, name, /, **fields):
        return MessageToDict(self.call(name, **fields), preserving_proto_field_name=True)

    def infer(self, request, **options):
        return self.method("ModelInfer")(request, **{"timeout": 20, **options})

    def stream(self, requests):
        return self.method("ModelStreamInfer", "stream_stream", response="ModelStreamInferResponse")(
            iter(requests), timeout=20
        )

    def counted(self, model):
        return self.call("ModelStatistics", name=model).model_stats[0]


class Running:
    """A gRPC server on an event loop of its own."""

    def __init__(self, *paths, local=True, **options):
        self.application = lamella_serve.application(*paths, local=local, **options)
        self.loop = uvicorn.Config(self.application).get_loop_factory()()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = self.run(self.make())
        self.port = self.run(self.server.start("127.0.0.1:0"))
        self.client = Client(self.port)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    async def make(self):
        """Another server of the same models."""
        return GrpcServer(self.application.state.repository, self.application.state.access)

    def model(self, name):
        return self.application.state.repository.get(name)

    def wait_for(self, model, *, runs, waiting=0):
        """Return when so many requests run and wait."""
        queue = self.model(model).queue
        deadline = time.monotonic() + 20
        while (len(queue._running), len(queue)) != (runs, waiting):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self):
        self.client.channel.close()
        self.run(self.server.stop(0))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@contextlib.contextmanager
def running(*paths, **options):
    server = Running(*paths, **options)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(models(tmp_path_factory.mktemp("models"), *GRAPHS), max_body=20_000_000) as server:
        yield server


@pytest.fixture
def client(server):
    return server.client


def asked(model, *, outputs=(), **arrays):
    """A request with arrays as bytes."""
    request = message("ModelInferRequest")(model_name=model)
    names = {np.dtype(kind): name for name, (_, kind, _) in DATATYPES.items()}
    for name, array in arrays.items():
        datatype = names[array.dtype]
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(packed(array.ravel(), DATATYPES[datatype][1]))
    for name in outputs:
        request.outputs.add(name=name)
    return request


def typed(model, datatype, shape, field, values):
    """A request with values in a field of their own."""
    request = message("ModelInferRequest")(model_name=model)
    getattr(request.inputs.add(name="x", datatype=datatype, shape=shape).contents, field).extend(values)
    return request


def floats(*rows):
    return np.array(rows, "float32")


def refused(code, match):
    """A call that is refused with a code and words."""
    return pytest.raises(grpc.RpcError, match=f"(?s)status = StatusCode.{code}\\s+details = .*{match}")


def test_calls_that_describe_say_what_http_says(server, client):
    repository = server.application.state.repository
    assert client.call("ServerLive").live
    assert client.call("ServerReady").ready
    assert client.said("ServerMetadata") == description.server_metadata()
    metadata = client.said("ModelMetadata", name="two")
    for tensor in (*metadata["inputs"], *metadata["outputs"]):
        tensor["shape"] = [int(size) for size in tensor["shape"]]  # JSON of protobuf writes 64 bits as text
    assert metadata == description.metadata(repository, "two")
    config = client.call("ModelConfig", name="scores").config
    written = configuration(repository.get("scores"))
    assert [config.name, config.max_batch_size, config.output[0].label_filename] == ["scores", 1024, "labels.txt"]
    assert [tuple(config.input[0].dims), config.input[0].data_type] == [(3,), 11]
    assert {field.name for field, _ in config.ListFields()} == {*written}
    index = client.said("RepositoryIndex", ready=True)["models"]
    assert index[0] == {"name": "bf16", "version": "1", "state": "READY"}
    assert len(index) == len(GRAPHS)


@pytest.mark.parametrize("name", ["", SERVICE])
def test_health_checks_of_kubernetes_are_answered(client, name):
    check = client.method("Check", response="HealthCheckResponse", service=HEALTH)
    assert check(message("HealthCheckRequest", HEALTH)(service=name), timeout=20).status == 1
    with refused("NOT_FOUND", "no service 'other'"):
        check(message("HealthCheckRequest", HEALTH)(service="other"), timeout=20)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_goes_in_and_out_unchanged(client, datatype):
    _, kind, values = DATATYPES[datatype]
    array = np.array([values], kind)
    request = asked(datatype.lower(), x=array)
    response = client.infer(request)
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", datatype, list(array.shape))
    assert response.raw_output_contents == request.raw_input_contents
    assert not output.HasField("contents")


@pytest.mark.parametrize(
    ("datatype", "field"),
    [(name, f"{'u' if name[0] == 'U' else ''}int_contents") for name in DATATYPES if re.search(r"INT(8|16|32)$", name)]
    + [(name, f"{name.lower()}_contents") for name in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")],
)
def test_values_may_come_in_fields_of_their_own(client, datatype, field):
    _, kind, values = DATATYPES[datatype]
    sent = [text.encode() for text in values] if datatype == "BYTES" else values
    response = client.infer(typed(datatype.lower(), datatype, [1, len(values)], field, sent))
    assert response.raw_output_contents[0] == packed(values, kind)


def test_scalars_and_axes_of_size_0_keep_their_shape(client):
    response = client.infer(asked("scalar", x=np.array(2.5, "float32")))
    assert (list(response.outputs[0].shape), response.raw_output_contents[0]) == ([], np.float32(-2.5).tobytes())
    for datatype in ("FP32", "BYTES"):
        response = client.infer(asked(datatype.lower(), x=np.empty((2, 0), DATATYPES[datatype][1])))
        assert (list(response.outputs[0].shape), response.raw_output_contents[0]) == ([2, 0], b"")
    assert client.infer(typed("fp32", "FP32", [1, 0], "fp32_contents", [])).raw_output_contents[0] == b""


def test_an_answer_has_the_id_the_version_and_the_outputs_that_were_asked_for(client):
    request = asked("two", a=floats([1, 2]), b=floats([3, 4]))
    request.id = "mine"
    request.parameters["unknown"].string_param = "is read over"
    response = client.infer(request)
    assert (response.model_name, response.model_version, response.id) == ("two", "1", "mine")
    assert [output.name for output in response.outputs] == ["sum", "product"]
    request.outputs.add(name="product")
    request.model_version = "1"
    response = client.infer(request)
    assert [output.name for output in response.outputs] == ["product"]
    assert response.raw_output_contents[0] == floats([3, 8]).tobytes()


def test_classification_names_the_largest(client):
    request = asked("scores", x=floats([0.1, 0.7, 0.2], [3, 1, 2]), outputs=["y"])
    request.outputs[0].parameters["classification"].int64_param = 2
    response = client.infer(request)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 2])
    texts = ["0.700000:1:one", "0.200000:2:two", "3.000000:0:zero", "2.000000:2:two"]
    assert response.raw_output_contents[0] == packed(texts, "object")


def _classes(request, **choice):
    request.outputs.add(name="y").parameters["classification"].CopyFrom(message("InferParameter")(**choice))


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda r: setattr(r, "model_name", "nope"), "NOT_FOUND", "no model 'nope'"),
        (lambda r: setattr(r, "model_version", "2"), "NOT_FOUND", "has no version 2"),
        (lambda r: setattr(r, "model_version", "x"), "INVALID_ARGUMENT", "version 'x'"),
        (lambda r: setattr(r.inputs[0], "name", "z"), "INVALID_ARGUMENT", "no input 'z'"),
        (
            lambda r: setattr(r.inputs[0], "datatype", "FP64"),
            "INVALID_ARGUMENT",
            "expected datatype 'FP32', got 'FP64'",
        ),
        (lambda r: r.inputs[0].shape.append(1), "INVALID_ARGUMENT", r"expected shape \[-1, 3\]"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -1), "INVALID_ARGUMENT", "sizes of 0 or more"),
        (lambda r: r.inputs[0].shape.__setitem__(0, 2**62), "INVALID_ARGUMENT", "takes .* bytes|too large"),
        (lambda r: r.ClearField("inputs"), "INVALID_ARGUMENT", "one for each of 0 inputs, got 1"),
        (lambda r: r.raw_input_contents.append(b""), "INVALID_ARGUMENT", "one for each of 1 inputs, got 2"),
        (lambda r: r.ClearField("raw_input_contents"), "INVALID_ARGUMENT", "fp32_contents, got neither"),
        (lambda r: r.raw_input_contents.__setitem__(0, b"short"), "INVALID_ARGUMENT", "takes 12 bytes .* got 5"),
        (lambda r: r.inputs[0].contents.fp32_contents.append(1), "INVALID_ARGUMENT", "got both"),
        (lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(b"")), "INVALID_ARGUMENT", "given twice"),
        (lambda r: r.outputs.add(name="z"), "INVALID_ARGUMENT", "no output 'z'"),
        (lambda r: _classes(r, int64_param=0), "INVALID_ARGUMENT", "int64_param of 1 or more"),
        (lambda r: _classes(r, string_param="2"), "INVALID_ARGUMENT", "int64_param of 1 or more"),
        (lambda r: r.inputs[0].parameters["shared_memory_region"].Clear(), "INVALID_ARGUMENT", "no shared memory"),
        (lambda r: r.outputs.add(name="y").parameters["shared_memory_region"].Clear(), "INVALID_ARGUMENT", "no shared"),
    ],
)
def test_a_request_that_is_wrong_is_refused_with_the_reason(client, change, code, words):
    request = asked("scores", x=floats([1, 2, 3]))
    client.infer(request)
    change(request)
    with refused(code, words):
        client.infer(request)


@pytest.mark.parametrize(
    ("datatype", "shape", "field", "values", "words"),
    [
        ("FP32", [1, 2], "int_contents", [1, 2], "FP32 as fp32_contents, got int_contents"),
        ("FP32", [1, 2], "fp32_contents", [1], "takes 2 elements, got 1"),
        ("FP32", [0, 2], "fp64_contents", [1], "got fp64_contents"),
        ("FP16", [1, 1], "fp32_contents", [1], "raw_input_contents only"),
        ("INT8", [1, 1], "int_contents", [128], "INT8 holds -128 to 127"),
        ("UINT16", [1, 1], "uint_contents", [65536], "UINT16 holds 0 to 65535"),
        ("BYTES", [1, 1], "bytes_contents", [b"\xff"], "UTF-8"),
    ],
)
def test_values_that_do_not_fit_their_field_are_refused(client, datatype, shape, field, values, words):
    with refused("INVALID_ARGUMENT", words):
        client.infer(typed(datatype.lower(), datatype, shape, field, values))


@pytest.mark.parametrize("call", ["ModelInfer", "ModelMetadata", "RepositoryIndex"])
def test_what_is_no_message_is_refused(client, call):
    with refused("INVALID_ARGUMENT", f"no {call}Request"):
        client.method(call)(b"\xff\xff", timeout=20)
    with refused("INVALID_ARGUMENT", "has no request"):
        client.method(call, "stream_unary")(iter(()), timeout=20)


def test_an_unknown_call_is_unimplemented(client):
    with refused("UNIMPLEMENTED", ""):
        client.method("TraceSetting", response="ServerLiveResponse")(b"", timeout=20)


def test_a_reason_fits_into_the_header_that_carries_it(client):
    with refused("NOT_FOUND", "no model 'üü") as caught:
        client.call("ModelMetadata", name="ü" * 1_000_000)
    assert len(caught.value.details()) == 1000


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_a_message_larger_than_allowed_is_refused(client, compression):
    array = np.zeros((1, 5_000_000), "float32")
    with refused("RESOURCE_EXHAUSTED", "larger than max"):
        client.infer(asked("same", x=array), compression=compression)
    assert client.infer(asked("same", x=array[:, 1000:]), compression=compression).outputs[0].shape == [1, 4_999_000]


def test_a_call_that_ended_before_it_was_refused_ends_without_a_word():
    class Ended:
        async def abort(self, *_):
            raise grpc.aio.InternalError  # which gRPC logs with a traceback, unless it is caught

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(service._refuse(Ended(), Refusal(400, "no")))


def test_onnxruntimes_own_complaint_is_the_clients_fault(tmp_path):
    write(tmp_path / "reshape.onnx", "agraph (float[N] x, int64[K] s) => (float[A, B] y) { y = Reshape(x, s) }")
    with running(tmp_path) as server, refused("INVALID_ARGUMENT", "onnxruntime can't run"):
        server.client.infer(asked("reshape", x=np.ones(3, "float32"), s=np.array([2, 2])))


def test_a_failure_of_the_server_is_logged_and_tells_clients_nothing(client, monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("a secret")

    monkeypatch.setattr(service, "decode", broken)
    monkeypatch.setattr(service, "server_metadata", broken)
    failed = client.counted("same").inference_stats.fail.count
    with caplog.at_level(logging.ERROR), refused("INTERNAL", "its log says how") as caught:
        client.infer(asked("same", x=floats([1])))
    assert "secret" not in str(caught.value)
    assert "a secret" in caplog.text
    assert client.counted("same").inference_stats.fail.count == failed + 1
    with refused("INTERNAL", "its log says how"):
        client.call("ServerMetadata")
    answers = list(client.stream([asked("same", x=floats([1]))] * 2))
    assert [answer.error_message for answer in answers] == ["this server failed; its log says how"] * 2


def test_statistics_count_what_was_answered_and_what_was_refused(tmp_path):
    with running(models(tmp_path, "same", "two")) as server:
        for rows in (1, 1, 3):
            server.client.infer(asked("same", x=np.ones((rows, 2), "float32")))
        with pytest.raises(grpc.RpcError):
            server.client.infer(asked("same", x=np.ones(2)))
        counted = server.client.counted("same")
        assert (counted.inference_count, counted.execution_count) == (5, 3)
        assert (counted.inference_stats.success.count, counted.inference_stats.fail.count) == (3, 1)
        assert [batch.batch_size for batch in counted.batch_stats] == [1, 3]
        assert server.model("same").statistics.statuses == {200: 3, 400: 1}
        assert [one.name for one in server.client.call("ModelStatistics").model_stats] == ["same", "two"]


def test_models_are_unloaded_and_loaded(tmp_path):
    with running(models(tmp_path, "same")) as server:
        client = server.client
        assert client.call("ModelReady", name="same").ready
        assert not client.call("ModelReady", name="other").ready
        with refused("INVALID_ARGUMENT", "no number"):
            client.call("ModelReady", name="same", version="newest")
        client.call("RepositoryModelUnload", model_name="same")
        assert not client.call("ModelReady", name="same").ready
        assert client.said("RepositoryIndex")["models"] == [
            {"name": "same", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
        ]
        client.call("RepositoryModelLoad", model_name="same")
        assert client.call("ModelReady", name="same", version="1").ready
        with refused("NOT_FOUND", "no model 'other'"):
            client.call("RepositoryModelLoad", model_name="other")
        config = {"config": message("ModelRepositoryParameter")(string_param="{}")}
        with refused("INVALID_ARGUMENT", "send no parameters"):
            client.call("RepositoryModelLoad", model_name="same", parameters=config)


def test_only_who_may_loads_models(tmp_path):
    with running(models(tmp_path, "same"), local=False) as server:
        for call in ("RepositoryModelLoad", "RepositoryModelUnload"):
            with refused("PERMISSION_DENIED", "only with a bearer token"):
                server.client.call(call, model_name="same")
        assert server.client.call("ModelReady", name="same").ready


def test_a_token_is_needed_for_all_but_health(tmp_path):
    with running(models(tmp_path, "same"), token="secret") as server:
        client = server.client
        for metadata in [(), [("authorization", "Bearer wrong")], [("authorization", "secret")]]:
            with refused("UNAUTHENTICATED", "bearer token"):
                client.call("ServerMetadata", metadata)
            with refused("UNAUTHENTICATED", "bearer token"):
                client.infer(asked("same", x=floats([1])), metadata=metadata)
            with refused("UNAUTHENTICATED", "bearer token"):
                list(
                    client.method("ModelStreamInfer", "stream_stream", response="ModelStreamInferResponse")(
                        iter([asked("same", x=floats([1]))]), timeout=20, metadata=metadata
                    )
                )
        assert client.call("ServerReady").ready
        assert client.call("ServerLive").live
        check = client.method("Check", response="HealthCheckResponse", service=HEALTH)
        assert check(b"", timeout=20).status == 1
        assert client.infer(asked("same", x=floats([1])), metadata=[("authorization", "Bearer secret")]).outputs


def test_a_stream_answers_in_order_and_survives_requests_that_are_refused(client):
    good, unknown, wrong = asked("same", x=floats([1])), asked("nope", x=floats([1])), asked("same", x=np.ones(1))
    good.id, unknown.id, wrong.id = "1", "2", "3"
    answers = list(client.stream([good, unknown, wrong, b"\xff\xff", good]))
    assert [answer.infer_response.id for answer in answers] == ["1", "2", "3", "", "1"]
    errors = ["^$", "no model 'nope'", "expected datatype 'FP32'", "no ModelInferRequest", "^$"]
    assert all(re.search(words, answer.error_message) for words, answer in zip(errors, answers, strict=True))
    for answer in (answers[0], answers[-1]):
        assert answer.infer_response.raw_output_contents[0] == floats([1]).tobytes()
        assert answer.infer_response.parameters["triton_final_response"].bool_param


def test_a_stream_that_its_client_cancels_ends_without_a_word(server, caplog):
    going = threading.Event()

    def requests():
        yield asked("same", x=floats([1]))
        going.wait(20)

    stream = server.client.stream(requests())
    next(stream)
    stream.cancel()
    going.set()
    deadline = time.monotonic() + 20
    while server.server._service._idle:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.client.call("ServerLive")
    assert caplog.records == []


def test_a_cancelled_run_is_stopped_and_one_that_waits_never_runs(tmp_path):
    with running(models(tmp_path, "loop")) as server:
        client = server.client
        infer = client.method("ModelInfer")
        calls = [infer.future(asked("loop", n=np.array(LONG)), timeout=20) for _ in range(5)]
        server.wait_for("loop", runs=1, waiting=4)
        last = infer.future(asked("loop", n=np.array(7)), timeout=20)
        for call in calls:
            call.cancel()
        began = time.monotonic()
        assert last.result().raw_output_contents[0] == np.float32(7).tobytes()
        assert time.monotonic() - began < 2
        assert client.counted("loop").execution_count == 1
        assert server.model("loop").statistics.statuses == {499: 5, 200: 1}


def test_a_request_that_takes_too_long_is_told_so(tmp_path):
    with running(models(tmp_path, "loop"), timeout=0.3) as server:
        with refused("UNAVAILABLE", "was not done within 0.3 seconds"):
            server.client.infer(asked("loop", n=np.array(LONG)))
        with refused("DEADLINE_EXCEEDED", "did not come within 0.3 seconds"):
            server.client.method("ModelInfer", "stream_unary")(_never(), timeout=20)
        assert server.client.infer(asked("loop", n=np.array(1))).outputs


def _never():
    """Requests of a client that has begun to ask, and says nothing more."""
    time.sleep(1)
    yield from ()


def test_a_full_queue_refuses(tmp_path):
    with running(models(tmp_path, "loop"), max_queue=1) as server:
        infer = server.client.method("ModelInfer")
        calls = [infer.future(asked("loop", n=np.array(LONG)), timeout=20)]
        server.wait_for("loop", runs=1)
        calls.append(infer.future(asked("loop", n=np.array(1)), timeout=20))
        server.wait_for("loop", runs=1, waiting=1)
        with refused("RESOURCE_EXHAUSTED", "wait for this model already"):
            server.client.infer(asked("loop", n=np.array(1)))
        calls[0].cancel()
        assert calls[1].result().outputs


def test_answers_of_calls_at_a_time_are_each_their_own(server):
    rng = np.random.default_rng(0)
    infer = server.client.method("ModelInfer")

    def ask(k):
        array = np.full((k % 4 + 1, 100_000 if k % 10 == 0 else 3), k, "float32") + rng.random(1).astype("float32")
        return array, infer.future(asked("same", x=array), timeout=20)

    with ThreadPoolExecutor(8) as threads:
        for array, call in threads.map(ask, range(400)):
            assert call.result().raw_output_contents[0] == array.tobytes()


def test_garbage_on_a_connection_hurts_nobody_else(server):
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(garbage)
    assert server.client.call("ServerReady").ready


def test_an_end_answers_what_was_accepted_and_ends_streams_that_wait(tmp_path):
    with running(models(tmp_path, "loop", "same")) as server:
        client, going = server.client, threading.Event()

        def requests():
            yield asked("same", x=floats([1]))
            going.wait(20)

        stream = client.stream(requests())
        next(stream)
        call = client.method("ModelInfer").future(asked("loop", n=np.array(1_000_000)), timeout=20)
        server.wait_for("loop", runs=1)
        began = time.monotonic()
        server.run(server.server.stop(20))
        assert time.monotonic() - began < 10
        assert call.result().raw_output_contents[0] == np.float32(1_000_000).tobytes()
        with refused("UNAVAILABLE", "shutting down"):
            next(stream)
        going.set()


def test_a_call_that_does_not_end_in_time_is_given_up(tmp_path):
    with running(models(tmp_path, "loop")) as server:
        call = server.client.method("ModelInfer").future(asked("loop", n=np.array(LONG)), timeout=20)
        server.wait_for("loop", runs=1)
        server.run(server.server.stop(0.2))
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


def test_a_port_that_is_taken_is_an_error(tmp_path):
    with running(models(tmp_path, "same")) as server:
        address = f"127.0.0.1:{server.port}"
        another = server.run(server.make())
        with pytest.raises(OSError, match=f"gRPC can't listen on {address}"):
            server.run(another.start(address))


def test_the_command_serves_both_and_answers_what_it_accepted_when_it_ends(tmp_path):
    command = ["lamella", "serve", str(models(tmp_path, "loop")), "--port", "0", "--grpc-port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = next(line for line in process.stdout if line.startswith("listening"))
            port = re.search(r"gRPC on 127.0.0.1:(\d+);", line)[1]
            client = Client(port)
            assert client.call("ModelReady", name="loop").ready
            infer = client.method("ModelInfer")
            calls = [infer.future(asked("loop", n=np.array(200_000)), timeout=20) for _ in range(5)]
            while not any(call.done() for call in calls):
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            codes = [call.code() for call in calls]
            assert codes.count(grpc.StatusCode.OK) > 1
            assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}, "it came too late, if not answered"
            assert process.wait(10) == 0
            client.channel.close()
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()


def test_without_grpcio_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert cli.main(["serve", str(tmp_path), "--grpc-port", "0"]) != 0
    assert "pip install 'lamella[grpc]'" in capsys.readouterr().err


def test_messages_are_what_protoc_makes_of_the_definitions(tmp_path):
    made = tmp_path / "made.binpb"
    files = sorted(str(file) for file in PROTOCOL.glob("*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOCOL), f"--descriptor_set_out={made}", *files],
        check=True,
    )
    kept, fresh = (
        descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes()) for file in (PROTOCOL / "messages.binpb", made)
    )
    assert kept == fresh, "make protocol"


def test_names_numbers_and_types_of_fields_are_tritons():
    kept = descriptor_pb2.FileDescriptorSet.FromString((PROTOCOL / "messages.binpb").read_bytes())
    (file,) = [file for file in kept.file if file.name == "triton_extensions.proto"]
    facts = (Path(__file__).parent / "files" / "triton_messages.txt").read_text().splitlines()[1:]
    assert sorted(_lines(file, "")) == facts


def _lines(scope, prefix):
    """A line for each message and enumeration: the number, the name and the type of all it has."""
    for one in scope.enum_type:
        yield f"{prefix}{one.name}: " + ", ".join(f"{value.number} {value.name}" for value in one.value)
    for one in scope.message_type if scope.DESCRIPTOR.name == "FileDescriptorProto" else scope.nested_type:
        fields = sorted(one.field, key=lambda field: field.number)
        yield f"{prefix}{one.name}: ".rstrip(" " if not fields else "") + ", ".join(map(_line, fields))
        yield from _lines(one, f"{prefix}{one.name}.")


def _line(field):
    kind = field.type_name.rpartition(".")[2] or field.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"{field.number} {field.name} {kind}{'*' if field.label == field.LABEL_REPEATED else ''}"
