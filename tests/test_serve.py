"""The Open Inference Protocol over HTTP: what each address answers, how bodies travel, and who may ask."""

from __future__ import annotations

import copy
import datetime
import gzip
import json
import logging
import time
from unittest import mock

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import DATATYPES, PACK, UNPACK, Client, in_binary, one, packed, tensor, values, write
from starlette.applications import Starlette
from starlette.routing import Mount

from lamella.version import __version__
from lamella_serve import logs

LABELS = ["ant", "bee", "cat"]
DIGITS = "g (float[N,3] x) => (float[N,3] p) { p = Identity(x) }"


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, (onnx_type, _, _) in DATATYPES.items():
        write(folder / f"any_{name}.onnx", f"g ({onnx_type}[N,K] x) => ({onnx_type}[N,K] y) {{ y = Identity(x) }}")
    write(folder / "digits.onnx", DIGITS, labels=json.dumps(LABELS), author="somebody")
    write(
        folder / "two.onnx",
        "g (float[N,2] a, int64[N] b) => (float[N,2] twice, int64[N] same) { twice = Add(a, a)  same = Identity(b) }",
    )
    write(folder / "matrix.onnx", "g (float[2,3] x) => (float[3,2] y) { y = Transpose(x) }")
    write(folder / "scalar.onnx", "g (string x) => (string y) { y = Identity(x) }")
    return Client(folder, local=True, max_body=100_000)


# Addresses


def test_the_server_says_what_it_is(client):
    assert client.get("/v2").json == {
        "name": "lamella",
        "version": __version__,
        "extensions": [
            "classification",
            "model_repository",
            "model_configuration",
            "binary_tensor_data",
            "statistics",
        ],
    }


@pytest.mark.parametrize(
    "path",
    ["/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready", "/v2/models/digits/versions/1/ready"],
)
def test_what_is_ready_answers_without_a_body(client, path):
    assert client.get(path)[::2] == (200, b"")


@pytest.mark.parametrize("path", ["/v2/models/two", "/v2/models/two/versions/1"])
def test_metadata_name_what_a_model_takes_and_gives(client, path):
    a, b = {"name": "a", "datatype": "FP32", "shape": [-1, 2]}, {"name": "b", "datatype": "INT64", "shape": [-1]}
    assert client.get(path).json == {
        "name": "two",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [a, b],
        "outputs": [{**a, "name": "twice"}, {**b, "name": "same"}],
    }


@pytest.mark.parametrize("name", DATATYPES)
def test_metadata_name_the_datatype(client, name):
    assert client.get(f"/v2/models/any_{name}").json["inputs"] == [{"name": "x", "datatype": name, "shape": [-1, -1]}]


@pytest.mark.parametrize("path", ["/v2/models/digits/config", "/v2/models/digits/versions/1/config"])
def test_the_configuration_leaves_out_the_batch_axis(client, path):
    config = client.get(path).json
    assert config["name"] == "digits"
    assert config["platform"] == "onnxruntime_onnx"
    assert config["max_batch_size"] == 1024
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}]
    assert config["output"] == [{"name": "p", "data_type": "TYPE_FP32", "dims": [3], "label_filename": "labels.txt"}]
    assert "dynamic_batching" in config


def test_the_configuration_of_a_model_without_a_batch_axis_has_all_axes(client):
    config = client.get("/v2/models/matrix/config").json
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [2, 3]}]
    assert "dynamic_batching" not in config
    scalar = {"name": "x", "data_type": "TYPE_STRING", "dims": [1]}  # Triton knows no scalars
    assert client.get("/v2/models/scalar/config").json["input"] == [scalar]


def test_the_index_lists_all_models(client):
    rows = client.post("/v2/repository/index").json
    assert [row["name"] for row in rows] == sorted(model.name for model in client.application.state.repository)
    assert {"name": "two", "version": "1", "state": "READY"} in rows
    assert client.post("/v2/repository/index", {"ready": True}).json == rows


