"""Calls of Triton's own Python client, by name. Their answers tell whether two servers are the same to a client.

    .judge/bin/python tests/against_triton/calls.py HTTP_ADDRESS GRPC_ADDRESS ANSWERS.json

Every call is made by each of the four clients in turn, except where it says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import plain
from clients import Client, failure
from tritonclient.utils import InferenceServerException

Call = Callable[[Client], Any]

CALLS: dict[str, Call] = {}
STREAMS: dict[str, Call] = {}  # those over one stream of gRPC
LAST: dict[str, Call] = {}  # those that leave a server changed, after all others

F32 = np.float32
ROW = np.array([[1, 2, 3, 4]], F32)
THREE_ROWS = np.array([[1, 2, 3, 4], [-1, 0.5, 0, 2], [0, 0, 0, 1e-3]], F32)
A, B = np.array([[1, 2, 3]], F32), np.array([[0.5, -2, 1e6]], F32)
TEXTS = np.array([["a", "bé", "", '\N{SNOWMAN}\n"\\\t']], object)


def call(function: Call) -> Call:
    """Register a call; its name is that of the function."""
    CALLS[function.__name__.replace("_", " ")] = function
    return function


def stream(function: Call) -> Call:
    STREAMS[function.__name__.replace("_", " ")] = function
    return function


def last(function: Call) -> Call:
    LAST[function.__name__.replace("_", " ")] = function
    return function


def numbers(rows: int = 1) -> dict[str, np.ndarray]:
    """Inputs of the model "numbers": the least and the most of each datatype."""
    made: dict[str, np.ndarray] = {"bool": np.array([[True, False]] * rows)}
    for name in ("fp32", "fp64"):
        limits = np.finfo(name.replace("fp", "float"))
        made[name] = np.array([[limits.smallest_subnormal, limits.max]] * rows, limits.dtype)
    for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        whole = np.iinfo(name)
        made[name] = np.array([[whole.min, whole.max]] * rows, name)
    return made


# --------------------------------------------------------------------------------------------------------------- server


@call
def server_is_live(client: Client) -> Any:
    return client.ask("is_server_live")


@call
def server_is_ready(client: Client) -> Any:
    return client.ask("is_server_ready")


@call
def server_metadata(client: Client) -> Any:
    return client.ask("get_server_metadata")


@call
def repository_index(client: Client) -> Any:
    return index(client)


def index(client: Client) -> Any:
    """The index, without reasons. A model that goes is given time."""
    for _ in range(50):
        answer = client.ask("get_model_repository_index")
        models = answer if client.over_http else answer["models"]
        if all(model.get("state") != "UNLOADING" for model in models):
            break
        time.sleep(0.1)
    return [{key: model.get(key, "") for key in ("name", "version", "state")} for model in models]


# ----------------------------------------------------------------------------------------------------- about the models


@call
def model_is_ready(client: Client) -> Any:
    return client.ask("is_model_ready", "classifier")


@call
def version_is_ready(client: Client) -> Any:
    return client.ask("is_model_ready", "arithmetic", "1")


@call
def unknown_model_is_not_ready(client: Client) -> Any:
    return client.ask("is_model_ready", "nobody")


@call
def unknown_version_is_not_ready(client: Client) -> Any:
    return client.ask("is_model_ready", "arithmetic", "9")


@call
def metadata(client: Client) -> Any:
    return client.ask("get_model_metadata", "classifier")


@call
def metadata_of_all_versions(client: Client) -> Any:
    return client.ask("get_model_metadata", "arithmetic")


@call
def metadata_of_a_version(client: Client) -> Any:
    return client.ask("get_model_metadata", "arithmetic", "1")


@call
def metadata_of_many_datatypes(client: Client) -> Any:
    return client.ask("get_model_metadata", "numbers")


@call
def metadata_of_16_bit_floats(client: Client) -> Any:
    return client.ask("get_model_metadata", "half")


@call
def metadata_of_strings(client: Client) -> Any:
    return client.ask("get_model_metadata", "text")


@call
def metadata_of_free_axes(client: Client) -> Any:
    return client.ask("get_model_metadata", "columns")


@call
def metadata_without_a_batch_axis(client: Client) -> Any:
    return client.ask("get_model_metadata", "fixed")


@call
def metadata_of_scalars(client: Client) -> Any:
    return client.ask("get_model_metadata", "scalars")


@call
def metadata_of_one_number_a_row(client: Client) -> Any:
    return client.ask("get_model_metadata", "rows")


@call
def metadata_of_an_unknown_model(client: Client) -> Any:
    return client.ask("get_model_metadata", "nobody")


@call
def metadata_of_an_unknown_version(client: Client) -> Any:
    return client.ask("get_model_metadata", "arithmetic", "9")


@call
def configuration(client: Client) -> Any:
    return configured(client, "classifier")


@call
def configuration_without_a_batch_axis(client: Client) -> Any:
    return configured(client, "fixed")


@call
def configuration_of_a_batch_that_matters(client: Client) -> Any:
    return configured(client, "loudness")


@call
def configuration_of_an_unknown_model(client: Client) -> Any:
    return client.ask("get_model_config", "nobody")


def configured(client: Client, name: str) -> Any:
    """What a client can need of a configuration; Triton fills in dozens of defaults."""
    answer = client.ask("get_model_config", name)
    config = answer if client.over_http else answer["config"]
    tensor = ("name", "data_type", "dims", "label_filename")
    kept = {key: config.get(key, "") for key in ("name", "platform", "backend", "default_model_filename")}
    kept["max_batch_size"] = config.get("max_batch_size", 0)
    kept["joins requests"] = "dynamic_batching" in config
    for side in ("input", "output"):
        kept[side] = [{key: one.get(key, "") for key in tensor} for one in config[side]]
    return kept


@call
def statistics(client: Client) -> Any:
    return counted(client, "fixed", [{"x": np.zeros((2, 3), F32)}] * 3)


@call
def statistics_of_rows(client: Client) -> Any:
    return counted(
        client, "arithmetic", [{"a": np.repeat(A, rows, 0), "b": np.repeat(B, rows, 0)} for rows in (1, 3, 3)]
    )


@call
def statistics_of_refusals(client: Client) -> Any:
    bad = {"x": np.zeros((3, 3), F32)}
    with contextlib.suppress(InferenceServerException):
        client.infer("fixed", bad)
    return counted(client, "fixed", [{"x": np.zeros((2, 3), F32)}])


@call
def statistics_of_all(client: Client) -> Any:
    answer = client.ask("get_inference_statistics")
    return [(one["name"], one["version"]) for one in answer["model_stats"]]


@call
def statistics_of_an_unknown_model(client: Client) -> Any:
    return client.ask("get_inference_statistics", "nobody")


def counted(client: Client, name: str, requests: Sequence[dict[str, np.ndarray]]) -> Any:
    """How statistics of a model's newest version grow by some requests. A server may count after it has answered."""
    before = counts(client.ask("get_inference_statistics", name))
    for inputs in requests:
        client.infer(name, inputs)
    for _ in range(50):
        after = counts(client.ask("get_inference_statistics", name))
        grown = {key: after[key] - before.get(key, 0) for key in after}
        if grown["inference_stats/success/count"] >= len(requests):
            break
        time.sleep(0.1)
    return {key: number for key, number in grown.items() if number}


