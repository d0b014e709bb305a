"""The calls over gRPC: who may make them, what each answers, and how refusals are told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from lamella_serve import logs
from lamella_serve.access import Access
from lamella_serve.configuration import configuration
from lamella_serve.description import metadata, server_metadata, statistics
from lamella_serve.grpc.tensors import decode, encode
from lamella_serve.inference import answer
from lamella_serve.protocol import HEALTH, SERVICE, message
from lamella_serve.refusals import ENDING, FAILED, Refusal
from lamella_serve.repository import Repository

__all__ = ["Service"]

_log = logging.getLogger("lamella_serve")
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
_MOST_WORDS = 1000  # characters of a reason; it travels in a header, and clients take 8 KiB of them

_Call = Callable[[Any], Awaitable[Any]]  # from a request's message to what the answer's message is made of


class Service:
    """Answers all calls, as a generic handler of a `grpc.aio` server.

    Messages come and go as bytes, and all calls are streams to gRPC, since it neither tells clients what is wrong with
    their messages nor limits how long they take to send one.
    """

    def __init__(self, repository: Repository, access: Access) -> None:
        self._repository, self._access = repository, access
        self._ending = False
        self._idle: set[asyncio.Task[Any]] = set()  # streams that wait for their client's next request
        open_to_all = {
            f"/{SERVICE}/ServerLive": self._unary("ServerLive", self._live),
            f"/{SERVICE}/ServerReady": self._unary("ServerReady", self._ready),
            f"/{HEALTH}/Check": self._unary("HealthCheck", self._health, HEALTH),
        }
        calls: dict[str, _Call] = {
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        self._open = frozenset(open_to_all)
        self._handlers = {
            **open_to_all,
            **{f"/{SERVICE}/{name}": self._unary(name, call) for name, call in calls.items()},
            f"/{SERVICE}/ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream_infer),
        }

    def service(self, call: Any) -> Any:
        """Return what handles a call, before any of its messages is read; None: there is no such call."""
        handler = self._handlers.get(call.method)
        if handler is None or call.method in self._open:
            return handler
        try:
            self._access.check_token(_authorization(call.invocation_metadata))
        except Refusal as error:
            return _refusing(call.method.rpartition("/")[2], error)
        return handler

    def end(self) -> None:
        """Tell streams to end when what they were asked is answered."""
        self._ending = True
        for task in self._idle:
            task.cancel()

    def _unary(self, name: str, call: _Call, service: str = SERVICE) -> Any:
        """What handles a call that has one request and one answer."""
        request, response = message(f"{name}Request", service), message(f"{name}Response", service)

        async def handle(_: Any, context: Any) -> bytes:
            began = time.perf_counter_ns()
            try:
                said = await call(_parsed(request, await self._read(context)))
                if isinstance(said, dict):
                    said = ParseDict(said, response())
                content: bytes = said.SerializeToString()
                logs.answered(name, 200, time.perf_counter_ns() - began)
                return content
            except Refusal as error:
                refusal = error
            except grpc.aio.BaseError:  # the client has gone
                raise
            except Exception:
                _log.exception("failed", extra={"call": name})
                refusal = Refusal(500, FAILED)
            logs.answered(name, refusal.status, time.perf_counter_ns() - began)
            return await _refuse(context, refusal)  # type: ignore[no-any-return]  # it raises

        return grpc.stream_unary_rpc_method_handler(handle)

    async def _read(self, context: Any) -> bytes:
        try:
            async with asyncio.timeout(self._access.timeout):
                content: bytes = await context.read()
        except TimeoutError:
            raise Refusal(408, f"the request did not come within {self._access.timeout:g} seconds") from None
        if content is grpc.aio.EOF:
            raise Refusal(400, "the call has no request")
        return content

    async def _live(self, request: Any) -> dict[str, Any]:
        return {"live": True}

    async def _ready(self, request: Any) -> dict[str, Any]:
        return {"ready": not self._ending}

    async def _health(self, request: Any) -> dict[str, Any]:
        if request.service not in ("", SERVICE):
            raise Refusal(404, f"there is no service {request.service!r}; this server has {SERVICE!r}")
        return {"status": "NOT_SERVING" if self._ending else "SERVING"}

    async def _server_metadata(self, request: Any) -> dict[str, Any]:
        return server_metadata()

    async def _model_ready(self, request: Any) -> dict[str, Any]:
        try:
            self._repository.get(request.name, request.version)
        except Refusal as error:
            if error.status != 404:
                raise
            return {"ready": False}
        return {"ready": True}

    async def _model_metadata(self, request: Any) -> dict[str, Any]:
        return metadata(self._repository, request.name, request.version)

    async def _model_config(self, request: Any) -> dict[str, Any]:
        return {"config": configuration(self._repository.get(request.name, request.version))}

    async def _model_statistics(self, request: Any) -> dict[str, Any]:
        return statistics(self._repository, request.name, request.version)

    async def _index(self, request: Any) -> dict[str, Any]:
        return {"models": self._repository.index(ready=request.ready)}

    async def _load(self, request: Any) -> dict[str, Any]:
        self._access.check_control()
        await self._repository.load(request.model_name, request.parameters)
        return {}

    async def _unload(self, request: Any) -> dict[str, Any]:
        self._access.check_control()
        await self._repository.unload(request.model_name)
        return {}

    async def _infer(self, request: Any) -> Any:
        began, status = time.perf_counter_ns(), 500
        model = self._repository.get(request.model_name, request.model_version)
        try:
            asked = decode(request, model)
            response = encode(model, asked.id, await answer(model, asked.inputs, asked.wanted))
            status = 200
            return response
        except Refusal as error:
            status = error.status
            if status >= 500:
                _log.warning("refused", extra={"model": model.name, "status": status, "reason": error.words})
            raise
        except asyncio.CancelledError:
            status = 499
            raise
        except Exception:
            _log.exception("failed", extra={"model": model.name})
            raise Refusal(500, FAILED) from None
        finally:
            model.statistics.answered(status, time.perf_counter_ns() - began)

    async def _stream_infer(self, _: Any, context: Any) -> None:
        """Answer requests one after another, those that are refused too."""
        while (content := await self._next(context)) is not grpc.aio.EOF:
            said = message("ModelStreamInferResponse")()
            began, status = time.perf_counter_ns(), 200
            try:
                request = _parsed(message("ModelInferRequest"), content)
                said.infer_response.id = request.id
                said.infer_response.CopyFrom(await self._infer(request))
                said.infer_response.parameters["triton_final_response"].bool_param = True
            except Refusal as error:
                said.error_message, status = error.words, error.status
            logs.answered("ModelStreamInfer", status, time.perf_counter_ns() - began)
            await context.write(said.SerializeToString())

    async def _next(self, context: Any) -> Any:
        """A stream's next request."""
        task = asyncio.current_task()
        assert task is not None
        self._idle.add(task)
        try:
            if not self._ending:
                return await context.read()
        except asyncio.CancelledError:  # by `end`, or by the client, who hears nothing of what follows
            pass
        finally:
            self._idle.discard(task)
        return await _refuse(context, Refusal(503, ENDING))


def _authorization(metadata: Any) -> bytes:
    value = dict(metadata).get("authorization", b"")
    return value.encode() if isinstance(value, str) else value


def _parsed(kind: Any, content: bytes) -> Any:
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise Refusal(400, f"the request is no {kind.DESCRIPTOR.name}: {error}") from None


def _refusing(name: str, error: Refusal) -> Any:
    """What handles a call that is not answered, whatever its request."""

    async def handle(_: Any, context: Any) -> Any:
        logs.answered(name, error.status, 0)
        return await _refuse(context, error)

    return grpc.stream_unary_rpc_method_handler(handle)


async def _refuse(context: Any, error: Refusal) -> Any:
    """Tell a client why it gets no answer, and end the call."""
    try:
        await context.abort(_CODES[error.status], error.words[:_MOST_WORDS])
    except grpc.aio.AbortError:  # what it raises when all is well
        raise
    except grpc.aio.BaseError:  # the call has ended: its client has gone, or its message could not be read
        raise asyncio.CancelledError from None