def test_the_page_gets_an_example_that_works(client):
    about = client.get("/about/digits").json
    assert (about["name"], about["version"], about["versions"]) == ("digits", "1", ["1"])
    assert (about["opset"], about["ir_version"], about["parity"]) == (21, 10, None)
    assert about["metadata"] == {"labels": json.dumps(LABELS), "author": "somebody"}
    assert about["outputs"][0]["labels"] == LABELS
    assert about["batching"]["joined"] is True
    assert about["milliseconds_per_row"] > 0
    assert client.infer("digits", about["example"]).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/nope/ready", 404),
        ("GET", "/v2/models/nope/config", 404),
        ("GET", "/v2/models/nope/stats", 404),
        ("GET", "/about/nope", 404),
        ("POST", "/v2/models/nope/infer", 404),
        ("POST", "/v2/models/digits/versions/2/infer", 404),
        ("GET", "/v2/models/digits/versions/2", 404),
        ("GET", "/v2/models/digits/versions/2/ready", 404),
        ("GET", "/v2/models/digits/versions/x", 400),
        ("GET", "/v2/models/digits/versions/" + "9" * 5000, 400),
        ("GET", "/v2/models/digits/versions/+1", 400),
        ("GET", "/v2/models/digits/versions/0_1", 400),
        ("GET", "/v2/models/digits/versions/1 ", 400),
        ("GET", "/v2/models/digits/versions/\u0661", 400),
        ("POST", "/v2/repository/models/nope/load", 404),
        ("POST", "/v2/repository/models/nope/unload", 404),
        ("GET", "/v2/models/digits/infer", 405),
        ("PUT", "/v2/models/digits/infer", 405),
        ("DELETE", "/v2/models/digits", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/repository/models/digits/unload", 405),
    ],
)
def test_what_is_not_there_is_refused_with_the_reason(client, method, path, status):
    reply = client.ask(method, path)
    assert reply.status == status
    assert 0 < len(reply.error) < 400


def test_an_unknown_name_is_answered_with_those_there_are(client):
    assert client.get("/nowhere").error.startswith(
        "there is nothing at /nowhere; requests to a model go to /v2/models/"
    )
    assert client.get("/v2/models/digits/infer").error == "Method Not Allowed"
    assert "'digits'" in client.get("/v2/models/nope").error
    assert "has no version 2; it has 1" in client.get("/v2/models/digits/versions/2").error


# Compression


@pytest.mark.parametrize("encoding", PACK)
def test_packed_requests_are_unpacked(client, encoding):
    body = PACK[encoding](json.dumps(one([1, 2, 3])).encode())
    for name in (encoding, encoding.upper()):
        assert values(client.infer("digits", body, content_encoding=name)) == [1, 2, 3]
    body, headers = in_binary(one([1, 2, 3]), packed([1, 2, 3], "float32"))
    assert values(client.infer("digits", PACK[encoding](body), content_encoding=encoding, **headers)) == [1, 2, 3]


