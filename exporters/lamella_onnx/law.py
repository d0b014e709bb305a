"""The law that a layer means the same in ONNX: forward and backward, in inference and in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime

from lamella.engine import StepResult
from lamella.errors import LayerError
from lamella.testing.case import Case
from lamella.testing.laws import Broken
from lamella_onnx.parity import ParityError, compare, session
from lamella_onnx.trace import trace_model, trace_step

__all__ = ["same_in_onnx"]

BATCHES = ((1, 1.0), (2, 1.0), (5, 1.0), (5, 30.0))  # rows, and how large random floats are


def same_in_onnx(case: Case) -> str:
    """Onnxruntime gives the engine's outputs, gradients and updates for batches of 1, 2 and 5, and for large values."""
    model = case.model("float32")
    try:
        inference = trace_model(model).proto
        _examine_graph(case, inference)
        worst = _infer(case, inference)
        for training in (True, False):
            proto = trace_step(model, training=training, wants_dx=case.wants)
            worst = max(worst, _step(case, proto, training))
    except (LayerError, ParityError) as error:
        raise Broken(str(error)) from error
    operators = [node.op_type for node in inference.graph.node]
    return f"{' '.join(operators) or 'no operators'}; largest error {worst:.1e}"


def _examine_graph(case: Case, proto: onnx.ModelProto) -> None:
    """The graph is valid, has the operators that the specimen promises, and any batch size."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Broken(f"the graph is not valid ONNX: {error}") from error
    # a layer that changes nothing leaves an Identity, since an output can't be an input
    promised, got = case.specimen.operators, sorted(n.op_type for n in proto.graph.node if n.op_type != "Identity")
    if promised is not None and sorted(promised) != got:
        raise Broken(f"expected operators {', '.join(sorted(promised))}; the graph has {', '.join(got) or 'none'}")
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.shape.dim[0].dim_param != "N":
            raise Broken(f"the batch axis of {value.name} is fixed in the graph")


def _infer(case: Case, proto: onnx.ModelProto) -> float:
    loaded = session(proto.SerializeToString())
    worst = 0.0
    for rows, scale in BATCHES:
        inputs = case.cast("float32", case.draw(rows, scale=scale))
        feeds = dict(zip(case.model("float32").input_names, inputs, strict=True))
        results = (_run(loaded, feeds).values(), case.infer("float32", inputs), case.infer("float64", inputs))
        for k, (got, e32, e64) in enumerate(zip(*results, strict=True)):
            worst = max(worst, _agree(f"output {k} in inference, {_batch(rows, scale)}", got, e32, e64))
    return worst


def _step(case: Case, proto: onnx.ModelProto, training: bool) -> float:
    model, loaded = case.model("float32"), session(proto.SerializeToString())
    mode = "training" if training else "inference"
    worst = 0.0
    for rows, scale in BATCHES:
        inputs = case.cast("float32", case.draw(rows, scale=scale))
        cotangents = case.cast("float32", case.cotangents(inputs))
        feeds = {
            **dict(zip(model.input_names, inputs, strict=True)),
            **{f"{name}.incoming": dy for name, dy in zip(model.output_names, cotangents, strict=True)},
            **model.parameters,
            **model.state,
            "training.seed": np.array([case.seed & 0xFFFFFFFF, case.seed >> 32], "uint32"),
            "training.step": np.array(3, "uint32"),
        }
        got = _run(loaded, feeds)
        e32, e64 = (
            _named(case, case.step(kind, inputs, cotangents, training=training)) for kind in ("float32", "float64")
        )
        if e32.keys() != got.keys():
            raise Broken(f"the engine gives {', '.join(e32)}; the traced step {', '.join(got)}")
        for name, value in got.items():
            what = f"{_title(name, model.input_names)} in {mode} mode, {_batch(rows, scale)}"
            worst = max(worst, _agree(what, value, e32[name], e64[name]))
    return worst


def _batch(rows: int, scale: float) -> str:
    return f"batch of {rows}{'' if scale == 1 else f', values around {scale:g}'}"


def _title(name: str, inputs: tuple[str, ...]) -> str:
    stem, _, kind = name.rpartition(".")
    if kind == "gradient":
        return f"dx of input {inputs.index(stem)}" if stem in inputs else f"gradient of {stem!r}"
    return f"update of {stem!r}" if kind == "new" else f"output {name!r}"


def _named(case: Case, result: StepResult) -> dict[str, Any]:
    """The arrays of a step by the names that `trace_step` gives them."""
    model = case.model("float32")
    arrays = dict(zip(model.output_names, result.predictions, strict=True))
    arrays |= {f"{name}.gradient": dx for name, dx in zip(model.input_names, result.dx, strict=True) if dx is not None}
    arrays |= {f"{name}.gradient": value for name, value in result.gradients.items()}
    return arrays | {f"{name}.new": value for name, value in result.updates.items()}


def _run(loaded: onnxruntime.InferenceSession, feeds: dict[str, Any]) -> dict[str, Any]:
    known = {given.name for given in loaded.get_inputs()}
    names = [output.name for output in loaded.get_outputs()]
    try:
        return dict(zip(names, loaded.run(None, {k: v for k, v in feeds.items() if k in known}), strict=True))
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise Broken(f"onnxruntime can't run the graph: {error}") from error


def _agree(what: str, got: Any, e32: Any, e64: Any) -> float:
    error, allowed, rule = compare(got, e32, e64)
    if not error <= allowed:
        raise Broken(f"{what}: onnxruntime differs by {error:.3g} where {allowed:.3g} is allowed ({rule})")
    return error
