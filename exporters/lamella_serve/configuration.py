"""A model's configuration as Triton writes it: what ``config.pbtxt`` says of a model, and what it says to it.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format

from lamella import DataError
from lamella_onnx.files import read
from lamella_onnx.validity import in_one_line
from lamella_serve.model import ServedModel
from lamella_serve.places import Place
from lamella_serve.protocol import message
from lamella_serve.signature import Tensor

__all__ = ["PLATFORM", "Given", "configuration", "given_by", "label_file", "written"]

PLATFORM = "onnxruntime_onnx"


def configuration(model: ServedModel) -> dict[str, Any]:
    """Return a model's configuration as JSON. With a batch axis, `dims` are those of one row."""
    batched = model.max_batch_size > 0
    tensors = [[_tensor(tensor, batched) for tensor in side] for side in (model.inputs, model.outputs)]
    for output in tensors[1]:
        if output["name"] in model.labels:
            output["label_filename"] = label_file(model, str(output["name"]))
    limits = model.settings.limits
    config: dict[str, Any] = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": model.max_batch_size,
        "input": tensors[0],
        "output": tensors[1],
        "instance_group": [{"name": model.name, "kind": "KIND_CPU", "count": limits.instances}],
        "default_model_filename": "model.onnx",
    }
    if batched:
        config["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": round(limits.delay * 1e6),
        }
    return config


def _tensor(tensor: Tensor, batched: bool) -> dict[str, Any]:
    """A tensor of a configuration. Triton has no scalars: it writes them as rows of one."""
    shape = tensor.shape[1:] if batched and tensor.axes is not None else tensor.shape
    said = {"name": tensor.name, "data_type": tensor.datatype.triton, "dims": list(shape) or [1]}
    return said if shape or not batched else {**said, "reshape": {"shape": []}}


def label_file(model: ServedModel, output: str) -> str:
    """Return the name of the file with an output's labels, one a line."""
    names = [one.name for one in model.outputs if one.name in model.labels]
    return "labels.txt" if len(names) == 1 else f"labels_{names.index(output) + 1}.txt"


def written(config: dict[str, Any]) -> str:
    """Return a configuration as the text of ``config.pbtxt``."""
    return str(text_format.MessageToString(json_format.ParseDict(config, message("ModelConfig")())))


@dataclasses.dataclass(frozen=True)
class Given:
    """What a ``config.pbtxt`` says that matters here.

    Attributes:
        file: the name of the model's file in the folder of a version.
        max_batch_size: the most rows of a request; 0: requests are not to be joined.
        labels: of the last axis, by the names of outputs.
        versions: the only ones to serve; None: all, or the newest ones.
        newest: how many of the newest versions to serve; None: all.
    """

    file: str = "model.onnx"
    max_batch_size: int | None = None
    labels: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    versions: tuple[int, ...] | None = None
    newest: int | None = None

    def chosen(self, versions: list[int]) -> list[int]:
        """Return those of the versions that are there which are to be served."""
        kept = [one for one in sorted(versions) if self.versions is None or one in self.versions]
        return kept if self.newest is None else kept[-self.newest :]


def given_by(place: Place) -> Given:
    """Read the ``config.pbtxt`` in a model's folder, if there is one.

    Raises:
        DataError: it can't be read, or is for another kind of model.
    """
    assert place.folder is not None
    try:
        content = read(place.inside(place.folder / "config.pbtxt"))
    except FileNotFoundError:
        return Given()
    try:
        config = text_format.Parse(content, message("ModelConfig")(), allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise DataError(f"config.pbtxt can't be read: {in_one_line(error)}") from error
    kind = config.platform or config.backend
    if kind not in ("", PLATFORM, "onnxruntime"):
        raise DataError(f"config.pbtxt is for {kind!r}; this server runs models of onnxruntime only")
    if config.max_batch_size < 0:
        raise DataError(f"config.pbtxt says max_batch_size: {config.max_batch_size}; expected 0 or more")
    file = config.default_model_filename or "model.onnx"
    if Path(file).name != file:
        raise DataError(f"config.pbtxt names the file {file!r}; expected one in the folder of a version")
    labels = {one.name: _labels(place, place.folder, one.label_filename) for one in config.output if one.label_filename}
    policy = config.version_policy
    which = policy.WhichOneof("policy_choice")
    return Given(
        file,
        config.max_batch_size if config.HasField("max_batch_size") else None,
        labels,
        tuple(policy.specific.versions) if which == "specific" else None,
        None if which in ("all", "specific") else max(1, policy.latest.num_versions),
    )


def _labels(place: Place, folder: Path, name: str) -> tuple[str, ...]:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"config.pbtxt names the labels {name!r}, which are outside of the model's folder")
    try:
        return tuple(read(place.inside(file)).decode().splitlines())
    except FileNotFoundError:
        raise DataError(f"config.pbtxt names the labels {name!r}, which are not there") from None
    except UnicodeDecodeError:
        raise DataError(f"the labels {name!r} are no text in UTF-8") from None