def test_a_large_packed_request_is_unpacked(client):
    data = np.random.default_rng(0).integers(0, 255, 90_000).astype("uint8").tobytes()  # does not get smaller
    request, headers = in_binary(
        {"inputs": [tensor("UINT8", [1, 90_000], [])], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        data,
    )
    reply = client.infer(
        "any_UINT8", gzip.compress(request), content_encoding="gzip", accept_encoding="gzip", **headers
    )
    body = gzip.decompress(reply.body)
    assert body[int(reply.headers["inference-header-content-length"]) :] == data


@pytest.mark.parametrize("encoding", ["identity", ""])
def test_a_request_that_is_not_packed_may_say_so(client, encoding):
    assert client.infer("digits", one([1, 2, 3]), content_encoding=encoding).status == 200


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize(
    "damage",
    [
        lambda body: b"",
        lambda body: body[:-1],
        lambda body: body[:10],
        lambda body: body + b"x",
        lambda body: body + body,
        lambda body: body[:20] + bytes([body[20] ^ 0xFF]) + body[21:],
        lambda body: b"x" + body,
        lambda body: b"{}",
    ],
)
def test_a_damaged_packed_request_is_refused(client, encoding, damage):
    body = damage(PACK[encoding](json.dumps(one([1, 2, 3])).encode()))
    reply = client.infer("digits", body, content_encoding=encoding)
    assert (reply.status, "can't be unpacked" in reply.error) == (400, True), reply.error


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd", "xyz"])
def test_an_unknown_encoding_is_refused(client, encoding):
    reply = client.infer("digits", one([1, 2, 3]), content_encoding=encoding)
    assert (reply.status, "expected gzip or deflate" in reply.error) == (400, True)


@pytest.mark.parametrize("encoding", PACK)
def test_what_is_too_large_when_unpacked_is_refused(client, encoding):
    body = PACK[encoding](b" " * 10**7)
    assert len(body) < 100_000
    assert client.infer("digits", body, content_encoding=encoding).status == 413
    fits = json.dumps(one([1, 2, 3])).encode()
    assert client.infer("digits", PACK[encoding](fits.ljust(100_000)), content_encoding=encoding).status == 200
    assert client.infer("digits", PACK[encoding](fits.ljust(100_001)), content_encoding=encoding).status == 413


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate,gzip", "gzip"),
        ("br;q=1.0, gzip;q=0.5", "gzip"),
        ("GZIP", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.000", None),
        ("br", None),
        ("identity", None),
        ("", None),
    ],
)
def test_long_answers_are_packed_as_the_client_accepts(client, accepted, encoding):
    request = one([0.5] * 1000)
    plain = client.infer("any_FP32", request)
    reply = client.infer("any_FP32", request, accept_encoding=accepted)
    assert reply.headers.get("content-encoding") == encoding
    assert UNPACK.get(encoding, bytes)(reply.body) == plain.body


def test_a_packed_answer_says_the_length_of_its_json_before_packing(client):
    request = one([0.5] * 1000, parameters={"binary_data_output": True})
    plain = client.infer("any_FP32", request)
    reply = client.infer("any_FP32", request, accept_encoding="gzip")
    assert gzip.decompress(reply.body) == plain.body
    name = "inference-header-content-length"
    assert reply.headers[name] == plain.headers[name]


def test_short_answers_and_refusals_are_not_packed(client):
    assert "content-encoding" not in client.infer("digits", one([1, 2, 3]), accept_encoding="gzip").headers
    assert client.infer("digits", {}, accept_encoding="gzip").error


# Bodies


def ask(client, messages, path="/v2/models/digits/infer", **headers):
    return client.run(client.exchange("POST", path, messages, **headers))


