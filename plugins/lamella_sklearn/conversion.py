"""How skl2onnx writes estimators down: networks as the tracer of lamella_onnx gives them, all else in its own way."""

from __future__ import annotations

import copy
import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import onnx
import skl2onnx
from onnx import TensorProto, helper, numpy_helper
from skl2onnx._parse import _parse_sklearn, _parse_sklearn_feature_union  # which parsers of meta-estimators call
from skl2onnx.common._registration import get_converter, get_shape_calculator
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.base import is_classifier
from sklearn.compose import TransformedTargetRegressor
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer

import lamella as lm
from lamella.errors import in_words
from lamella_onnx.models import trace_model
from lamella_onnx.runtime import ParityError
from lamella_onnx.tracer import TraceError
from lamella_onnx.validity import in_one_line, not_valid
from lamella_sklearn.estimators import LamellaClassifier, LamellaRegressor
from lamella_sklearn.frames import Column, Rows

__all__ = ["NEWEST_OPSET", "convert"]

NEWEST_OPSET: int = skl2onnx.__max_supported_opset__
_ML_OPSET = 3  # of the domain ai.onnx.ml
_DOMAIN = "lamella"  # of nodes that stand for networks
_JOINED = "columns of a data frame"
_ELEMENTS = {
    "bool": TensorProto.BOOL,
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "string": TensorProto.STRING,
}


class _Networks:
    """The networks of an estimator, traced, while skl2onnx writes down what is around them.

    skl2onnx knows no node that leaves an input out, as LSTM does. So it is given one node for each network, which is
    replaced afterwards.
    """

    def __init__(self, opset: int, *, stable: bool) -> None:
        self.opset, self.stable = opset, stable
        self._graphs: dict[str, onnx.GraphProto] = {}  # by the name of the node

    def add(self, name: str, model: lm.Model) -> None:
        """Keep a network, which shall compute in float32."""
        proto = trace_model(model.copy(dtype="float32"), self.opset, stable=self.stable).proto
        self._graphs[name] = onnx.compose.add_prefix_graph(proto.graph, f"{name}/")

    def put_into(self, proto: onnx.ModelProto) -> None:
        """Replace the nodes that stand for networks."""
        graph, nodes = proto.graph, []
        for node in graph.node:
            if node.domain != _DOMAIN:
                nodes.append(node)
                continue
            network = self._graphs[node.name]
            ends = {network.input[0].name: node.input[0], network.output[0].name: node.output[0]}
            _rename(network, ends)
            nodes += network.node
            graph.initializer.extend(network.initializer)
        _replace(graph.node, nodes)
        _replace(proto.opset_import, [known for known in proto.opset_import if known.domain != _DOMAIN])


_networks: ContextVar[_Networks | None] = ContextVar("networks", default=None)  # of the conversion under way


def convert(
    estimator: Any, rows: Rows, opset: int, *, double: bool = False, stable: bool = False
) -> tuple[onnx.ModelProto, list[Column]]:
    """Return an estimator as a graph, and the columns that it uses, which are its inputs.

    Arguments:
        double: whether numbers are float64 up to the networks, as scikit-learn computes; few converters can.
        stable: whether the networks have operators that round less.

    Raises:
        TraceError: a step can't be written down.
        DataError: a column is used that a file can't hold.
    """
    _register()
    networks = _Networks(opset, stable=stable)
    token = _networks.set(networks)
    try:
        proto = _written(estimator, rows, opset, double)
    finally:
        _networks.reset(token)
    networks.put_into(proto)
    columns = _as_asked(proto.graph, rows.columns)
    if what := not_valid(proto):
        raise ParityError(f"the graph is not valid ONNX: {what}")
    return proto, columns


