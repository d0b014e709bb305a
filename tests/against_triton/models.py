"""Small ONNX models that differ in what a server has to get right: datatypes, axes, scalars, states, versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NUMBERS = {
    "fp32": TensorProto.FLOAT,
    "fp64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
    "bool": TensorProto.BOOL,
}
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING

Tensors = Mapping[str, tuple[int, Sequence[int | str]]]  # a tensor's type and shape, by its name


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Tensors,
    outputs: Tensors,
    constants: Mapping[str, np.ndarray] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """A checked model of some nodes."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in inputs.items()],
        [helper.make_tensor_value_info(name, *tensor) for name, tensor in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="lamella")
    helper.set_model_props(made, metadata or {})
    onnx.checker.check_model(made, full_check=True)
    return made


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """A node; names of tensors are set apart by spaces."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def classifier() -> onnx.ModelProto:
    """Probabilities of three classes, whose names the file carries."""
    kernel = np.array([[1, -1, 0], [0.5, 0.25, -0.5], [-1, 1, 1], [0, 0.5, 0.125]], np.float32)
    return model(
        [node("MatMul", "x kernel", "scores"), node("Softmax", "scores", "probabilities")],
        {"x": (FLOAT, ["N", 4])},
        {"probabilities": (FLOAT, ["N", 3])},
        {"kernel": kernel},
        {"labels": json.dumps(["cat", "dog", "Maus"])},
    )


def numbers() -> onnx.ModelProto:
    """Each input twice in a row, of every datatype that both NumPy and JSON have."""
    return model(
        [node("Concat", f"{name} {name}", f"{name}_twice", axis=1) for name in NUMBERS],
        {name: (number, ["N", "L"]) for name, number in NUMBERS.items()},
        {f"{name}_twice": (number, ["N", "M"]) for name, number in NUMBERS.items()},
    )


def half() -> onnx.ModelProto:
    """The two floats of 16 bits, which travel as bytes only."""
    return model(
        [node("Add", "fp16 fp16", "doubled"), node("Identity", "bf16", "same"), node("Cast", "bf16", "wide", to=FLOAT)],
        {"fp16": (TensorProto.FLOAT16, ["N", 2]), "bf16": (TensorProto.BFLOAT16, ["N", 2])},
        {
            "doubled": (TensorProto.FLOAT16, ["N", 2]),
            "same": (TensorProto.BFLOAT16, ["N", 2]),
            "wide": (FLOAT, ["N", 2]),
        },
    )


def text() -> onnx.ModelProto:
    """Strings, and their numbers in a small vocabulary."""
    encoder = {"keys_strings": ["a", "bé", ""], "values_int64s": [10, 20, 30], "default_int64": -1}
    return model(
        [node("Identity", "x", "same"), node("LabelEncoder", "x", "number", domain="ai.onnx.ml", **encoder)],
        {"x": (STRING, ["N", "L"])},
        {"same": (STRING, ["N", "L"]), "number": (INT64, ["N", "L"])},
    )


def arithmetic(factor: float) -> onnx.ModelProto:
    """Two inputs and two outputs; the factor tells versions apart."""
    return model(
        [
            node("Add", "a b", "plain_sum"),
            node("Mul", "plain_sum factor", "sum"),
            node("Sub", "a b", "plain_difference"),
            node("Mul", "plain_difference factor", "difference"),
        ],
        {"a": (FLOAT, ["N", 3]), "b": (FLOAT, ["N", 3])},
        {"sum": (FLOAT, ["N", 3]), "difference": (FLOAT, ["N", 3])},
        {"factor": np.array(factor, np.float32)},
    )


def columns() -> onnx.ModelProto:
    """Three axes of any size, and one less in the output."""
    return model(
        [node("ReduceMean", "x", "mean", axes=[1], keepdims=0)],
        {"x": (FLOAT, ["N", "H", "W"])},
        {"mean": (FLOAT, ["N", "W"])},
    )


def fixed() -> onnx.ModelProto:
    """No axis for a batch."""
    return model([node("Transpose", "x", "y")], {"x": (FLOAT, [2, 3])}, {"y": (FLOAT, [3, 2])})


def scalars() -> onnx.ModelProto:
    """Scalars in and out."""
    return model(
        [node("Mul", "x factor", "scaled"), node("ReduceSum", "scaled", "total", keepdims=0)],
        {"x": (FLOAT, ["L"]), "factor": (FLOAT, [])},
        {"scaled": (FLOAT, ["L"]), "total": (FLOAT, [])},
    )


def rows() -> onnx.ModelProto:
    """One number a row, without an axis of its own."""
    axes = {"axes": np.array([1])}
    return model([node("ReduceSum", "x axes", "y", keepdims=0)], {"x": (FLOAT, ["N", 3])}, {"y": (FLOAT, ["N"])}, axes)


def loudness() -> onnx.ModelProto:
    """Rows by the largest value of the whole batch: a model whose requests must not be joined."""
    return model(
        [node("ReduceMax", "x", "loudest", keepdims=1), node("Div", "x loudest", "y")],
        {"x": (FLOAT, ["N", 3])},
        {"y": (FLOAT, ["N", 3])},
    )


def recurrent() -> onnx.ModelProto:
    """A step with a state, whose rows are on its second axis."""
    return model(
        [node("Add", "x state", "sum"), node("Tanh", "sum", "next_state"), node("Squeeze", "next_state first", "y")],
        {"x": (FLOAT, ["N", 2]), "state": (FLOAT, [1, "N", 2])},
        {"y": (FLOAT, ["N", 2]), "next_state": (FLOAT, [1, "N", 2])},
        {"first": np.array([0])},
    )


def reshape() -> onnx.ModelProto:
    """A shape that only onnxruntime can judge."""
    return model(
        [node("Reshape", "x shape", "y")],
        {"x": (FLOAT, ["L"]), "shape": (INT64, [2])},
        {"y": (FLOAT, ["A", "B"])},
    )


VERSIONS = {  # what a repository holds, in the order of its versions
    "classifier": [classifier()],
    "numbers": [numbers()],
    "half": [half()],
    "text": [text()],
    "arithmetic": [arithmetic(1), arithmetic(10)],
    "columns": [columns()],
    "fixed": [fixed()],
    "scalars": [scalars()],
    "rows": [rows()],
    "loudness": [loudness()],
    "recurrent": [recurrent()],
    "reshape": [reshape()],
}


def write(folder: Path) -> dict[int, list[Path]]:
    """Write the models; return their files by version."""
    files: dict[int, list[Path]] = {}
    for name, versions in VERSIONS.items():
        for version, made in enumerate(versions, start=1):
            path = folder / str(version) / f"{name}.onnx"
            path.parent.mkdir(parents=True, exist_ok=True)
            onnx.save(made, path)
            files.setdefault(version, []).append(path)
    return files