def part(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_may_come_in_parts(client):
    body = json.dumps(one([1, 2, 3])).encode()
    nothing, last = {"type": "http.request", "more_body": True}, {"type": "http.request", "body": body[7:]}
    assert values(ask(client, [part(b""), part(body[:7]), nothing, last])) == [1, 2, 3]
    assert values(ask(client, [part(body), part(b"", False)])) == [1, 2, 3]


@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/v2/repository/index"])
def test_a_body_that_is_too_large_is_refused(client, path):
    for messages in ([part(b" " * 100_001, False)], [part(b" " * 60_000), part(b" " * 60_000)]):
        reply = ask(client, messages, path)
        assert (reply.status, "100,000 bytes" in reply.error) == (413, True)
    for said in ("100001", "9" * 5000):  # which is known before any of it is read
        assert ask(client, [], path, content_length=said).status == 413


def test_a_body_of_the_largest_size_is_read(client):
    body = json.dumps(one([1, 2, 3])).encode().ljust(100_000)
    assert ask(client, [part(body, False)], content_length="100000").status == 200


@pytest.mark.parametrize("path", ["/v2/models/digits/infer", "/v2/repository/index"])
def test_a_body_that_does_not_come_is_refused(tmp_path, path):
    write(tmp_path / "digits.onnx", DIGITS)
    client = Client(tmp_path, timeout=0.05)
    for messages in ([], [part(b'{"inputs"')]):
        reply = ask(client, messages, path)
        assert (reply.status, "within 0.05 seconds" in reply.error) == (408, True)


# Who may ask

OPEN = ("/v2/health/live", "/v2/health/ready", "/")
CLOSED = (
    "/v2",
    "/v2/models/digits",
    "/v2/models/digits/stats",
    "/v2/models/stats",
    "/metrics",
    "/about/digits",
    "/nowhere",
)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    write(folder / "digits.onnx", DIGITS)
    return Client(folder, token="secret")


@pytest.mark.parametrize("path", OPEN)
def test_health_and_the_page_are_open_to_all(guarded, path):
    assert guarded.get(path).status == 200


@pytest.mark.parametrize("path", CLOSED)
def test_the_rest_needs_the_token(guarded, path):
    reply = guarded.get(path)
    assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert "token" in reply.error
    assert guarded.get(path, authorization="Bearer secret").status == (404 if path == "/nowhere" else 200)


@pytest.mark.parametrize("said", ["", "secret", "Bearer", "Bearer ", "Bearer Secret", "Bearer secrets", "Basic secret"])
def test_a_wrong_token_is_refused(guarded, said):
    assert guarded.get("/v2", authorization=said).status == 401
    assert guarded.infer("digits", one([1, 2, 3]), authorization=said).status == 401


@pytest.mark.parametrize("said", ["Bearer secret", "bearer secret", "BEARER  secret"])
def test_the_scheme_of_a_token_may_be_written_otherwise(guarded, said):
    assert guarded.infer("digits", one([1, 2, 3]), authorization=said).status == 200


def test_models_are_changed_with_a_token_or_on_this_machine_only(client, guarded, tmp_path):
    path = "/v2/repository/models/digits/load"
    assert client.post(path).status == 200
    assert guarded.post(path).status == 401
    assert guarded.post(path, authorization="Bearer secret").status == 200
    write(tmp_path / "digits.onnx", DIGITS)
    public = Client(tmp_path)
    for what in ("load", "unload"):
        reply = public.post(f"/v2/repository/models/digits/{what}")
        assert (reply.status, "only with a bearer token" in reply.error) == (403, True)
    assert public.post("/v2/repository/index").status == 200


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8000", "http://localhost:8000", 200),
        ("127.0.0.2:8000", "http://127.0.0.2:8000", 200),
        ("127.0.0.1.elsewhere.org", "http://127.0.0.1.elsewhere.org", 403),
        ("127.0.0.1:8000", "http://127.0.0.1:8000", 200),
        ("[::1]:8000", "http://[::1]:8000", 200),
        ("localhost", "https://localhost", 200),
        ("localhost:8000", "http://localhost:9000", 403),
        ("localhost:8000", "http://elsewhere.org", 403),
        ("localhost:8000", "null", 403),
        ("elsewhere.org:8000", "http://elsewhere.org:8000", 403),  # a name that was made to mean this machine
        ("localhost.elsewhere.org", "http://localhost.elsewhere.org", 403),
    ],
)
def test_pages_of_other_sites_are_refused(client, host, origin, status):
    assert client.infer("digits", one([1, 2, 3]), host=host, origin=origin).status == status
    assert client.get("/v2", host=host, origin=origin).status == status


def test_a_page_whose_name_was_made_to_mean_this_machine_is_refused_without_an_origin(client):
    assert client.get("/v2", host="elsewhere.org:8000", sec_fetch_site="same-origin").status == 403
    assert client.get("/v2", host="localhost:8000", sec_fetch_site="same-origin").status == 200
    reply = client.get("/v2", host="elsewhere.org:8000")  # over plain HTTP, browsers say no more
    assert (reply.status, "ask for it as localhost or 127.0.0.1" in reply.error) == (403, True)
    assert client.get("/v2", host="LOCALHOST").status == client.get("/v2").status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_change_no_models(client, site):
    path = "/v2/repository/models/two/unload"
    assert client.post(path, host="localhost:8000", sec_fetch_site=site).status == 403
    assert client.get("/v2/models/two", host="localhost:8000", sec_fetch_site=site).status == 200