def _written(estimator: Any, rows: Rows, opset: int, double: bool) -> onnx.ModelProto:
    """What skl2onnx makes of an estimator, with an input for each of the columns, in their order."""
    kinds = {"float32": FloatTensorType, "int64": Int64TensorType, "bool": Int64TensorType}
    if double:
        kinds = dict.fromkeys(kinds, DoubleTensorType)
    kinds["string"] = StringTensorType
    types = [(one.name, kinds[one.dtype]([None, one.width])) for one in rows.columns]
    tried = [types]
    if not double and any(one.dtype in ("int64", "bool") for one in rows.columns):
        # some converters refuse integers, as that of SimpleImputer where there are floats beside them
        floats = [kinds["string" if one.dtype == "string" else "float32"] for one in rows.columns]
        tried.append([(one.name, kind([None, one.width])) for one, kind in zip(rows.columns, floats, strict=True)])
    if rows.is_frame and "string" not in {one.dtype for one in rows.columns}:
        # most steps take one matrix; those that choose columns by name need them apart, and refuse it
        tried.insert(0, [(_JOINED, kinds["float32"]([None, len(types)]))])
    options = {id(estimator): {"zipmap": False}} if is_classifier(estimator) else None
    versions = {"": opset, "ai.onnx.ml": _ML_OPSET}
    proto: onnx.ModelProto
    said: list[str] = []
    cause: Exception | None = None
    for given in tried:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of skl2onnx, about itself
                proto = skl2onnx.to_onnx(estimator, initial_types=given, target_opset=versions, options=options)
        except lm.LamellaError:
            raise
        except Exception as error:  # it has many kinds
            said.append(_reason(error))
            cause = error
        else:
            if given[0][0] == _JOINED:
                _take_apart(proto.graph, [one.name for one in rows.columns])
            return proto
    raise TraceError(
        f"to_onnx: skl2onnx {skl2onnx.__version__} can't write the estimator down: {'; '.join(dict.fromkeys(said))}"
    ) from cause


def _reason(error: Exception) -> str:
    missing = re.search(r"Unable to find a (?:shape calculator|converter) for type '<class '([\w.]+)", str(error))
    if missing:
        return f"it has no converter for {missing[1].rpartition('.')[2]}. Likely fix: another step in its place"
    return in_one_line(in_words(error))


