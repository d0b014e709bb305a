"""The law that a layer means the same in ONNX: forward and backward, in inference and in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnx
import onnxruntime

from lamella import Model
from lamella.engine import StepResult
from lamella.errors import LamellaError, did_you_mean
from lamella.primitives import Primitive
from lamella.testing.case import Case
from lamella.testing.comparison import Broken, difference, largest, most, own_name, worst_place
from lamella.testing.relation import constant_factor, same_but_moved, where_different
from lamella_onnx.models import trace_model, trace_step
from lamella_onnx.parity import ROUNDING, compare
from lamella_onnx.runtime import DEFAULT_OPSET, OLDEST_OPSET, ParityError, run, session

__all__ = ["same_in_onnx"]

BATCHES = (  # rows, and how large random floats are; without a size, multiples of one half
    (1, 1.0),
    (2, 1.0),
    (5, 1.0),
    (5, 30.0),
    (5, None),
    (3, 300.0),
)


FORMS = (("float32", OLDEST_OPSET), ("float64", DEFAULT_OPSET))
"""What beside float32 in the default opset models are written down as."""


def same_in_onnx(case: Case) -> str:
    """Onnxruntime gives the engine's outputs, gradients and updates for few rows, large values, and ties."""
    graph = case.examine(_inference_graph)
    if any(isinstance(finding.error, _Invalid) for finding in case.findings):
        return ""  # the step holds the same forward pass
    ways: list[bool | None] = [True, False]  # training and inference steps; None: no way back
    errors = []
    for training in ways if graph is None else [None, *ways]:
        known = len(case.findings)
        for rows, scale in BATCHES if training is None else BATCHES[:-1]:  # slopes of what saturates are all rounding
            errors.append(case.examine(_batch_agrees, training, rows, scale))
            if len(case.findings) > known and not isinstance(case.findings[-1].error, Broken):
                break  # what can't be traced at all
        for sizes in [] if case.findings else case.other_sizes:
            errors.append(case.examine(_batch_agrees, training, 2, 1.0, sizes))
        if case.findings and training is None:
            break  # the step holds the same forward pass
    for dtype, opset in FORMS if graph is not None and not case.findings else ():
        case.examine(_is_written, dtype, opset)
    if graph is None:
        return ""
    operators = [node.op_type for node in graph.graph.node]
    return f"{' '.join(operators) or 'no operators'}; largest error {most(errors):.1e}"


def _is_written(case: Case, dtype: str, opset: int) -> None:
    """Models of another float type, and files of other opsets, are written down too, and are valid."""
    form = f"a model of {dtype} in opset {opset}"
    try:
        proto = trace_model(case.model(dtype), opset).proto
    except LamellaError as error:
        cause = "an ONNX kernel that is made for float32; x.dtype tells" if "build said" in str(error) else ""
        raise Broken(f"{form}: {error}", cause=cause) from error
    if what := _not_valid(proto):
        raise Broken(
            f"{form} is not valid ONNX: {what}",
            cause="an operator, or a type or attribute of it, that came later; choose by xp.opset, or call the "
            "reference",
        )


class _Invalid(Broken):
    """The graph is no ONNX."""


def _inference_graph(case: Case) -> onnx.ModelProto:
    proto = _graph(case, None)
    if what := _not_valid(proto):
        at_fault = _kernels_at_fault(case, _is_valid)
        where = f"the ONNX kernel of {' and of '.join(at_fault)}" if at_fault else repr(case.specimen.subject)
        raise _Invalid(f"the graph is not valid ONNX: {where}: {what}")
    _examine_graph(case, proto)
    return proto


def _is_valid(case: Case) -> None:
    if what := _not_valid(_graph(case, None)):
        raise _Invalid(what)


def _not_valid(proto: onnx.ModelProto) -> str:
    """What is wrong with a graph as such, in one line."""
    if what := _first_unknown(proto):
        return what
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return _line(error)
    return ""


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g.node)