def test_a_failure_of_the_server_is_told_as_json_and_logged(tmp_path, caplog, monkeypatch):
    client = Client(write(tmp_path / "digits.onnx", DIGITS))
    monkeypatch.setattr(client.application.state.repository, "index", lambda ready: 1 / 0)
    reply = client.post("/v2/repository/index")
    assert (reply.status, reply.error) == (500, "this server failed; its log says how")
    (record,) = caplog.records
    assert (record.path, record.exc_info[0]) == ("/v2/repository/index", ZeroDivisionError)


def test_a_server_that_others_reach_may_have_any_name(guarded):
    headers = {"authorization": "Bearer secret", "host": "models.example.org", "origin": "https://models.example.org"}
    assert guarded.infer("digits", one([1, 2, 3]), **headers).status == 200


# Where it stands


def test_the_application_can_be_mounted(guarded):
    client = copy.copy(guarded)
    client.application = Starlette(routes=[Mount("/models", guarded.application)])
    assert client.get("/models/v2/health/ready").status == 200
    assert client.get("/models/v2").status == 401
    assert client.get("/models/v2", authorization="Bearer secret").status == 200
    reply = client.post("/models/v2/models/digits/infer", one([1, 2, 3]), authorization="Bearer secret")
    assert values(reply) == [1, 2, 3]


def test_a_server_that_ends_is_not_ready_and_answers_still(guarded):
    guarded.application.state.draining = True
    try:
        reply = guarded.get("/v2/health/ready")
        assert (reply.status, "shutting down" in reply.error) == (503, True)
        assert guarded.get("/v2/health/live").status == 200
        assert guarded.infer("digits", one([1, 2, 3]), authorization="Bearer secret").status == 200
    finally:
        guarded.application.state.draining = False


# Failures


def test_a_failure_is_logged_and_not_told(tmp_path, monkeypatch, caplog):
    write(tmp_path / "digits.onnx", DIGITS)
    client = Client(tmp_path)

    def fail(*_):
        raise RuntimeError("a secret")

    monkeypatch.setattr(client.application.state.repository.get("digits").queue, "_run", fail)
    reply = client.infer("digits", one([1, 2, 3]))
    assert (reply.status, reply.error) == (500, "this server failed; its log says how")
    assert "a secret" in caplog.text


def test_a_request_that_needs_more_memory_than_there_is_may_try_again(tmp_path):
    graph = "g (int64[1] n) => (float[K] y) { y = ConstantOfShape(n) }"
    client = Client(write(tmp_path / "zeros.onnx", graph))
    assert values(client.infer("zeros", {"inputs": [tensor("INT64", [1], [2], "n")]})) == [0, 0]
    reply = client.infer("zeros", {"inputs": [tensor("INT64", [1], [2**45], "n")]})
    assert (reply.status, "not enough memory" in reply.error) == (503, True)
    assert values(client.infer("zeros", {"inputs": [tensor("INT64", [1], [3], "n")]})) == [0, 0, 0]


# What it has done