def _take_apart(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Give a graph of one matrix an input for each of its columns."""
    (joined,) = graph.input
    element, taken = joined.type.tensor_type.elem_type, _names_in(graph)
    inputs = [_free(name, taken) for name in names]
    _replace(graph.node, [helper.make_node("Concat", inputs, [joined.name], joined.name, axis=1), *graph.node])
    _replace(graph.input, [helper.make_tensor_value_info(name, element, ["N", 1]) for name in inputs])


def _as_asked(graph: onnx.GraphProto, columns: Sequence[Column]) -> list[Column]:
    """Give inputs the names and dtypes of their columns, and outputs float32; return the columns that are used."""
    used = {name for node in graph.node for name in node.input}
    pairs = [(given, column) for given, column in zip(graph.input, columns, strict=True) if given.name in used]
    taken = _names_in(graph) | {column.name for _, column in pairs}
    renamed = {column.name: _free(column.name, taken) for _, column in pairs}  # but for an input of this name
    before, inputs = [], []
    for given, column in pairs:
        element = _ELEMENTS[column.dtype]
        renamed[given.name] = column.name
        if given.type.tensor_type.elem_type != element:
            renamed[given.name] = _free(column.name, taken)
            to = given.type.tensor_type.elem_type
            before.append(helper.make_node("Cast", [column.name], [renamed[given.name]], renamed[given.name], to=to))
        inputs.append(helper.make_tensor_value_info(column.name, element, ["N", column.need().shape[1]]))
    _rename(graph, renamed)
    after = []
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "N"
        if output.type.tensor_type.elem_type == TensorProto.DOUBLE:
            double = _free(output.name, taken)
            _rename(graph, {output.name: double})
            after.append(helper.make_node("Cast", [double], [output.name], double, to=TensorProto.FLOAT))
            output.type.tensor_type.elem_type = TensorProto.FLOAT
    for output in graph.output:
        output.name = renamed.get(output.name, output.name)
    _replace(graph.node, [*before, *graph.node, *after])
    _replace(graph.input, inputs)
    return [column for _, column in pairs]


def _names_in(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in (*node.input, *node.output)}


def _free(name: str, taken: set[str]) -> str:
    """A name like this one that is not taken; from now on it is."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give values of a graph other names; its inputs and outputs are those of the caller."""
    for node in graph.node:
        for place in (node.input, node.output):
            _replace(place, [names.get(name, name) for name in place])
    for value in (*graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)


def _replace(field: Any, entries: Any) -> None:
    """Give a repeated field of a message other entries."""
    entries = list(entries)
    del field[:]
    field.extend(entries)


@functools.cache
def _register() -> None:
    """Tell skl2onnx how the estimators are converted."""
    add = skl2onnx.update_registered_converter
    add(LamellaRegressor, "LamellaRegressor", _regressor_shapes, _regressor)
    options: dict[str, Any] = {"zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": None}
    add(LamellaClassifier, "LamellaClassifier", _classifier_shapes, _classifier, options=options)
    add(TransformedTargetRegressor, "LamellaTargets", _target_shapes, _targets, parser=_parse_targets)
    imputer = skl2onnx.get_model_alias(SimpleImputer)
    convert = functools.partial(_imputer, get_converter(imputer))
    add(SimpleImputer, imputer, get_shape_calculator(imputer), convert)
    skl2onnx.update_registered_parser(Pipeline, _parse_pipeline)
    skl2onnx.update_registered_parser(FeatureUnion, _parse_union)


def _floats(operator: Any) -> Any:
    """The type of floats that an operator is given, and gives."""
    return DoubleTensorType if isinstance(operator.inputs[0].type, DoubleTensorType) else FloatTensorType


def _regressor_shapes(operator: Any) -> None:
    operator.outputs[0].type = _floats(operator)([None, operator.raw_operator.n_outputs_])


def _classifier_shapes(operator: Any) -> None:
    estimator = operator.raw_operator
    labels = Int64TensorType if _labels(estimator).dtype.kind == "i" else StringTensorType
    operator.outputs[0].type = labels([None, estimator.n_outputs_] if estimator.multilabel_ else [None])
    operator.outputs[1].type = _floats(operator)([None, estimator.n_outputs_])


def _labels(estimator: Any) -> Any:
    """The classes as ONNX has them: int64, or strings."""
    classes = estimator.classes_
    if classes.dtype.kind in "biuf" and np.array_equal(classes, classes.astype("int64")):
        return classes.astype("int64")
    if all(isinstance(one, str) for one in classes):
        return classes.astype("object")
    raise lm.DataError(f"to_onnx: classes: expected integers, bools or strings, got {classes.tolist()}")


def _regressor(scope: Any, operator: Any, container: Any) -> None:
    _network(scope, operator, container, operator.outputs[0].full_name)


def _classifier(scope: Any, operator: Any, container: Any) -> None:
    estimator, (label, probabilities) = operator.raw_operator, [one.full_name for one in operator.outputs]
    _network(scope, operator, container, probabilities, "Sigmoid" if estimator.multilabel_ else "Softmax")
    if estimator.multilabel_:
        half = _constant(
            scope, container, np.array(0.5, "float64" if _floats(operator) is DoubleTensorType else "float32")
        )
        above = scope.get_unique_variable_name("above_half")
        container.add_node("Greater", [probabilities, half], [above], name=scope.get_unique_operator_name("label"))
        container.add_node("Cast", [above], [label], name=scope.get_unique_operator_name("label"), to=TensorProto.INT64)
        return
    place = scope.get_unique_variable_name("place")
    name = scope.get_unique_operator_name("label")
    container.add_node("ArgMax", [probabilities], [place], name=name, axis=1, keepdims=0)
    classes = _constant(scope, container, _labels(estimator))
    container.add_node("Gather", [classes, place], [label], name=scope.get_unique_operator_name("label"))


def _constant(scope: Any, container: Any, array: Any) -> str:
    name: str = scope.get_unique_variable_name("classes")
    container.initializers.append(numpy_helper.from_array(array, name))
    return name


def _network(scope: Any, operator: Any, container: Any, output: str, activation: str = "") -> None:
    """Add a node that stands for a network, which takes float32 and gives it, and an operator after it."""
    networks = _networks.get()
    if networks is None:
        raise lm.ArgumentError(
            "skl2onnx.to_onnx: networks of lamella are written by lamella_sklearn.to_onnx(pipeline, path, samples), "
            "which proves the file, too"
        )
    name = scope.get_unique_operator_name(type(operator.raw_operator).__name__)
    networks.add(name, operator.raw_operator.model_)
    given = [one.full_name for one in operator.inputs]
    if not all(isinstance(one.type, FloatTensorType) for one in operator.inputs):
        parts = [f"{name}/input_{place}" for place in range(len(given))]
        for one, part in zip(given, parts, strict=True):
            container.add_node("Cast", [one], [part], name=part, to=TensorProto.FLOAT)
        given = parts
    if len(given) > 1:
        container.add_node("Concat", given, [f"{name}/input"], name=f"{name}/input", axis=1)
        given = [f"{name}/input"]
    result = f"{name}/output"
    container.add_node("Network", given, [result], _DOMAIN, 1, name)
    if activation:
        container.add_node(activation, [result], [f"{name}/{activation}"], name=f"{name}/{activation}")
        result = f"{name}/{activation}"
    if _floats(operator) is DoubleTensorType:
        container.add_node("Cast", [result], [output], name=f"{result}/double", to=TensorProto.DOUBLE)
    else:
        container.add_node("Identity", [result], [output], name=f"{result}/float")  # which skl2onnx takes out


def _imputer(convert: Any, scope: Any, operator: Any, container: Any) -> None:
    """skl2onnx's converter, and none of text: strings of ONNX are never missing, as NaN and None are."""
    estimator, given = operator.raw_operator, [one.full_name for one in operator.inputs]
    may_be_missing = isinstance(estimator.missing_values, str) or estimator.indicator_ is not None
    if may_be_missing or not isinstance(operator.inputs[0].type, StringTensorType):
        convert(scope, operator, container)
    else:
        name = scope.get_unique_operator_name("text")
        container.add_node("Concat", given, [operator.outputs[0].full_name], name=name, axis=1)


def _parse_pipeline(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """The steps one after the other, but for "passthrough", which skl2onnx takes for an estimator."""
    for _, step in model.steps:
        if step is None or step == "passthrough":
            continue
        if is_classifier(step) and not {id(step), type(step)} & set(scope.options or ()):
            scope.add_options(id(step), scope.get_options(model, {"zipmap": True}))
        inputs = _parse_sklearn(scope, step, inputs, custom_parsers=custom_parsers)
    return inputs


def _parse_union(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """The transformers side by side, with one for "passthrough" and none for "drop"."""
    given = copy.copy(model)
    given.transformer_list = [
        (name, FunctionTransformer() if one == "passthrough" else one)
        for name, one in model.transformer_list
        if one != "drop"
    ]
    return _parse_sklearn_feature_union(scope, given, inputs, custom_parsers=custom_parsers)


def _parse_targets(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    """The regressor within, and then an operator that brings what it gives back to the targets' scale."""
    this = scope.declare_local_operator("LamellaTargets", model)
    this.inputs = _parse_sklearn(scope, model.regressor_, inputs, custom_parsers=custom_parsers)
    this.outputs.append(scope.declare_local_variable("variable", _floats(this)()))
    return this.outputs


def _target_shapes(operator: Any) -> None:
    operator.outputs[0].type = _floats(operator)(operator.inputs[0].type.shape)


def _targets(scope: Any, operator: Any, container: Any) -> None:
    """Write down what undoes the transformation of targets: exp, expm1, or a factor and an offset for each."""
    inverse, given = operator.raw_operator.transformer_, operator.inputs[0].full_name
    dtype = "float64" if _floats(operator) is DoubleTensorType else "float32"

    def add(kind: str, *others: Any) -> None:
        nonlocal given
        constants = [_constant(scope, container, np.asarray(other, dtype)) for other in others]
        given, *before = scope.get_unique_variable_name("targets"), given, *constants
        container.add_node(kind, before, [given], name=scope.get_unique_operator_name("targets"))

    function = getattr(inverse, "inverse_func", None)
    if function in (np.exp, np.expm1):
        add("Exp")
        if function is np.expm1:
            add("Sub", 1.0)
    else:
        z = np.array([[0.0], [1.0], [-2.5], [1e3]]) * np.ones(operator.raw_operator.transformer_.n_features_in_)
        y = inverse.inverse_transform(z)
        slope = y[1] - y[0]
        if not np.allclose(y, y[0] + z * slope, rtol=1e-9):
            raise NotImplementedError(f"what undoes {inverse} is no exp, no expm1, and no factor with an offset")
        add("Mul", slope)
        add("Add", y[0])
    container.add_node("Identity", [given], [operator.outputs[0].full_name], name=given)