def _first_unknown(proto: onnx.ModelProto) -> str:
    opsets = {given.domain: given.version for given in proto.opset_import}
    return next(filter(None, (_unknown(node, opsets) for node in _nodes(proto.graph.node))), "")


def _unknown(node: onnx.NodeProto, opsets: dict[str, int]) -> str:
    """Whether the operator of a node, or one of its attributes, does not exist."""
    if node.domain:
        return ""  # only the operators of ONNX itself are known
    operator, opset = node.op_type, opsets[""]
    try:
        schema = onnx.defs.get_schema(operator, opset)
    except onnx.defs.SchemaError:
        known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
        if operator in known:
            return f"{operator} is not in opset {opset}, but in newer ones"
        return f"there is no operator {operator!r} in opset {opset}.{did_you_mean(operator, sorted(known))}"
    for attribute in node.attribute:
        if attribute.name not in schema.attributes:
            known = set(schema.attributes)
            return (
                f"{operator} has no attribute {attribute.name!r}; it has {', '.join(sorted(known)) or 'none'}."
                f"{did_you_mean(attribute.name, sorted(known))}"
            )
    return ""


def _line(error: BaseException) -> str:
    """What ONNX or onnxruntime says, without the empty lines."""
    return "; ".join(" ".join(line.split()) for line in str(error).splitlines() if line.strip())


def _kernels_at_fault(case: Case, probe: Callable[..., Any], *arguments: Any) -> list[str]:
    """The ONNX kernels in whose place the reference makes a probe find nothing wrong."""
    used: dict[Primitive, None] = {}
    plain = Primitive.__call__

    def watched(primitive: Primitive, ctx: Any, *args: Any, **options: Any) -> Any:
        if getattr(ctx, "xp", ctx).backend == "onnx" and "onnx" in primitive.kernels:
            used[primitive] = None
        return plain(primitive, ctx, *args, **options)

    def is_sound() -> bool:
        try:
            probe(case.like(), *arguments)
        except Exception:  # still wrong, or the reference can't be traced
            return False
        return True

    with mock.patch.object(Primitive, "__call__", watched):
        is_sound()
    found = []
    for primitive in used:
        with mock.patch.dict(primitive.kernels):
            del primitive.kernels["onnx"]
            if is_sound():
                found.append(repr(primitive.__name__))  # type: ignore[attr-defined]
    return found


def _graph(case: Case, training: bool | None, *, stable: bool = False) -> onnx.ModelProto:
    """What inference or a step is as a graph, traced once for each case."""
    key = "onnx", training, stable
    if key not in case.kept:
        model = case.model("float32")
        if training is None:
            case.kept[key] = trace_model(model, stable=stable).proto
        else:
            case.kept[key] = trace_step(model, training=training, wants_dx=case.wants, stable=stable)
    graph: onnx.ModelProto = case.kept[key]
    return graph


def _session(case: Case, training: bool | None, *, stable: bool = False) -> onnxruntime.InferenceSession:
    key = "onnxruntime", training, stable
    if key not in case.kept:
        graph = _graph(case, training, stable=stable)
        if what := _first_unknown(graph):
            raise Broken(f"the graph of a step is not valid ONNX: {case.specimen.subject!r}: {what}")
        try:
            case.kept[key] = session(graph.SerializeToString())
        except ParityError as error:
            raise Broken(_line(error)) from error
    return case.kept[key]


def _examine_graph(case: Case, proto: onnx.ModelProto) -> None:
    """The graph has the operators that the specimen promises, and any batch size."""
    # a layer that changes nothing leaves an Identity, since an output can't be an input
    promised, got = case.specimen.operators, sorted(n.op_type for n in proto.graph.node if n.op_type != "Identity")
    if promised is not None and sorted(promised) != got:
        raise Broken(f"expected operators {', '.join(sorted(promised))}; the graph has {', '.join(got) or 'none'}")
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.shape.dim[0].dim_param != "N":
            raise Broken(f"the batch axis of {value.name} is fixed in the graph")