def counts(answer: Any) -> dict[str, int]:
    """All counts of a model's newest version. JSON from gRPC leaves zeros out and has strings for numbers."""
    told = answer["model_stats"][-1]
    found = {"inference_stats/success/count": 0} | {
        key: int(told.get(key, 0)) for key in ("inference_count", "execution_count")
    }
    parts = {"inference_stats": told.get("inference_stats", {})}
    parts |= {f"batch_stats/{one['batch_size']}": one for one in told.get("batch_stats", [])}
    for part, durations in parts.items():
        for name, duration in durations.items():
            if name != "batch_size":
                found[f"{part}/{name}/count"] = int(duration.get("count", 0))
    return found


# -------------------------------------------------------------------------------------------------------------- answers


@call
def one_row(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW})


@call
def several_rows(client: Client) -> Any:
    return client.infer("classifier", {"x": THREE_ROWS})


@call
def one_row_as_JSON(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW}, ["probabilities"], binary=False)


@call
def request_id(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW}, request_id="number 7, \N{SNOWMAN}")


@call
def parameters_of_a_request(client: Client) -> Any:
    parameters = {"purpose": "test", "weight": 3, "sure": True}
    return client.infer("classifier", {"x": ROW}, parameters=parameters, priority=1, timeout=10_000_000)


