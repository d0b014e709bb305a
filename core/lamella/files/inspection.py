"""What a file says of itself, read without building the model: no plugin is asked, and none has to be there."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lamella.arguments import file_path, positive
from lamella.files import archive
from lamella.files.structure import refusing

__all__ = ["Inspection", "LayerLine", "inspect"]


class LayerLine(NamedTuple):
    """A layer as the file describes it: its registered name in full, version, arguments as text, and inputs."""

    type: str
    version: str | None
    arguments: str


class Inspection(NamedTuple):
    """What a file holds.

    Attributes:
        format: of the file.
        kind: "Sequential" or "Model".
        dtype: of parameters and activations.
        seed: from which initial values, the order of data and random numbers follow.
        inputs: the shape of a sample of each input.
        layers: in the order of the file, those that others hold before these.
        arrays: the shape of each array by name, after ``parameters/``, ``state/`` or ``slots/``.
        distributions: the versions of the distributions whose layers and words the file has.
        step, epochs: how far training has come.
        optimizer: as text, or None.
        training: how many epochs ``fit(..., checkpoint=path)`` has done, and how many batches of the next; or None.
        stopped: why that training ended before its last epoch, or None.
        bytes: the size of the file.
    """

    path: str
    format: int
    kind: str
    dtype: str
    seed: int
    inputs: list[tuple[Any, ...]]
    layers: list[LayerLine]
    arrays: dict[str, tuple[int, ...]]
    distributions: dict[str, str]
    step: int
    epochs: int
    optimizer: str | None
    training: tuple[int, int] | None
    stopped: str | None
    bytes: int

    @property
    def parameters(self) -> int:
        """How many parameters there are."""
        return sum(math.prod(shape) for name, shape in self.arrays.items() if name.startswith("parameters/"))

    def __repr__(self) -> str:
        return (
            f"<{self.kind} of {len(self.layers)} layers and {self.parameters:,} parameters in {self.path}, step "
            f"{self.step}>"
        )


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Tell what a file of `Model.save` holds. Its checksum is examined; nothing is built.

    Raises:
        DataError: a file that is no model, or is damaged.

    >>> import lamella as lm
    >>> from lamella_layers import Dense
    >>> lm.Sequential([Dense(3, activation="relu")], input_shape=(4,)).save("small.lamella")
    >>> lm.inspect("small.lamella").layers[0].arguments
    "units=3, use_bias=True, activation='relu', kernel_initializer='glorot_uniform', bias_initializer='zeros'"
    """
    path = file_path(path, "inspect: path")
    where = f"inspect {path}"
    header, shapes = archive.outline(where, path)
    with refusing(where, "what model.save() writes"):
        model, held = header["model"], header.get("optimizer")
        versions = dict(_versions(header))
        place = header.get("training")
        place = None if place is None else dict(place["dict"])
        return Inspection(
            path=path,
            format=header["format"],
            kind=str(model["class"]),
            dtype=str(model["dtype"]),
            seed=positive(model["seed"], "seed", minimum=0),
            inputs=[tuple(one["shape"]) for one in model["inputs"]],
            layers=[_line(one) for one in model["layers"]],
            arrays=shapes,
            distributions=versions,
            step=positive(header["step"], "step", minimum=0),
            epochs=positive(header.get("epochs", 0), "epochs", minimum=0),
            optimizer=None if held is None else _text(held["object"]),
            training=None
            if place is None
            else (positive(place["epoch"], "epoch", minimum=0), positive(place["batch"], "batch", minimum=0)),
            stopped=None if place is None or place["stopped"] is None else str(place["stopped"]),
            bytes=os.path.getsize(path),
        )


def _line(described: Mapping[str, Any]) -> LayerLine:
    if "model" in described:
        inner = described["model"]
        return LayerLine("model", None, f"{inner['class']} of {len(inner['calls'])} calls")
    version = described["version"]
    return LayerLine(str(described["type"]), version and str(version), _arguments(described["config"]))


def _arguments(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in config.items())


def _text(value: Any) -> str:
    """An argument as people would write it."""
    match value:
        case {"word": str(word)}:
            return repr(word.rpartition(":")[2])
        case {"layer": number}:
            return f"layer {number}"
        case {"float": text}:
            return str(text)
        case {"dict": pairs}:
            return f"{{{', '.join(f'{_text(key)}: {_text(item)}' for key, item in pairs)}}}"
        case {"type": str(name), "config": Mapping() as config}:
            return f"{name.rpartition(':')[2]}({_arguments(config)})"
        case list():
            return f"({', '.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _versions(described: Any) -> Iterator[tuple[str, str]]:
    """The distributions that a description names, with their versions."""
    if isinstance(described, Mapping):
        name, version = described.get("type") or described.get("word"), described.get("version")
        if isinstance(name, str) and ":" in name:
            yield name.partition(":")[0], str(version) if version else ""
        described = list(described.values())
    if isinstance(described, list):
        for one in described:
            yield from _versions(one)
