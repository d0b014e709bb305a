"""A repository in Triton's layout, for Triton itself and for ``lamella serve``, with batching where it is proven."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lamella.arguments import flag, positive
from lamella.errors import DataError
from lamella.files.writing import write_atomically
from lamella_onnx.files import as_path, read
from lamella_onnx.validity import in_one_line
from lamella_serve.batching import Limits
from lamella_serve.configuration import configuration, label_file, written
from lamella_serve.model import DAMAGED, ServedModel, Settings
from lamella_serve.places import find

__all__ = ["export_repository"]

_WHERE = "export_repository"
_CONFIG = "config.pbtxt"


def export_repository(
    models: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    version: int = 1,
    max_batch_size: int = 1024,
    external_data: bool = False,
) -> list[ServedModel]:
    """Write ONNX models as a repository that Triton and `lamella serve` read: ``NAME/VERSION/model.onnx``.

    ``NAME/config.pbtxt`` says what the model takes and gives. It asks for dynamic batching only where answers were
    found not to depend on the batch. Labels in the model's metadata become a label file.

    Arguments:
        models: ONNX files, or folders of them.
        folder: the repository; it is made if it is not there, and other models in it stay.
        version: the number of this version of each model; earlier versions stay, and are served beside it.
        max_batch_size: the most rows of a request.
        external_data: whether a model's arrays may stand in other files in its folder; they are copied too.

    Returns:
        The models, as they would be served.

    Raises:
        DataError: a model can't be served, has this version already, or earlier versions that take or give something
            else.
        FileNotFoundError: there is no such model.
    """
    target = as_path(folder, _WHERE)
    number = positive(version, f"{_WHERE}: version")
    limits = Limits(positive(max_batch_size, f"{_WHERE}: max_batch_size"))
    settings = Settings(limits, flag(external_data, f"{_WHERE}: external_data"))
    if not models:
        raise DataError(f"{_WHERE}: expected at least one model")
    served = []
    for place in find(as_path(model, _WHERE) for model in models).values():
        if place.file is None:
            raise DataError(f"{place.folder}: expected ONNX files; this is a repository already")
        try:
            served.append((place.file, ServedModel(place.name, number, place.file, settings)))
        except DataError as error:
            raise DataError(f"{place.file}: {error}") from error
        except DAMAGED as error:
            raise DataError(f"{place.file}: it can't be read: {in_one_line(error)}") from error
    for _, model in served:  # nothing is written unless all can be
        _need_room(target / model.name, model)
    target.mkdir(parents=True, exist_ok=True)
    for file, model in served:
        _write(target, file, model)
    return [model for _, model in served]


def _config(model: ServedModel) -> str:
    """What ``config.pbtxt`` says: the same for all versions of a model."""
    config = configuration(model)
    for group in config["instance_group"]:
        del group["name"]  # Triton numbers them
    config["default_model_filename"] = ""  # model.onnx, unless told otherwise
    return written(config)


def _need_room(folder: Path, model: ServedModel) -> None:
    """Raise unless this version can join what is there."""
    if (folder / str(model.version)).exists():
        raise DataError(
            f"{folder}: version {model.version} is there already. Likely fix: --version {model.version + 1}"
        )
    try:
        there = read(folder / _CONFIG).decode(errors="replace")
    except FileNotFoundError:
        if folder.exists():
            raise DataError(f"{folder} is there, without a {_CONFIG} that says what it is") from None
        return
    if there != _config(model):
        now, then = _fields(_config(model)), _fields(there)
        differing = [name for name in {**now, **then} if now.get(name) != then.get(name)]
        raise DataError(
            f"{folder / _CONFIG} is for all versions, and has another {' and '.join(differing)} than version "
            f"{model.version} needs. Likely fix: give all versions the same labels and --max-batch-size, or export a "
            "model with other inputs or outputs under another name"
        )


def _fields(config: str) -> dict[str, list[str]]:
    """The fields of a configuration's text, each with all that is said of it."""
    fields: dict[str, list[str]] = {}
    for name, said in re.findall(r"^(\w+)((?:.*\n)(?:[ }].*\n)*)", config, re.MULTILINE):
        fields.setdefault(name, []).append(said)
    return fields


def _write(target: Path, file: Path, model: ServedModel) -> None:
    """Make a model's folder, or a version's, out of sight, and put it into its place whole."""
    with tempfile.TemporaryDirectory(prefix=".lamella-", dir=target) as hidden:
        made = Path(hidden) / model.name
        version = made / str(model.version)
        version.mkdir(parents=True)
        shutil.copyfile(file, version / "model.onnx")
        for other in model.session.files:
            copy = version / other.relative_to(Path(os.path.realpath(file)).parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(other, copy)
        for output, labels in model.labels.items():
            write_atomically(made / label_file(model, output), "".join(f"{label}\n" for label in labels).encode())
        write_atomically(made / _CONFIG, _config(model).encode())
        place = target / model.name
        if place.exists():
            version.rename(place / str(model.version))
        else:
            made.rename(place)
