"""What an ONNX model takes and gives: the names, datatypes and shapes of its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import onnx

from lamella import DataError
from lamella_serve.datatypes import Datatype, of_onnx

__all__ = ["Signature", "Tensor", "signature_of"]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or an output.

    Attributes:
        name: its name.
        datatype: of its elements.
        axes: the size of each axis, or its name; an axis of any size that has no name is "". None: any number of axes.
    """

    name: str
    datatype: Datatype
    axes: tuple[int | str, ...] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes as the protocol writes them, with -1 for any size."""
        return (-1,) if self.axes is None else tuple(n if isinstance(n, int) else -1 for n in self.axes)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can be the tensor."""
        if self.axes is None:
            return True
        return len(shape) == len(self.axes) and all(
            isinstance(n, str) or n == size for n, size in zip(self.axes, shape, strict=True)
        )

    @property
    def any_rows(self) -> bool:
        """Whether there is a first axis, of any size."""
        return self.axes is None or (len(self.axes) > 0 and isinstance(self.axes[0], str))


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def signature_of(graph: onnx.GraphProto) -> Signature:
    """Read the signature of a graph. Inputs with a default, which are initializers too, are left out.

    Raises:
        DataError: an input or output is no tensor, or has elements that the protocol has no datatype for.
    """
    defaults = {array.name for array in graph.initializer}
    given = [value for value in graph.input if value.name not in defaults]
    return Signature(_tensors("input", given), _tensors("output", graph.output))


def _tensors(what: str, values: Iterable[onnx.ValueInfoProto]) -> tuple[Tensor, ...]:
    return tuple(_tensor(what, value) for value in values)


def _tensor(what: str, value: onnx.ValueInfoProto) -> Tensor:
    if not isinstance(value.name, str):  # protobuf gives bytes where they are no UTF-8
        raise DataError(f"{what} {value.name!r} has a name that is no UTF-8")
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        said = (kind or "value without a type").removesuffix("_type").replace("_", " ")
        fix = ""
        if what == "output" and kind in ("sequence_type", "map_type"):
            fix = "; models of scikit-learn give arrays when they are converted with options={'zipmap': False}"
        article = "an" if said[0] in "aeiou" else "a"
        raise DataError(f"{what} {value.name!r} is {article} {said}, and the protocol knows tensors only{fix}")
    tensor = value.type.tensor_type
    datatype = of_onnx(tensor.elem_type)
    if datatype is None:
        name = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise DataError(f"{what} {value.name!r} has elements of {name}, which the protocol has no datatype for")
    return Tensor(value.name, datatype, _axes(tensor) if tensor.HasField("shape") else None)


def _axes(tensor: onnx.TypeProto.Tensor) -> tuple[int | str, ...]:
    sizes = []
    for axis in tensor.shape.dim:
        known = axis.WhichOneof("value") == "dim_value" and axis.dim_value >= 0
        sizes.append(axis.dim_value if known else axis.dim_param if isinstance(axis.dim_param, str) else "")
    return tuple(sizes)
