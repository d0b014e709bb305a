"""A request and its answer, whichever way they travel: what is asked of a model, checked, and what it gave, chosen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Sequence

import numpy as np

from lamella.errors import shown
from lamella_serve.datatypes import DATATYPES, Array, Datatype
from lamella_serve.model import ServedModel
from lamella_serve.refusals import Refusal

__all__ = ["Answer", "InferRequest", "Wanted", "answer", "checked_shape", "input_named", "refuse_shared_memory"]

_LARGEST = 2**63 // 8 - 1  # elements of 8 bytes that an array of NumPy can have
_AXES = 64  # that one can have
_NAMES = 2**15  # values of an answer that are named as classes
_EMPTY = 2**20  # elements of an array without its axes of size 0: a sum over these has as many


@dataclasses.dataclass(frozen=True)
class Wanted:
    """An output that is asked for.

    Attributes:
        name: its name.
        classes: how many of the largest values to name, each as "value:place" or "value:place:label"; 0: the values.
        binary: whether to send it as bytes.
    """

    name: str
    classes: int = 0
    binary: bool = False


@dataclasses.dataclass(frozen=True)
class InferRequest:
    """What a client asks of a model."""

    id: str
    inputs: dict[str, Array]
    wanted: list[Wanted]


@dataclasses.dataclass(frozen=True)
class Answer:
    """An output as it is sent."""

    wanted: Wanted
    datatype: Datatype
    array: Array


def input_named(model: ServedModel, name: str) -> Datatype:
    """Return the datatype of an input.

    Raises:
        Refusal: the model has none of the name.
    """
    for tensor in model.inputs:
        if tensor.name == name:
            return tensor.datatype
    names = ", ".join(repr(tensor.name) for tensor in model.inputs)
    raise Refusal(400, f"model {model.name!r} has no input {shown(name)}; it has {names or 'none'}")


def checked_shape(sizes: Sequence[object], what: str) -> tuple[tuple[int, ...], int]:
    """Return a shape as it came, and how many elements it has.

    Raises:
        Refusal: a size is no whole number, below 0, or too large.
    """
    if len(sizes) > _AXES:
        raise Refusal(400, f"{what}: shape: expected at most {_AXES} axes, got {len(sizes)}")
    volume = 1  # without axes of size 0, which do not make up for others
    shape = []
    for size in sizes:
        if type(size) is not int or size < 0:
            raise Refusal(400, f"{what}: shape: expected sizes of 0 or more, got {shown(list(sizes))}")
        shape.append(size)
        volume *= size or 1
    if volume > (_EMPTY if 0 in shape else _LARGEST):
        raise Refusal(400, f"{what}: shape {shown(list(sizes))} is too large")
    return tuple(shape), 0 if 0 in shape else volume


def refuse_shared_memory(parameters: Container[str], what: str) -> None:
    """See whether a tensor's parameters name shared memory.

    Raises:
        Refusal: they do.
    """
    if "shared_memory_region" in parameters:
        raise Refusal(400, f"{what}: this server has no shared memory; tensors travel in requests and answers")


async def answer(model: ServedModel, inputs: dict[str, Array], wanted: Sequence[Wanted]) -> list[Answer]:
    """Run a model, together with the requests of others where that changes nothing. Outputs come in the model's order.

    Raises:
        Refusal: the inputs do not fit, the model can't use them, or too many others wait.
    """
    rows = _checked(model, inputs)
    asked = {one.name: one for one in wanted}
    if unknown := asked.keys() - model.session.names:
        names = ", ".join(map(repr, model.session.names))
        raise Refusal(400, f"model {model.name!r} has no output {shown(min(unknown))}; it has {names}")
    results = await model.queue.answer(inputs, rows)
    outputs = zip(model.outputs, results, strict=True)
    return [_answer(model, asked[one.name], array, one.datatype) for one, array in outputs if one.name in asked]


def _checked(model: ServedModel, inputs: dict[str, Array]) -> int:
    """Hold inputs against the model's, and return how many rows they have."""
    rows = set()
    for tensor in model.inputs:
        array = inputs.get(tensor.name)
        if array is None:
            names = ", ".join(map(repr, inputs))
            raise Refusal(400, f"model {model.name!r} needs input {tensor.name!r}, got {names or 'none'}")
        if tensor.axes == () and array.shape == (1,):  # clients that can't write a scalar send a row of one
            inputs[tensor.name] = array = array.reshape(())
        if not tensor.fits(array.shape):
            expected = ", ".join(map(str, tensor.shape))
            raise Refusal(
                400, f"input {tensor.name!r}: expected shape [{expected}], -1 being any size, got {list(array.shape)}"
            )
        if model.session.divides and tensor.datatype.name in ("INT32", "INT64") and array.size:
            least = np.iinfo(array.dtype).min  # processors fault when they divide it by -1, and onnxruntime lets them
            if array.min() == least:
                raise Refusal(400, f"input {tensor.name!r}: {least} can't be divided, which this model does")
        if array.ndim:
            rows.add(len(array))
    if not model.max_batch_size:
        return 1
    if len(rows) != 1:
        said = ", ".join(f"{name!r} has {list(array.shape)}" for name, array in inputs.items())
        raise Refusal(400, f"all inputs need a first axis, of as many rows as each other: {said}")
    count: int = rows.pop()
    if not 0 < count <= model.max_batch_size:
        raise Refusal(400, f"model {model.name!r} takes 1 to {model.max_batch_size} rows in a request, got {count}")
    return count


def _answer(model: ServedModel, wanted: Wanted, array: Array, datatype: Datatype) -> Answer:
    if not wanted.classes:
        return Answer(wanted, datatype, array)
    if datatype.kind == "s":
        raise Refusal(400, f"output {wanted.name!r} holds strings; classification needs scores")
    batched = model.max_batch_size > 0 and array.ndim > 0
    rows = array.reshape(len(array) if batched else 1, math.prod(array.shape[1:] if batched else array.shape))
    labels = model.labels.get(wanted.name, ())
    shape = (len(rows), min(wanted.classes, rows.shape[1]))
    if math.prod(shape) > _NAMES:
        raise Refusal(
            400, f"output {wanted.name!r}: an answer names at most {_NAMES:,} classes, this one {math.prod(shape):,}"
        )
    named = np.empty(shape, object)
    for place, row in enumerate(rows if named.size else ()):
        named[place] = _largest(row, named.shape[1], labels)
    return Answer(wanted, DATATYPES["BYTES"], named if batched else named[0])


def _largest(row: Array, count: int, labels: Sequence[str]) -> list[str]:
    whole = row.dtype.kind in "biu"
    falling = ~row if whole else -row.astype("float64")  # the complement turns whole numbers round, and none overflows
    last = np.partition(falling, count - 1)[count - 1]
    places = np.flatnonzero(~(falling > last))  # with its equals, and NaN if that is the last
    order = places[np.argsort(falling[places], kind="stable")[:count]]
    written = "d" if whole else "f"
    return [
        f"{row[place].item():{written}}:{place}" + (f":{labels[place]}" if place < len(labels) else "")
        for place in order.tolist()
    ]