def test_statistics_count_every_request(tmp_path):
    write(tmp_path / "digits.onnx", DIGITS)
    client = Client(tmp_path)
    nothing = client.get("/v2/models/digits/stats").json["model_stats"][0]
    assert nothing["last_inference"] == nothing["inference_count"] == nothing["execution_count"] == 0
    assert nothing["batch_stats"] == []
    for rows in (1, 2, 2):
        assert client.infer("digits", {"inputs": [tensor("FP32", [rows, 3], [0] * 3 * rows)]}).status == 200
    assert client.infer("digits", b"").status == 400
    assert client.infer("digits", one([1])).status == 400
    (stats,) = client.get("/v2/models/digits/stats").json["model_stats"]
    assert client.get("/v2/models/digits/versions/1/stats").json == client.get("/v2/models/stats").json
    assert (stats["name"], stats["version"], stats["inference_count"], stats["execution_count"]) == (
        "digits",
        "1",
        5,
        3,
    )
    assert abs(stats["last_inference"] / 1e3 - time.time()) < 60
    counts = {name: part["count"] for name, part in stats["inference_stats"].items()}
    assert counts == {
        "success": 3,
        "fail": 2,
        "queue": 3,
        "compute_input": 3,
        "compute_infer": 3,
        "compute_output": 3,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    times = {name: part["ns"] for name, part in stats["inference_stats"].items()}
    assert 0 < times["compute_infer"] <= times["success"] < 60e9
    assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in stats["batch_stats"]] == [
        (1, 1),
        (2, 2),
    ]


def test_a_client_that_vanishes_within_its_request_is_counted(tmp_path):
    write(tmp_path / "digits.onnx", DIGITS)
    client = Client(tmp_path)
    for messages in ([part(b'{"inputs"')], []):
        assert ask(client, [*messages, {"type": "http.disconnect"}]) is None
    assert b'lamella_requests_total{model="digits",status="499",version="1"} 2.0' in client.get("/metrics").body


def test_metrics_are_prometheus_text(tmp_path):
    write(tmp_path / "digits.onnx", DIGITS)
    client = Client(tmp_path)
    for rows in (1, 2, 2):
        client.infer("digits", {"inputs": [tensor("FP32", [rows, 3], [0] * 3 * rows)]})
    client.infer("digits", b"")
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *(value for key, value in sorted(sample.labels.items()) if key in ("status", "le"))): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
        if sample.name.startswith("lamella_") and sample.labels["model"] == "digits" and sample.labels["version"] == "1"
    }
    assert samples["lamella_requests_total", "200"] == 3
    assert samples["lamella_requests_total", "400"] == 1
    assert samples["lamella_rows_total",] == 5
    assert samples["lamella_request_seconds_count",] == samples["lamella_request_seconds_bucket", "+Inf"] == 4
    assert samples["lamella_batch_rows_bucket", "1.0"] == 1
    assert samples["lamella_batch_rows_bucket", "2.0"] == samples["lamella_batch_rows_count",] == 3
    assert samples["lamella_batch_rows_sum",] == 5
    assert samples["lamella_queue_requests",] == 0
    assert client.get("/metrics", accept="application/openmetrics-text; version=1.0.0").body.endswith(b"# EOF\n")
    assert client.get("/metrics", accept="application/openmetrics-text; version=x").headers == {
        **reply.headers,
        "content-length": mock.ANY,
    }


def test_each_request_is_logged_if_that_is_asked_for(client, guarded, caplog):
    with caplog.at_level(logging.INFO, "lamella_serve.access"):
        client.get("/v2/models/digits")
        client.infer("digits", b"")
        guarded.get("/v2")
    told = [(record.call, record.status) for record in caplog.records]
    assert told == [("GET /v2/models/digits", 200), ("POST /v2/models/digits/infer", 400), ("GET /v2", 401)]
    assert all(record.milliseconds > 0 for record in caplog.records)


@pytest.mark.parametrize("as_json", [True, False])
def test_an_event_is_one_line_of_the_log(as_json):
    record = logging.makeLogRecord({"name": "lamella_serve", "levelname": "INFO", "msg": "answered"})
    record.call, record.status, record.nothing = "GET /a\n\x1b[2Jb", 200, None
    line = logs._Lines(as_json=as_json).format(record)
    assert line.isprintable()
    if as_json:
        told = json.loads(line)
        assert datetime.datetime.fromisoformat(told.pop("time")).timestamp() == pytest.approx(record.created, abs=1e-3)
        assert told == {"level": "info", "event": "answered", "call": record.call, "status": 200, "nothing": None}
    else:
        assert line.endswith('info    answered  call="GET /a\\n\\u001b[2Jb"  status=200')