class _Results(NamedTuple):
    """What inference, or one step, gives on one batch: onnxruntime, and the engine in both float types."""

    inputs: tuple[Any, ...]
    got: dict[str, Any]
    e32: dict[str, Any]
    e64: dict[str, Any]


def _results(case: Case, training: bool | None, rows: int, scale: float | None) -> _Results:
    inputs = case.cast("float32", case.draw(rows, scale=scale))
    got = _run(_session(case, training), _feeds(case, training, inputs))
    e32, e64 = (_own(case, kind, training, inputs) for kind in ("float32", "float64"))
    if e32.keys() != got.keys():
        raise Broken(f"the engine gives {', '.join(e32)}; the traced step {', '.join(got)}")
    return _Results(inputs, got, e32, e64)


def _batch_agrees(
    case: Case, training: bool | None, rows: int, scale: float | None, sizes: dict[str, int] | None = None
) -> float:
    """Inference, or one step, on one batch; in the same graph, whatever sizes axes known by name have."""
    case = case.resized_to(sizes) if sizes else case
    results = _results(case, training, rows, scale)
    mode = "in inference" if training is None else f"in {'training' if training else 'inference'} mode"
    if scale == 300.0 and not all(np.isfinite(value).all() for value in (*results.e32.values(), *results.e64.values())):
        return 0.0  # numbers that no float32 holds
    worst = 0.0
    for name, value in results.got.items():
        error, allowed, rule = compare(value, results.e32[name], results.e64[name])
        worst = max(worst, error)
        if not error <= allowed and not _explained(case, training, results, name):
            what = _title(name, case.model("float32"))
            values = f", values around {scale:g}" if scale else ", multiples of 0.5"
            batch = f"batch of {len(results.inputs[0])}{'' if scale == 1 else values}"
            batch += "".join(f", axis {axis!r} of size {size}" for axis, size in (sizes or {}).items())
            raise Broken(
                f"{what} {mode}, {batch}: onnxruntime differs by {error:.3g} where {allowed:.3g} is allowed ({rule})",
                subject=what,
                inputs=results.inputs,
                diagnose=lambda origin, name=name: {  # type: ignore[misc]
                    "cause": _cause(origin.resized_to(sizes) if sizes else origin, training, rows, scale, name)
                },
                **worst_place(value, results.e32[name]),
            )
    return worst


def _explained(case: Case, training: bool | None, results: _Results, name: str) -> bool:
    """Whether float32 holds no more digits of an array: as much as the law of purity allows the engine itself.

    That is, beside 4 times what the engine is off by, 16 times what a change of the inputs by one unit in the last
    place does, and of gradients 4 units of the incoming gradient times the input.
    """
    inputs, got, e32, e64 = results
    cotangents = case.cotangents(inputs)
    what = _title(name, case.model("float32"))
    allowed = ROUNDING * difference(e32[name], e64[name])
    allowed += case.rounding(inputs, cotangents, 16.0, training=bool(training))[what]
    if not what.startswith("output"):
        reach = max([1.0, *(largest(x) for x in inputs if x.dtype.kind == "f")])
        allowed += 4 * float(np.finfo("float32").eps) * max(map(largest, cotangents)) * reach
    return difference(got[name], e64[name]) <= allowed < np.inf or _stable_agrees(case, training, results, name)


def _stable_agrees(case: Case, training: bool | None, results: _Results, name: str) -> bool:
    """Whether the graph agrees that an export writes where a native operator rounds too much."""
    feeds = _feeds(case, training, results.inputs)
    got = _run(_session(case, training, stable=True), feeds)[name]
    error, allowed, _ = compare(got, results.e32[name], results.e64[name], by_row=got.ndim > 0)
    return error <= allowed


