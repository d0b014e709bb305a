"""The law that a layer means the same in ONNX: forward and backward, in inference and in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import onnx
import onnxruntime

from lamella import Model
from lamella.errors import LamellaError
from lamella.primitives import Primitive
from lamella.testing.case import Case
from lamella.testing.comparison import Broken, difference, largest, most, named, own_name, worst_place
from lamella.testing.diagnosis.relation import constant_factor, same_but_moved, where_different
from lamella_onnx.models import trace_model, trace_step
from lamella_onnx.parity import ROUNDING, compare
from lamella_onnx.runtime import DEFAULT_OPSET, OLDEST_OPSET, ParityError, run, session
from lamella_onnx.validity import first_unknown, in_one_line, not_valid

__all__ = ["same_in_onnx"]

BATCHES = (  # rows, and how large random floats are; without a size, multiples of one half
    (1, 1.0),
    (2, 1.0),
    (5, 1.0),
    (5, 30.0),
    (5, None),
    (3, 300.0),
)
_ROUNDS_WORSE = 0.1  # of the largest value: an operator that is further away is wrong, whatever the stable graph gives
FORMS = (("float32", OLDEST_OPSET), ("float64", DEFAULT_OPSET))  # besides float32 in the default opset


def same_in_onnx(case: Case) -> str:
    """onnxruntime gives the engine's outputs, gradients and updates, for few rows, large values, and ties."""
    graph = case.check(_inference_graph)
    if any(isinstance(failure.error, _Invalid) for failure in case.failed):
        return ""  # the step holds the same forward pass
    modes: list[bool | None] = [True, False]  # steps in training and inference mode; None: inference alone
    errors = []
    for training in modes if graph is None else [None, *modes]:
        known = len(case.failed)
        for rows, scale in BATCHES if training is None else BATCHES[:-1]:  # gradients of what saturates are rounding
            errors.append(case.check(_batch_agrees, training, rows, scale))
            if len(case.failed) > known and not isinstance(case.failed[-1].error, Broken):
                break  # what can't be traced at all
        for sizes in [] if case.failed else case.other_sizes:
            errors.append(case.check(_batch_agrees, training, 2, 1.0, sizes))
        if case.failed and training is None:
            break  # the step holds the same forward pass
    for dtype, opset in FORMS if graph is not None and not case.failed else ():
        case.check(_is_written, dtype, opset)
    if graph is None:
        return ""
    operators = [node.op_type for node in graph.graph.node]
    return f"onnxruntime agrees, largest error {most(errors):.1e}; {' '.join(operators) or 'no operators'}"


def _is_written(case: Case, dtype: str, opset: int) -> None:
    """The model in another float type or opset is traced, too, and is valid ONNX."""
    form = f"a model of {dtype} in opset {opset}"
    try:
        proto = trace_model(case.model(dtype), opset).proto
    except LamellaError as error:
        cause = "an ONNX kernel that is made for float32; x.dtype tells" if "build said" in str(error) else ""
        raise Broken(f"{form}: {error}", cause=cause) from error
    if what := not_valid(proto):
        raise Broken(
            f"{form} is not valid ONNX: {what}",
            cause="an operator, or a type or attribute of it, that came later; choose by xp.opset, or call the "
            "reference",
        )


class _Invalid(Broken):
    """The graph is not valid ONNX."""


def _inference_graph(case: Case) -> onnx.ModelProto:
    proto = _graph(case, None)
    if what := not_valid(proto):
        at_fault = _kernels_at_fault(case, _is_valid)
        where = f"the ONNX kernel of {' and of '.join(at_fault)}" if at_fault else repr(case.specimen.subject)
        raise _Invalid(f"the graph is not valid ONNX: {where}: {what}")
    _examine_graph(case, proto)
    return proto


def _is_valid(case: Case) -> None:
    if what := not_valid(_graph(case, None)):
        raise _Invalid(what)


def _kernels_at_fault(case: Case, probe: Callable[..., Any], *arguments: Any) -> list[str]:
    """The ONNX kernels that are at fault: with the reference in their place, a probe finds nothing wrong."""
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
        if what := first_unknown(graph):
            raise Broken(f"the graph of a step is not valid ONNX: {case.specimen.subject!r}: {what}")
        try:
            case.kept[key] = session(graph.SerializeToString())
        except ParityError as error:
            raise Broken(in_one_line(error)) from error
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
    """What inference, or one step, gives on one batch: onnxruntime, and the engine in both float types.

    Arrays have the names that reports use, such as ``output 0``.
    """

    inputs: tuple[Any, ...]
    got: dict[str, Any]
    e32: dict[str, Any]
    e64: dict[str, Any]


def _results(case: Case, training: bool | None, rows: int, scale: float | None) -> _Results:
    inputs = case.cast("float32", case.draw(rows, scale=scale))
    got = _runtime(case, training, inputs)
    e32, e64 = (_own(case, kind, training, inputs) for kind in ("float32", "float64"))
    if e32.keys() != got.keys():
        raise Broken(f"the engine gives {', '.join(e32)}; the traced step {', '.join(got)}")
    return _Results(inputs, got, e32, e64)