@call
def sequence_of_a_request(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW}, sequence_id=7, sequence_start=True, sequence_end=True)


@call
def headers_of_a_request(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW}, headers={"x-trace": "7"})


@call
def compressed_by_gzip(client: Client) -> Any:
    return client.infer("columns", {"x": np.arange(6000, dtype=F32).reshape(2, 100, 30)}, compressed="gzip")


@call
def compressed_by_deflate(client: Client) -> Any:
    return client.infer("columns", {"x": np.arange(6000, dtype=F32).reshape(2, 100, 30)}, compressed="deflate")


@call
def compressed_JSON(client: Client) -> Any:
    return client.infer("columns", {"x": np.ones((1, 30, 40), F32)}, ["mean"], binary=False, compressed="gzip")


@call
def newest_version(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A, "b": B})


@call
def older_version(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A, "b": B}, version="1")


@call
def inputs_in_another_order(client: Client) -> Any:
    return client.infer("arithmetic", {"b": B, "a": A})


@call
def one_output_of_two(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A, "b": B}, ["difference"])


@call
def outputs_in_another_order(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A, "b": B}, ["difference", "sum"])


@call
def limits_of_every_datatype(client: Client) -> Any:
    return client.infer("numbers", numbers())


@call
def limits_of_every_datatype_as_JSON(client: Client) -> Any:
    return client.infer("numbers", numbers(), [f"{name}_twice" for name in numbers()], binary=False)


@call
def rows_of_every_datatype(client: Client) -> Any:
    return client.infer("numbers", numbers(rows=3))


@call
def NaN_and_infinity(client: Client) -> Any:
    odd = np.array([[np.nan, np.inf, -np.inf, -0.0]], F32)
    return client.infer("columns", {"x": odd[None]})


@call
def NaN_and_infinity_as_JSON(client: Client) -> Any:
    odd = np.array([[np.nan, np.inf, -np.inf, -0.0]], F32)
    return client.infer("columns", {"x": odd[None]}, ["mean"], binary=False)


@call
def floats_of_16_bits(client: Client) -> Any:
    return client.infer("half", halves())


@call
def float16_as_JSON(client: Client) -> Any:
    return client.infer("half", halves(), ["doubled", "wide"], binary=False)


def halves() -> dict[str, np.ndarray]:
    return {"fp16": np.array([[0.1, -65504]], np.float16), "bf16": np.array([[0.1, -3e38]], ml_dtypes.bfloat16)}


@call
def strings(client: Client) -> Any:
    return client.infer("text", {"x": TEXTS})


@call
def strings_as_JSON(client: Client) -> Any:
    return client.infer("text", {"x": TEXTS}, ["same", "number"], binary=False)


@call
def strings_as_bytes(client: Client) -> Any:
    return client.infer("text", {"x": np.array([["bé".encode()], [b"c"]], object)})


@call
def strings_that_are_no_UTF_8(client: Client) -> Any:
    return client.infer("text", {"x": np.array([[b"\xff\xfe"]], object)})


@call
def free_axes(client: Client) -> Any:
    return [client.infer("columns", {"x": np.ones(shape, F32)}) for shape in ((1, 1, 1), (2, 3, 4), (5, 2, 1))]


@call
def axis_of_no_elements(client: Client) -> Any:
    return client.infer("text", {"x": np.empty((2, 0), object)})


@call
def megabytes(client: Client) -> Any:
    return client.infer("columns", {"x": np.arange(2_000_000, dtype=F32).reshape(1, 2000, 1000) / 1e6})


@call
def no_batch_axis(client: Client) -> Any:
    return client.infer("fixed", {"x": np.arange(6, dtype=F32).reshape(2, 3)})


