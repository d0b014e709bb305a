"""Arrays whose data stand in files beside the model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from lamella import DataError
from lamella_onnx.files import LARGEST, read

__all__ = ["external_arrays", "fetch"]


def external_arrays(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield all arrays within a message whose data stand in another file."""
    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL or message.external_data:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from external_arrays(inner)


def fetch(path: Path, arrays: list[onnx.TensorProto]) -> None:
    """Put the data into the arrays, from files in the model's own folder or below.

    Raises:
        DataError: they stand elsewhere, are missing or too short, or take 2 GiB or more.
    """
    folder = Path(os.path.realpath(path)).parent
    contents: dict[Path, bytes] = {}
    total = 0
    for array in arrays:
        said = {entry.key: entry.value for entry in array.external_data}
        location = said.get("location", "")
        try:
            file = Path(os.path.realpath(folder / location))
            if not file.is_relative_to(folder):
                raise ValueError("outside of the model's folder")
            if file not in contents:
                contents[file] = read(file)
            start = int(said.get("offset", 0))
            end = start + int(said["length"]) if "length" in said else len(contents[file])
            if not 0 <= start <= end <= len(contents[file]):
                raise ValueError(f"the file has no bytes {start} to {end}")
        except (FileNotFoundError, ValueError) as error:
            what = "no such file" if isinstance(error, FileNotFoundError) else error
            raise DataError(f"the data of array {array.name!r} stand in {location!r}: {what}") from error
        total += end - start
        if total > LARGEST:
            raise DataError("the file and its arrays take 2 GiB or more")
        array.ClearField("external_data")
        array.ClearField("data_location")
        array.raw_data = contents[file][start:end]
