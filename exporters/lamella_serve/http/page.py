"""The page for people: its files, and what it shows of a model."""

from __future__ import annotations

import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lamella_onnx.seal import PROOF, REPORT
from lamella_serve.model import ServedModel
from lamella_serve.repository import Repository
from lamella_serve.signature import Tensor

__all__ = ["about", "routes"]

_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_LARGEST = 20_000  # elements of an example that the page is given


def routes() -> list[Route]:
    """Return the routes of the page's files, which hold nothing of the models."""
    files = sorted(resources.files("lamella_serve").joinpath("page").iterdir(), key=lambda file: file.name)
    return [Route("/" if file.name == "index.html" else f"/{file.name}", _file(file)) for file in files]


def _file(file: Traversable) -> Any:
    content, kind = file.read_bytes(), _KINDS[PurePath(file.name).suffix]

    async def answer(request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=kind)

    return answer


def about(repository: Repository, model: ServedModel) -> dict[str, Any]:
    """Return what the page shows of a model."""
    said = {key: value for key, value in model.session.metadata.items() if key not in (PROOF, REPORT)}
    return {
        "name": model.name,
        "versions": repository.versions(model.name),
        "version": str(model.version),
        **model.session.about,
        "inputs": [
            _tensor(one, low=_limit(model, one.name, 0), high=_limit(model, one.name, 1)) for one in model.inputs
        ],
        "outputs": [_tensor(one, labels=list(model.labels.get(one.name, ())) or None) for one in model.outputs],
        "metadata": said,
        "batching": {
            "joined": model.verdict.joined,
            "max_batch_size": model.max_batch_size,
            "reason": model.verdict.reason,
        },
        "milliseconds_per_row": None if model.seconds is None else 1e3 * model.seconds,
        "parity": _report(model),
        "changed": model.session.changed,
        "example": _example(model),
    }


def _tensor(tensor: Tensor, **more: Any) -> dict[str, Any]:
    axes = None if tensor.axes is None else list(tensor.axes)
    return {"name": tensor.name, "datatype": tensor.datatype.name, "shape": list(tensor.shape), "axes": axes, **more}


def _limit(model: ServedModel, name: str, end: int) -> float | None:
    if name not in model.ranges:
        return None
    return float((np.min, np.max)[end](model.ranges[name][end]))


def _report(model: ServedModel) -> Any:
    """The comparison that was made at export."""
    try:
        said = json.loads(model.session.metadata.get(REPORT, "null"))
        orjson.dumps(said)  # which takes less than Python does
        return said
    except (ValueError, TypeError, RecursionError):  # another's entry, or a damaged one
        return None


def _example(model: ServedModel) -> dict[str, Any] | None:
    """A request that the model answers; only its shapes if it is long."""
    if model.example is None:
        return None
    whole = sum(array.size for array in model.example.values()) <= _LARGEST
    inputs = []
    for one in model.inputs:
        array = model.example[one.name]
        data = array.ravel().tolist() if whole else None
        inputs.append({"name": one.name, "datatype": one.datatype.name, "shape": list(array.shape), "data": data})
    return {"inputs": inputs}