@call
def scalars(client: Client) -> Any:
    return client.infer("scalars", {"x": np.array([1, 2, 4], F32), "factor": np.array([0.5], F32)})


@call
def scalar_without_an_axis(client: Client) -> Any:
    return client.infer("scalars", {"x": np.array([1, 2, 4], F32), "factor": np.array(0.5, F32)})


@call
def one_number_a_row(client: Client) -> Any:
    return client.infer("rows", {"x": np.arange(6, dtype=F32).reshape(2, 3)})


@call
def batch_that_matters(client: Client) -> Any:
    return client.infer("loudness", {"x": np.array([[1, 2, 3], [10, 20, 40]], F32)})


@call
def states(client: Client) -> Any:
    state = np.zeros((1, 2, 2), F32)
    answers = []
    for step in range(3):
        answer = client.infer("recurrent", {"x": np.full((2, 2), 0.1 * step, F32), "state": state})
        answers.append(answer)
        state = np.array(answer["outputs"][1]["values"], F32).reshape(1, 2, 2)
    return answers


@call
def shape_from_an_input(client: Client) -> Any:
    return client.infer("reshape", {"x": np.arange(6, dtype=F32), "shape": np.array([3, 2])})


@call
def sixty_four_at_once(client: Client) -> Any:
    rows = [THREE_ROWS[: 1 + number % 3] * (1 + number) for number in range(64)]
    return client.infer_together([("classifier", {"x": x}) for x in rows])


@call
def sixty_four_at_once_whose_batch_matters(client: Client) -> Any:
    return client.infer_together([("loudness", {"x": A * 10.0 ** (number % 7 - 3)}) for number in range(64)])


@call
def sixty_four_of_unequal_shapes_at_once(client: Client) -> Any:
    shapes = [(1 + number % 2, 1 + number % 5, 1 + number % 3) for number in range(64)]
    return client.infer_together([("columns", {"x": np.full(shape, i, F32)}) for i, shape in enumerate(shapes)])


@stream
def stream_of_requests(client: Client) -> Any:
    return client.infer_in_stream([("classifier", {"x": ROW * number}) for number in range(8)])


@stream
def stream_with_a_bad_request(client: Client) -> Any:
    rows = [ROW, ROW[:, :3], ROW * 2]
    return client.infer_in_stream([("classifier", {"x": x}) for x in rows])


# ------------------------------------------------------------------------------------------------------- classification


@call
def two_likeliest_classes(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW}, [("probabilities", 2)])


@call
def classes_of_several_rows(client: Client) -> Any:
    return client.infer("classifier", {"x": THREE_ROWS}, [("probabilities", 2)])


@call
def more_classes_than_there_are(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW}, [("probabilities", 9)])


@call
def classes_as_JSON(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW}, [("probabilities", 3)], binary=False)


@call
def classes_without_labels(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A, "b": B}, [("sum", 3), "difference"])


@call
def classes_that_tie(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A * 0, "b": A * 0}, [("sum", 2)])


@call
def classes_of_whole_numbers(client: Client) -> Any:
    return client.infer("numbers", numbers(), [("int64_twice", 2), ("uint8_twice", 2), ("fp64_twice", 1)])


@call
def classes_without_a_batch_axis(client: Client) -> Any:
    return client.infer("fixed", {"x": np.arange(6, dtype=F32).reshape(2, 3)}, [("y", 2)])


@call
def classes_of_a_scalar(client: Client) -> Any:
    return client.infer("scalars", {"x": A[0], "factor": np.array([2], F32)}, [("total", 1)])


@call
def classes_of_truth_values(client: Client) -> Any:
    return client.infer("numbers", numbers(), [("bool_twice", 1)])


@call
def classes_of_float16(client: Client) -> Any:
    return client.infer("half", halves(), [("doubled", 1)])


# ------------------------------------------------------------------------------------------------------------- mistakes


@call
def unknown_model(client: Client) -> Any:
    return client.infer("nobody", {"x": ROW})


@call
def unknown_version(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A, "b": B}, version="9")


@call
def unknown_output(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW}, ["certainties"])


@call
def missing_input(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A})


@call
def no_input(client: Client) -> Any:
    return client.infer("arithmetic", {})


