"""Whether a graph is sure to take little time and memory, as nearly all exported ones are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

__all__ = ["is_modest"]

NODES = 10_000
VALUES = 2**24  # in all arrays together, beside those that the file holds
WORK = 2e10  # multiplications
_AXES = 16  # of arrays in the file; arrays of up to so many elements may be sizes, which shapes follow from
_GROWTH = 10**6  # axes that nodes add, times nodes

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

_OPERATORS = """
Abs Add And ArgMax ArgMin BatchNormalization Cast Ceil Celu Clip Concat Constant ConstantOfShape Cos CumSum Div Elu
Equal Erf Exp Expand Flatten Floor Gather GatherElements Gelu GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax Max Mean Min Mish Mod Mul Neg Not Or PRelu Pad Pow RMSNormalization Range Reciprocal ReduceL1 ReduceL2
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu Shape
Sigmoid Sign Sin Size Slice Softmax Softplus Softsign Split Sqrt Squeeze Sub Sum Swish Tan Tanh Tile Transpose Unsqueeze
Where Xor
"""  # their work is that of reading what they are given and writing what they give
_PER_VALUE = frozenset(_OPERATORS.split())
_PLAIN = {
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.TENSOR,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
    AttributeProto.STRINGS,
}


def is_modest(proto: onnx.ModelProto, size: int, feeds: Mapping[str, Array]) -> bool:
    """Return whether a graph, of a file of so many bytes, surely ends soon on these inputs.

    It has common operators only, none with a body; all shapes follow from those of the inputs; and the arrays, and the
    multiplications that they need, are not many. A graph without these is not bad; it is only not known to be modest.
    """
    graph = proto.graph
    if proto.functions or graph.sparse_initializer or len(graph.node) > NODES:
        return False
    if not all(_is_plain(one) for node in graph.node for one in node.attribute):
        return False
    try:
        if not _keeps_axes_few(graph):
            return False
        shapes = _shapes(proto, {name: array.shape for name, array in feeds.items()})
        sound = all(axis >= 0 for shape in shapes.values() for axis in shape)
        return sound and _count(shapes.values()) <= VALUES + size and sum(_work(n, shapes) for n in graph.node) <= WORK
    except Exception:  # a shape is not known, or something is wrong, which is for the checker to say
        return False


def _is_plain(one: onnx.AttributeProto) -> bool:
    few = len(one.ints) <= _AXES and len(one.t.dims) <= _AXES
    return few and one.type in _PLAIN and not one.ref_attr_name


def _keeps_axes_few(graph: onnx.GraphProto) -> bool:
    """Whether arrays can't get so many axes that shape inference is kept busy."""
    ranks = {array.name: len(array.dims) for array in graph.initializer}
    lengths = {array.name: math.prod(array.dims) for array in graph.initializer}
    growth = 0
    for node in graph.node:
        if node.op_type == "Gather":  # from an array in the file, or at places that stand there
            growth += min(ranks[name] for name in node.input if name in ranks)
        elif node.op_type == "Unsqueeze":
            growth += lengths[node.input[1]] if len(node.input) > 1 else _AXES
    return max(ranks.values(), default=0) <= _AXES and growth * len(graph.node) <= _GROWTH


def _shapes(proto: onnx.ModelProto, given: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of all values that follow from those of the inputs."""
    shapes = {**{array.name: tuple(array.dims) for array in proto.graph.initializer}, **given}
    kinds = {array.name: array.data_type for array in proto.graph.initializer}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in proto.graph.input if value.name in given}
    sizes = [array for array in proto.graph.initializer if math.prod(array.dims) <= _AXES]
    known = {array.name: numpy_helper.to_array(array) for array in sizes}
    nodes = [node for node in proto.graph.node if not _follows(node, known, given)]
    graph = onnx.GraphProto(name="shapes", node=nodes)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in known.items())
    graph.input.extend(helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in shapes.items())
    alone = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, graph=graph)
    for value in onnx.shape_inference.infer_shapes(alone).graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return {name: array.shape for name, array in known.items()} | shapes


def _follows(node: onnx.NodeProto, known: dict[str, Array], given: Mapping[str, Shape]) -> bool:
    """Compute a size that follows from the inputs' shapes; shape inference on its own can be kept busy for ever."""
    if node.op_type == "Shape" and node.input[0] in given:
        said = _attributes(node)
        value = np.array(given[node.input[0]], "int64")[said.get("start", 0) : said.get("end")]
    elif node.op_type in _SIZES and all(name in known for name in node.input):
        value = np.asarray(_SIZES[node.op_type](_attributes(node), *(known[name] for name in node.input)))
    else:
        return False
    if value.size <= _AXES:
        known[node.output[0]] = value
    return value.size <= _AXES


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


_SIZES: dict[str, Callable[..., Any]] = {
    "Add": lambda said, a, b: a + b,
    "Cast": lambda said, a: a.astype(helper.tensor_dtype_to_np_dtype(said["to"])),
    "Concat": lambda said, *arrays: np.concatenate(arrays),
    "Mul": lambda said, a, b: a * b,
    "Squeeze": lambda said, a: np.squeeze(a),
}


def _work(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> float:
    """At most so many multiplications, or the like, does a node take."""
    if node.domain not in ("", "ai.onnx"):
        raise LookupError(node.domain)
    inputs, outputs = ([shapes[name] for name in names if name] for names in (node.input, node.output))
    reading = _count(inputs) + _count(outputs)
    if node.op_type in _PER_VALUE:
        return reading
    return reading + _MORE[node.op_type](node, _count(outputs), *inputs)


def _count(shapes: Iterable[Shape]) -> int:
    return sum(map(math.prod, shapes))


def _convolve(_: onnx.NodeProto, given: int, x: Shape, kernel: Shape, *rest: Shape) -> float:
    return (given + math.prod(x)) * math.prod(kernel[1:])


def _pool(node: onnx.NodeProto, given: int, *_: Shape) -> float:
    return float(given * max(math.prod(one.ints) for one in node.attribute if one.name == "kernel_shape"))


def _multiply(node: onnx.NodeProto, given: int, a: Shape, *rest: Shape) -> float:
    return float(given * (a[-1] if node.op_type == "MatMul" else max(a)))


def _step(_: onnx.NodeProto, given: int, x: Shape, kernel: Shape, recurrent: Shape, *rest: Shape) -> float:
    return math.prod(x[:2]) * (math.prod(kernel) + math.prod(recurrent))


def _attend(_: onnx.NodeProto, given: int, query: Shape, key: Shape, *rest: Shape) -> float:
    return (given + math.prod(query)) * math.prod(key[1:])


_MORE: dict[str, Callable[..., float]] = {  # work beside reading and writing
    "Attention": _attend,
    "AveragePool": _pool,
    "Conv": _convolve,
    "ConvTranspose": _convolve,
    "GRU": _step,
    "Gemm": _multiply,
    "LSTM": _step,
    "MatMul": _multiply,
    "MaxPool": _pool,
    "RNN": _step,
}