def _feeds(case: Case, training: bool | None, inputs: tuple[Any, ...]) -> dict[str, Any]:
    model = case.model("float32")
    feeds = dict(zip(model.input_names, inputs, strict=True))
    if training is None:
        return feeds
    incoming = zip(model.output_names, case.cast("float32", case.cotangents(inputs)), strict=True)
    return {
        **feeds,
        **{f"{name}.incoming": dy for name, dy in incoming},
        **model.parameters,
        **model.state,
        "training.seed": np.array([case.seed & 0xFFFFFFFF, case.seed >> 32], "uint32"),
        "training.step": np.array(3, "uint32"),
    }


def _own(case: Case, dtype: str, training: bool | None, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """What the engine gives, by the names that the graph has for it."""
    if training is None:
        return dict(zip(case.model("float32").output_names, case.infer(dtype, inputs), strict=True))
    return _named(case, case.step(dtype, inputs, case.cotangents(inputs), training=training))


def _cause(case: Case, training: bool | None, rows: int, scale: float | None, name: str) -> str:
    """Why onnxruntime may differ: by a kernel; only for one row, only for some numbers, by a factor."""
    at_fault = _kernels_at_fault(case, _batch_agrees, training, rows, scale)
    kernel = f"the ONNX kernel of {' and of '.join(at_fault)} differs from the reference" if at_fault else ""
    return "; ".join(filter(None, (kernel, _relation(case, training, rows, scale, name, bool(kernel)))))


def _relation(case: Case, training: bool | None, rows: int, scale: float | None, name: str, blamed: bool) -> str:
    """What the wrong array is in terms of the right one; ``blamed``: it is known that a kernel is wrong."""
    inputs, got, e32, _ = _results(case, training, rows, scale)
    value, right = got[name], e32[name]
    if rows == 1:
        try:
            _batch_agrees(case, training, 2, scale)
        except Broken:
            pass
        else:
            return "wrong for a batch of 1 only: an axis of size 1 is squeezed or broadcast away"
    factor = constant_factor(value, right)
    if factor is not None and abs(factor - 1.0) > 1e-2:
        asked = "an attribute of the node that was left at its default?"
        asked = asked if training is None else "a kernel, or a branch on the backend, in backward_pass?"
        return f"off by a factor of {factor:.4g}: {asked}"
    if words := same_but_moved(value, right):
        return words
    alike = [x for x in inputs if x.shape == right.shape]
    words = where_different(value, right, alike[0] if alike else inputs[0], own=bool(alike))
    if not words and not blamed:
        return "perhaps a branch on ctx.xp.backend, or what onnxruntime makes of these operators"
    return f"{words}; compare the ONNX kernel with the reference there" if words and not blamed else words


def _title(name: str, model: Model) -> str:
    inputs = model.input_names
    if name in model.output_names:
        return f"output {model.output_names.index(name)}"
    stem, _, kind = name.rpartition(".")
    own = own_name(stem)
    if kind == "gradient":
        return f"dx of input {inputs.index(stem)}" if stem in inputs else f"gradient of {own!r}"
    return f"update of {own!r}"


def _named(case: Case, result: StepResult) -> dict[str, Any]:
    """The arrays of a step by the names that `trace_step` gives them."""
    model = case.model("float32")
    arrays = dict(zip(model.output_names, result.predictions, strict=True))
    arrays |= {f"{name}.gradient": dx for name, dx in zip(model.input_names, result.dx, strict=True) if dx is not None}
    arrays |= {f"{name}.gradient": value for name, value in result.gradients.items()}
    return arrays | {f"{name}.new": value for name, value in result.updates.items()}


def _run(loaded: onnxruntime.InferenceSession, feeds: dict[str, Any]) -> dict[str, Any]:
    try:
        return run(loaded, feeds)
    except ParityError as error:
        raise Broken(f"onnxruntime can't run the graph: {_line(error.__cause__ or error)}") from error
