"""What the server says of itself and of its models, as the protocol writes it in JSON."""

from __future__ import annotations

from typing import Any

from lamella.version import __version__
from lamella_serve.configuration import PLATFORM
from lamella_serve.repository import Repository

__all__ = ["metadata", "server_metadata", "statistics"]

_EXTENSIONS = ["classification", "model_repository", "model_configuration", "binary_tensor_data", "statistics"]


def server_metadata() -> dict[str, Any]:
    """Return the server's metadata."""
    return {"name": "lamella", "version": __version__, "extensions": _EXTENSIONS}


def metadata(repository: Repository, name: str, version: str = "") -> dict[str, Any]:
    """Return a model's metadata.

    Raises:
        Refusal: there is no such model.
    """
    model = repository.get(name, version)
    inputs, outputs = (
        [{"name": one.name, "datatype": one.datatype.name, "shape": list(one.shape)} for one in side]
        for side in (model.inputs, model.outputs)
    )
    versions = [str(model.version)] if version else repository.versions(name)
    return {"name": name, "versions": versions, "platform": PLATFORM, "inputs": inputs, "outputs": outputs}


def statistics(repository: Repository, name: str = "", version: str = "") -> dict[str, Any]:
    """Return the statistics of a version of a model, of all its versions, or of all models.

    Raises:
        Refusal: there is no such model.
    """
    if version:
        models = [repository.get(name, version)]
    else:
        if name:
            repository.get(name)
        models = [model for model in repository if name in ("", model.name)]
    return {
        "model_stats": [
            {"name": model.name, "version": str(model.version), **model.statistics.to_json()} for model in models
        ]
    }
