"""What stands in the folder of an exported training step, and the manifest that says so.

The manifest, ``training.json``, is all that a runner needs, in any language. It names the files with their hashes, and
every input and output of both graphs with its role, shape and dtype: see `Entry`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lamella import DataError
from lamella.backends.namespace import DTYPE_NAMES
from lamella.errors import shown
from lamella_onnx.files import alone_in, read

__all__ = ["MANIFEST", "PREDICT", "STATE", "TRAIN", "Entry", "Manifest", "read_folder", "write_folder"]

MANIFEST, TRAIN, PREDICT, STATE = "training.json", "train.onnx", "predict.onnx", "state.safetensors"
_FORMAT, _VERSION = "lamella.training", 1
_INPUTS = (
    *("input", "target", "sample_weight", "learning_rate"),
    *("seed", "step", "t", "parameter", "slot", "state"),
)
_OUTPUTS = ("loss", "penalty", "finite", "prediction", "new", "gradient", "drawn")
KEPT = ("seed", "step", "t", "parameter", "slot", "state")  # roles of what stands in a state file
_BEGIN, _END = ".lamella-", ".part"  # of the name of a folder that is being written


@dataclasses.dataclass(frozen=True)
class Entry:
    """An input or output of a graph.

    Attributes:
        name: its name.
        role: what it is for. Inputs: ``input``, ``target``, ``sample_weight``, ``learning_rate``, ``seed``, ``step``,
            ``t`` (steps of the optimizer), ``parameter``, ``slot`` and ``state``. Outputs: ``loss``, ``penalty``,
            ``finite``, ``prediction`` and ``new``.
        shape: sizes, and names of axes of any size.
        dtype: the name of its dtype.
        of: what it belongs to: the output of a target, weight or loss, the parameter of a slot, and for ``new`` the
            input that takes the value in the next step.
    """

    name: str
    role: str
    shape: tuple[int | str, ...]
    dtype: str
    of: str | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of what has no axis of any size."""
        return tuple(size for size in self.shape if isinstance(size, int))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What the folder of a training step holds.

    Attributes:
        train_inputs, train_outputs: of the graph of a step.
        predict_inputs, predict_outputs: of the graph of inference.
        learning_rate: that of the next step.
        model, losses, optimizer: as plain data, from which lamella makes them again; of losses one for each output,
            None where it is not trained on.
        began, scale: where the optimizer's schedule counts from, and what every rate is multiplied with.
        missed: in how many steps of the optimizer a parameter took no part; the graph subtracts them.
        opset: the operator set of both graphs.
        versions: of the packages that wrote the folder.
        files: the sha256 of each file.
        report: what was compared before the folder was written.
    """

    train_inputs: tuple[Entry, ...]
    train_outputs: tuple[Entry, ...]
    predict_inputs: tuple[Entry, ...]
    predict_outputs: tuple[Entry, ...]
    learning_rate: float
    model: Mapping[str, Any]
    losses: tuple[Any, ...]
    optimizer: Any
    began: int
    scale: float
    missed: Mapping[str, int]
    opset: int
    versions: Mapping[str, str]
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kept(self) -> tuple[Entry, ...]:
        """What a state file holds: all that a step reads of the one before, and the seed."""
        return tuple(entry for entry in self.train_inputs if entry.role in KEPT)

    def to_json(self) -> str:
        """The manifest as text."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        graphs = {
            graph: {side: [_plain(entry) for entry in plain.pop(f"{graph}_{side}")] for side in ("inputs", "outputs")}
            for graph in ("train", "predict")
        }
        held = {"format": _FORMAT, "version": _VERSION, **graphs, **plain}
        return json.dumps({**held, "checksum": _checksum(held)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            DataError: it is none, is damaged, or of a newer version.
        """
        try:
            held = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{MANIFEST} is no JSON: {error}") from None
        if not isinstance(held, dict) or held.get("format") != _FORMAT:
            raise DataError(f"{MANIFEST}: expected the manifest of a training step, format {_FORMAT!r}")
        version = held.get("version")
        if version != _VERSION or type(version) is not int:
            newer = isinstance(version, int) and version > _VERSION
            fix = "; a newer lamella wrote it: pip install --upgrade lamella" if newer else ""
            raise DataError(f"{MANIFEST}: version {shown(version)}; this version of lamella reads version 1{fix}")
        try:
            if held.pop("checksum", None) != _checksum(held):
                raise DataError("the file is damaged: its checksum is not that of what it says. Take another copy")
            del held["format"], held["version"]
            graphs: dict[str, Any] = {
                f"{graph}_{side}": tuple(_entry(one, roles) for one in held[graph][side])
                for graph in ("train", "predict")
                for side, roles in (("inputs", _INPUTS), ("outputs", _OUTPUTS))
            }
            rest = {name: held[name] for name in held if name not in ("train", "predict")}
            made = cls(**graphs, **rest)
            made = dataclasses.replace(made, losses=tuple(made.losses))
            _check(made)
        except DataError as error:
            raise DataError(f"{MANIFEST}: {error}") from None
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"{MANIFEST} is damaged: {type(error).__name__}: {error}") from None
        return made


def _checksum(held: Mapping[str, Any]) -> str:
    """The sha256 of what a manifest says, however it is laid out."""
    return hashlib.sha256(json.dumps(held, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _plain(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(entry).items() if value is not None}


def _entry(held: Any, roles: tuple[str, ...]) -> Entry:
    entry = Entry(held["name"], held["role"], tuple(held["shape"]), held["dtype"], held.get("of"))
    for text in (entry.name, *([] if entry.of is None else [entry.of])):
        if not isinstance(text, str):
            raise DataError(f"expected names of inputs and outputs, got {shown(text)}")
    if entry.role not in roles:
        raise DataError(f"{entry.name!r}: expected a role of {', '.join(roles)}, got {shown(entry.role)}")
    if entry.dtype not in DTYPE_NAMES:
        raise DataError(f"{entry.name!r}: expected a dtype of {', '.join(DTYPE_NAMES)}, got {shown(entry.dtype)}")
    for size in entry.shape:
        if not (isinstance(size, str) or (type(size) is int and size >= 0)):
            raise DataError(f"{entry.name!r}: expected sizes and names of axes, got {shown(size)}")
    return entry


def _check(made: Manifest) -> None:
    """Raise unless types are right, and every new value has an input that takes it."""
    inputs = {entry.name: entry for entry in made.train_inputs}
    for entry in made.train_outputs:
        if entry.role in ("loss", "penalty", "finite") and entry.shape:
            raise DataError(f"{entry.name!r}: expected no axes, got {shown(entry.shape)}")
        if entry.role != "new":
            continue
        taker = inputs.get(entry.of or "")
        if taker is None or (taker.shape, taker.dtype) != (entry.shape, entry.dtype):
            raise DataError(f"{entry.name!r}: no input of its shape and dtype takes it")
        if entry.name != f"{entry.of}.new":
            raise DataError(f"{entry.name!r}: expected {f'{entry.of}.new'!r} as the new value of {entry.of!r}")
    for entry in made.predict_inputs:
        if entry.role != "input" and entry.name not in inputs:
            raise DataError(f"{entry.name!r} of {PREDICT} is no input of {TRAIN}")
    for entry in made.kept:
        if len(entry.sizes) != len(entry.shape):
            raise DataError(f"{entry.name!r}: expected sizes, got {shown(entry.shape)}")
    kinds = {"learning_rate": int | float, "scale": int | float, "began": int, "opset": int}
    mappings = dict.fromkeys(("model", "missed", "versions", "files", "report"), Mapping)
    for name, kind in (kinds | mappings).items():
        if not isinstance(getattr(made, name), kind) or isinstance(getattr(made, name), bool):
            raise DataError(f"{name}: got {shown(getattr(made, name))}")
    if made.scale < 0 or made.learning_rate < 0 or made.began < 0:
        raise DataError("learning_rate, scale and began: expected numbers of at least 0")
    if not all(type(count) is int and count >= 0 for count in made.missed.values()):
        raise DataError(f"missed: expected numbers of steps, got {shown(made.missed)}")
    for name in (TRAIN, PREDICT, STATE):
        if not isinstance(made.files.get(name), str):
            raise DataError(f"files: no hash of {name}")


# The folder


def write_folder(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """Write a folder whole or not at all; one that holds a training step is replaced.

    Who writes to the folder's own folder meanwhile waits. What killed processes left there goes.

    Raises:
        DataError: something else stands there.
        OSError: it can't be written.
    """
    path = Path(os.path.realpath(path))
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = dataclasses.replace(manifest, files=hashes).to_json().encode()
    with alone_in(path.parent) as alone:
        need_free(path)
        for left in path.parent.glob(f"{_BEGIN}*{_END}") if alone else ():
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
        temporary = path.with_name(f"{_BEGIN}{secrets.token_hex(8)}{_END}")
        temporary.mkdir()
        try:
            for name, content in {**files, MANIFEST: text}.items():
                with open(temporary / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            _put(temporary, path)
        finally:  # what stands there now is what was replaced, or what was not finished
            shutil.rmtree(temporary, ignore_errors=True)


def need_free(path: Path) -> None:
    """Raise unless a folder may stand at a path: there is nothing, an empty folder, or a training step."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"export_training_step: there is no folder {path.parent}")
    if os.path.lexists(path) and not (path.is_dir() and (not any(path.iterdir()) or _holds_step(path))):
        raise DataError(
            f"export_training_step: {path} is there, and holds no training step. Likely fix: the path of a new folder"
        )


def _holds_step(path: Path) -> bool:
    """Whether a folder has the files of a training step and nothing else."""
    return {entry.name for entry in path.iterdir()} == {MANIFEST, TRAIN, PREDICT, STATE}


def _put(temporary: Path, path: Path) -> None:
    """Let a folder take the place of another, in one moment where the system can, else in two."""
    if not path.exists():
        os.rename(temporary, path)
    elif not _exchanged(temporary, path):
        old = path.with_name(f"{_BEGIN}{secrets.token_hex(8)}{_END}")
        try:
            os.rename(path, old)
            os.rename(temporary, path)
        except BaseException:
            if not path.exists():
                os.rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two folders change places in one moment; tell whether the system can do that, as Linux can."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(exchange(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


def read_folder(path: Path) -> tuple[Manifest, dict[str, bytes]]:
    """Read a folder that `write_folder` wrote, and hold its files against their hashes.

    Raises:
        DataError: a file that is missing, damaged, or no training step's.
        FileNotFoundError: there is no such folder.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no folder {path}")
    if not path.is_dir():
        raise DataError("expected the folder that export_training_step writes, this is a file")
    while True:
        text = _content(path, MANIFEST)
        manifest = Manifest.from_json(text)
        files = {name: _content(path, name) for name in (TRAIN, PREDICT, STATE)}
        if _content(path, MANIFEST) == text:  # else an export replaced the folder meanwhile
            break
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest.files[name]:
            raise DataError(f"{name} is damaged, or of another training step: it has not the hash that {MANIFEST} says")
    return manifest, files


def _content(path: Path, name: str) -> bytes:
    try:
        return read(path / name)
    except FileNotFoundError:
        raise DataError(f"{name} is missing; expected the folder that export_training_step writes") from None
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