def _batch_agrees(
    case: Case, training: bool | None, rows: int, scale: float | None, sizes: dict[str, int] | None = None
) -> float:
    """Compare inference, or one step, on one batch; ``sizes`` are those of axes with a name.

    ``training`` is None for inference, else the mode of the step. Return the largest error.
    """
    case = case.resized_to(sizes) if sizes else case
    results = _results(case, training, rows, scale)
    mode = "in inference" if training is None else f"in {'training' if training else 'inference'} mode"
    if scale == 300.0 and not all(np.isfinite(value).all() for value in (*results.e32.values(), *results.e64.values())):
        return 0.0  # values that no float32 holds
    worst = 0.0
    for name, value in results.got.items():
        error, allowed, rule = compare(value, results.e32[name], results.e64[name])
        worst = max(worst, error)
        if not error <= allowed and not _explained(case, training, results, name):
            values = f", values around {scale:g}" if scale else ", multiples of 0.5"
            batch = f"batch of {len(results.inputs[0])}{'' if scale == 1 else values}"
            batch += "".join(f", axis {axis!r} of size {size}" for axis, size in (sizes or {}).items())
            raise Broken(
                f"{name} {mode}, {batch}: onnxruntime differs by {error:.3g} where {allowed:.3g} is allowed ({rule})",
                subject=name,
                inputs=results.inputs,
                diagnose=lambda origin, name=name: {  # type: ignore[misc]
                    "cause": _cause(origin.resized_to(sizes) if sizes else origin, training, rows, scale, name)
                },
                **worst_place(value, results.e32[name]),
            )
    return worst


def _explained(case: Case, training: bool | None, results: _Results, name: str) -> bool:
    """Whether the difference is within what the law of purity allows the engine itself, or the stable graph agrees.

    The allowed difference is the sum of 4 times the engine's own error, 16 times the change of the result where inputs
    move by one unit in the last place, and for gradients 4 units in the last place of the incoming gradient times the
    input. The stable graph explains differences that may be rounding, not those that can't.
    """
    inputs, got, e32, e64 = results
    cotangents = case.cotangents(inputs)
    allowed = ROUNDING * difference(e32[name], e64[name])
    allowed += case.rounding(inputs, cotangents, 16.0, training=bool(training))[name]
    if not name.startswith("output"):
        reach = max([1.0, *(largest(x) for x in inputs if x.dtype.kind == "f")])
        allowed += 4 * float(np.finfo("float32").eps) * max(map(largest, cotangents)) * reach
    found = difference(got[name], e64[name])
    if found <= allowed < np.inf:
        return True
    return found <= _ROUNDS_WORSE * max(1.0, largest(e64[name])) and _stable_agrees(case, training, results, name)


def _stable_agrees(case: Case, training: bool | None, results: _Results, name: str) -> bool:
    """Whether the stable graph agrees, which export writes where a native operator rounds too much."""
    got = _runtime(case, training, results.inputs, stable=True)[name]
    error, allowed, _ = compare(got, results.e32[name], results.e64[name], by_row=got.ndim > 0)
    return error <= allowed


def _runtime(
    case: Case, training: bool | None, inputs: tuple[Any, ...], *, stable: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """What onnxruntime gives, by the names that reports use."""
    model = case.model("float32")
    try:
        got = run(_session(case, training, stable=stable), _feeds(case, training, inputs))
    except ParityError as error:
        raise Broken(f"onnxruntime can't run the graph: {in_one_line(error.__cause__ or error)}") from error
    return {_title(name, model): value for name, value in got.items()}


def _feeds(case: Case, training: bool | None, inputs: tuple[Any, ...]) -> dict[str, Any]:
    model = case.model("float32")
    given = zip(model.input_names, inputs, model.input_specs, strict=True)
    feeds: dict[str, Any] = {name: x.astype(spec.dtype, copy=False) for name, x, spec in given}
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
    """What the engine gives, by the names that reports use."""
    if training is None:
        return {f"output {k}": y for k, y in enumerate(case.infer(dtype, inputs))}
    return named(case.step(dtype, inputs, case.cotangents(inputs), training=training))


def _cause(case: Case, training: bool | None, rows: int, scale: float | None, name: str) -> str:
    """Why onnxruntime may differ: which kernel is at fault, and how the results differ."""
    at_fault = _kernels_at_fault(case, _batch_agrees, training, rows, scale)
    kernel = f"the ONNX kernel of {' and of '.join(at_fault)} differs from the reference" if at_fault else ""
    return "; ".join(filter(None, (kernel, _relation(case, training, rows, scale, name, bool(kernel)))))


def _relation(case: Case, training: bool | None, rows: int, scale: float | None, name: str, blamed: bool) -> str:
    """How the wrong array relates to the right one; ``blamed``: a kernel is known to be wrong."""
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
    """What reports call an output of the graph of inference, or of a step."""
    inputs = model.input_names
    if name in model.output_names:
        return f"output {model.output_names.index(name)}"
    stem, _, kind = name.rpartition(".")
    own = own_name(stem)
    if kind == "gradient":
        return f"dx of input {inputs.index(stem)}" if stem in inputs else f"gradient of {own!r}"
    return f"update of {own!r}"
