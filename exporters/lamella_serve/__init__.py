"""Any ONNX model as a service: the Open Inference Protocol over HTTP and gRPC, run by onnxruntime.

On the command line: ``lamella serve MODEL.onnx``. In a program, an ASGI application for any server that speaks ASGI:

>>> import lamella as lm, lamella_onnx, lamella_serve
>>> from lamella_layers import Dense
>>> report = lamella_onnx.export(lm.Sequential([Dense(3)], input_shape=(4,)), "digits.onnx")
>>> application = lamella_serve.application("digits.onnx")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import lamella_onnx  # noqa: F401  # before onnxruntime, which it keeps from reporting what is served
from lamella.elsewhere import missing
from lamella.errors import did_you_mean

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from lamella_serve.triton import export_repository

__all__ = ["application", "export_repository"]


def application(
    *paths: str | os.PathLike[str],
    token: str | None = None,
    external_data: bool = False,
    max_batch_size: int = 1024,
    batch_delay: float = 0.0,
    instances: int = 1,
    max_queue: int = 1000,
    max_body: int = 64 * 2**20,
    timeout: float = 60.0,
    local: bool = False,
) -> Starlette:
    """Load models, and return an ASGI application that answers for them.

    Arguments:
        paths: ONNX files, folders of them, and repositories in Triton's layout (``NAME/1/model.onnx``).
        token: what clients have to send as a bearer token; without one, everybody may ask.
            Models are loaded and unloaded over the network only with a token, or if the server is `local`.
        external_data: whether a model's arrays may stand in other files, in its own folder.
        max_batch_size: the most rows that a request may have, and that are joined into one run.
        batch_delay: seconds to wait for more requests to join. Those that come together are joined without.
        instances: runs of a model at a time; each gets its share of the cores.
        max_queue: the most requests that wait for a model.
        max_body: bytes that a request's body may have.
        timeout: seconds that a request may take.
        local: whether only programs on this machine reach the server; then it goes by a loopback name only.

    Raises:
        DataError: a model can't be served, or there is none.
        FileNotFoundError: there is nothing at a path.
        ArgumentError: a value out of range.
    """
    from lamella.arguments import flag, number, positive
    from lamella_onnx.files import as_path
    from lamella_serve.access import Access, checked_token
    from lamella_serve.batching import Limits
    from lamella_serve.http.application import make_application
    from lamella_serve.model import Settings
    from lamella_serve.repository import Repository

    where = "application"
    limits = Limits(
        positive(max_batch_size, f"{where}: max_batch_size"),
        number(batch_delay, f"{where}: batch_delay", minimum=0.0),
        positive(instances, f"{where}: instances"),
        positive(max_queue, f"{where}: max_queue"),
        number(timeout, f"{where}: timeout", above=0.0),
    )
    settings = Settings(limits, flag(external_data, f"{where}: external_data"))
    access = Access(
        None if token is None else checked_token(token, f"{where}: token"),
        positive(max_body, f"{where}: max_body"),
        limits.timeout,
        flag(local, f"{where}: local"),
    )
    return make_application(Repository([as_path(path, where) for path in paths], settings), access)


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "export_repository":
            from lamella_serve.triton import export_repository

            return export_repository
        close = did_you_mean(name, __all__)
        raise missing(__name__, name, f"{close and '.'}{close}")


def __dir__() -> list[str]:
    return __all__
