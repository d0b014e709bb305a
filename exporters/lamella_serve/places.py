"""Where models stand: a file, a folder of files, or a repository in Triton's layout."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from lamella import DataError

__all__ = ["Place", "find", "is_version"]

_SUFFIX = ".onnx"


@dataclasses.dataclass(frozen=True)
class Place:
    """A model that is there to be loaded.

    Attributes:
        name: what it is called.
        folder: with a ``config.pbtxt`` perhaps, and a folder for each version; None for a file on its own.
        file: a file on its own, which is version 1.
        root: the folder that the user named; what stands outside of it is not read.
    """

    name: str
    root: Path
    folder: Path | None = None
    file: Path | None = None

    def versions(self) -> list[int]:
        """The versions that are there."""
        if self.folder is None:
            return [1]
        return sorted(int(one.name) for one in self.folder.iterdir() if _holds_version(one))

    def path(self, version: int, file: str) -> Path:
        """Where a version's model stands.

        Raises:
            DataError: a link leads outside of the folder that the user named.
        """
        path = self.file if self.folder is None else self.folder / str(version) / file
        assert path is not None
        return self.inside(path)

    def inside(self, path: Path) -> Path:
        """Return a path that may be read.

        Raises:
            DataError: a link leads outside of the folder that the user named.
        """
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise DataError(f"{path} is a link to a place outside of {self.root}")
        return path


def find(paths: Iterable[Path]) -> dict[str, Place]:
    """Return the models at some paths, by their names.

    Raises:
        DataError: there are none at a path, or two of one name.
        FileNotFoundError: there is no such path.
    """
    found: dict[str, Place] = {}
    for path in paths:
        for place in _at(path):
            if place.name in found:
                first, second = (one.file or one.folder for one in (found[place.name], place))
                raise DataError(f"{first} and {second}: two models have the name {place.name!r}; each needs its own")
            found[place.name] = place
    return found


def _at(path: Path) -> list[Place]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    if not path.is_dir():
        return [Place(_name(path.with_suffix("")), Path(os.path.realpath(path)).parent, file=path)]
    if any(map(_holds_version, path.iterdir())):
        return [Place(_name(Path(os.path.abspath(path))), path, folder=path)]
    inside = sorted(one for one in path.iterdir() if not one.name.startswith("."))
    folders = [one for one in inside if one.is_dir() and any(map(_holds_version, one.iterdir()))]
    files = [one for one in inside if one.is_file() and one.suffix == _SUFFIX]
    if not folders and not files:
        raise DataError(f"{path}: no model is in this folder; expected files NAME.onnx, or NAME/1/model.onnx")
    return [Place(_name(one), path, folder=one) for one in folders] + [
        Place(_name(one.with_suffix("")), path, file=one) for one in files
    ]


def _holds_version(path: Path) -> bool:
    return path.is_dir() and is_version(path.name)


def is_version(name: str) -> bool:
    """Whether a name is a version's: a whole number above 0, of 64 bits."""
    return name.isascii() and name.isdigit() and not name.startswith("0") and len(name) < 19


def _name(path: Path) -> str:
    """A file's name, as text even where its bytes are none."""
    return os.fsencode(path.name).decode(errors="replace")