@call
def unknown_input(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A, "c": B})


@call
def one_input_too_many(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A, "b": B, "c": B})


@call
def input_given_twice(client: Client) -> Any:
    return client.infer("arithmetic", [("a", A), ("a", A), ("b", B)])


@call
def wrong_size(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW[:, :3]})


@call
def too_few_axes(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW[0]})


@call
def too_many_axes(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW[None]})


@call
def wrong_size_without_a_batch_axis(client: Client) -> Any:
    return client.infer("fixed", {"x": np.ones((3, 3), F32)})


@call
def wrong_datatype(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW.astype(np.float64)})


@call
def rows_that_differ(client: Client) -> Any:
    return client.infer("arithmetic", {"a": A, "b": np.concatenate([B, B])})


@call
def more_rows_than_allowed(client: Client) -> Any:
    return client.infer("classifier", {"x": np.zeros((5000, 4), F32)})


@call
def no_rows(client: Client) -> Any:
    return client.infer("classifier", {"x": ROW[:0]})


@call
def shape_that_onnxruntime_refuses(client: Client) -> Any:
    return client.infer("reshape", {"x": np.arange(6, dtype=F32), "shape": np.array([4, 2])})


# ------------------------------------------------------------------------------------------------------ load and unload


@call
def unload(client: Client) -> Any:
    client.ask("unload_model", "fixed")
    return [one for one in index(client) if one["name"] == "fixed"]


@call
def unloaded_is_not_ready(client: Client) -> Any:
    return client.ask("is_model_ready", "fixed")


@call
def unloaded_does_not_answer(client: Client) -> Any:
    return client.infer("fixed", {"x": np.ones((2, 3), F32)})


@call
def unloaded_has_no_metadata(client: Client) -> Any:
    return client.ask("get_model_metadata", "fixed")


@call
def server_is_ready_without_an_unloaded_model(client: Client) -> Any:
    return client.ask("is_server_ready")


@call
def unload_again(client: Client) -> Any:
    return client.ask("unload_model", "fixed")


@call
def load(client: Client) -> Any:
    client.ask("load_model", "fixed")
    return client.infer("fixed", {"x": np.ones((2, 3), F32)})


@call
def load_again(client: Client) -> Any:
    client.ask("load_model", "fixed")
    return client.infer("fixed", {"x": np.ones((2, 3), F32)})


@call
def load_an_unknown_model(client: Client) -> Any:
    return client.ask("load_model", "nobody")


@call
def unload_an_unknown_model(client: Client) -> Any:
    return client.ask("unload_model", "nobody")


@last
def load_a_broken_file(client: Client) -> Any:
    return client.ask("load_model", "broken")


@last
def broken_file_is_not_ready(client: Client) -> Any:
    return client.ask("is_model_ready", "broken")


@last
def broken_file_in_the_index(client: Client) -> Any:
    return [one for one in index(client) if one["name"] == "broken"]


@last
def server_is_ready_without_a_broken_file(client: Client) -> Any:
    return client.ask("is_server_ready")


# ----------------------------------------------------------------------------------------------------------------- main


def answer(call: Call, client: Client) -> Any:
    """What a call gives, or how it is refused."""
    try:
        return call(client)
    except InferenceServerException as error:
        return {"failed": error.message()} if error.status() is None else failure(error)
    except Exception as error:
        return {"failed": repr(error)}


def main(http_address: str, grpc_address: str, path: Path) -> None:
    answers: dict[str, dict[str, Any]] = {name: {} for name in (*CALLS, *STREAMS, *LAST)}
    clients = [
        Client(name, http_address, grpc_address) for name in Client.NAMES if grpc_address != "-" or "grpc" not in name
    ]  # XXX
    for calls in (CALLS, STREAMS, LAST):
        for client in clients:
            if calls is not STREAMS or not client.over_http:
                for name, function in calls.items():
                    answers[name][client.name] = answer(function, client)
    for client in clients:
        client.close()
    answers |= {name: {"plain": plain.answer(http_address, *request)} for name, request in plain.REQUESTS.items()}
    path.write_text(json.dumps(answers, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
