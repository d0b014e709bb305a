"""The ASGI application: what each address answers, and what every request has to pass."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lamella_serve import logs
from lamella_serve.access import Access
from lamella_serve.configuration import configuration
from lamella_serve.description import metadata, server_metadata, statistics
from lamella_serve.http import bodies, page
from lamella_serve.http.tensors import decode, encode, parse
from lamella_serve.inference import answer
from lamella_serve.metrics import exposition
from lamella_serve.model import ServedModel
from lamella_serve.refusals import ENDING, FAILED, Refusal
from lamella_serve.repository import Repository

__all__ = ["make_application"]

_log = logging.getLogger("lamella_serve")
_PATIENCE = 0.05  # seconds; whose answer takes longer is watched, and short requests do not pay for it
_T = TypeVar("_T")
_LOOPBACK = re.compile(rb"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)


def make_application(repository: Repository, access: Access) -> Starlette:
    """Return the application for some models."""
    endpoints, files = _Endpoints(repository, access), page.routes()
    infer = _Infer(repository, access)
    model, version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
    health = [Route("/v2/health/live", endpoints.live), Route("/v2/health/ready", endpoints.ready)]
    routes = [Route(f"{path}/infer", infer, methods=["POST"]) for path in (model, version)]
    routes += [
        *health,
        Route("/v2", endpoints.server),
        Route("/v2/models/stats", endpoints.statistics),
        *(Route(path, endpoints.model) for path in (model, version)),
        *(Route(f"{path}/ready", endpoints.model_ready) for path in (model, version)),
        *(Route(f"{path}/config", endpoints.config) for path in (model, version)),
        *(Route(f"{path}/stats", endpoints.statistics) for path in (model, version)),
        Route("/v2/repository/index", endpoints.index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", endpoints.load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", endpoints.unload, methods=["POST"]),
        Route("/metrics", endpoints.metrics),
        Route("/about/{name}", endpoints.about),
        *files,
    ]
    application = Starlette(routes=routes, exception_handlers={Refusal: _refused, HTTPException: _as_json})
    application.router.redirect_slashes = False
    open_to_all = frozenset(route.path for route in (*health, *files))
    application.add_middleware(_Guard, access=access, open_to_all=open_to_all)
    application.state.repository, application.state.access = repository, access
    application.state.draining = False
    return application


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _error(error.status, error.words)


async def _as_json(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = error.detail
    if error.status_code == 404:
        words = f"there is nothing at {request.url.path}; requests to a model go to /v2/models/NAME/infer"
    return Response(orjson.dumps({"error": words}), error.status_code, error.headers, media_type="application/json")


def _error(status: int, words: str, **headers: str) -> Response:
    return Response(orjson.dumps({"error": words}), status, headers, media_type="application/json")


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def _logged(scope: Any, send: Any) -> Any:
    """A `send` that logs the request once it is answered."""
    began = time.perf_counter_ns()

    async def send_and_log(message: Any) -> None:
        await send(message)
        if message["type"] == "http.response.start":
            logs.answered(f"{scope['method']} {scope['path']}", message["status"], time.perf_counter_ns() - began)

    return send_and_log


class _Guard:
    """Lets through who may come in: with the token if there is one, and from no page of another site."""

    def __init__(self, app: Any, access: Access, open_to_all: frozenset[str]) -> None:
        self._app, self._access, self._open = app, access, open_to_all

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if logs.of_requests.isEnabledFor(logging.INFO):
            send = _logged(scope, send)
        headers = dict(scope["headers"])
        refused = None
        if foreign := self._foreign(scope["method"], headers):
            refused = _error(403, foreign)
        elif scope["path"].removeprefix(scope.get("root_path", "")) not in self._open:
            try:
                self._access.check_token(headers.get(b"authorization", b""))
            except Refusal as error:
                refused = _error(error.status, error.words, **{"WWW-Authenticate": "Bearer"})
        try:
            await (self._app if refused is None else refused)(scope, receive, send)
        except Exception:
            _log.exception("failed", extra={"path": scope["path"]})
            await _error(500, FAILED)(scope, receive, send)

    def _foreign(self, method: str, headers: dict[bytes, bytes]) -> str | None:
        """Why it may be another site's page that asks; None: it is none.

        Such a page may have a name that was made to mean this machine. Then browsers take the server for its own, and
        send with GET nothing but the name that tells.
        """
        host, origin = headers.get(b"host"), headers.get(b"origin")
        elsewhere = method != "GET" and headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
        if elsewhere or (origin is not None and origin.partition(b"://")[2] != host):
            return "pages of other sites may not use this server"
        private = self._access.local and self._access.token is None
        if private and host is not None and not _LOOPBACK.fullmatch(host):
            return "this server is for this machine only; ask for it as localhost or 127.0.0.1"
        return None


async def _while_there(receive: Any, work: Coroutine[Any, Any, _T]) -> _T:
    """Do some work, but cancel it if the client goes away meanwhile.

    Raises:
        Gone: the client has gone away.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    looking: asyncio.Task[None] | None = None
    gone = False

    async def look() -> None:
        nonlocal gone
        gone = (await receive())["type"] == "http.disconnect"
        if gone:
            task.cancel()

    def begin() -> None:
        nonlocal looking
        looking = loop.create_task(look())

    timer = loop.call_later(_PATIENCE, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if gone:
            task.uncancel()
            raise bodies.Gone from None
        raise
    finally:
        timer.cancel()
        if looking is not None:
            looking.cancel()


class _Infer:
    """Answers requests to a model. It speaks ASGI itself, since most of the time of small models is spent here."""

    def __init__(self, repository: Repository, access: Access) -> None:
        self._repository, self._access = repository, access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        began = time.perf_counter_ns()
        parameters = scope["path_params"]
        model = self._repository.get(parameters["name"], parameters.get("version", ""))
        try:
            status, content, headers = await self._answered(model, scope, receive)
        except bodies.Gone:
            model.statistics.answered(499, time.perf_counter_ns() - began)
            return
        headers.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})
        model.statistics.answered(status, time.perf_counter_ns() - began)

    async def _answered(
        self, model: ServedModel, scope: Any, receive: Any
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        headers = dict(scope["headers"])
        most = self._access.max_body
        try:
            body = await bodies.read(receive, headers, most, self._access.timeout)
            body = await bodies.unpacked(body, headers.get(b"content-encoding"), most)
            length = headers.get(b"inference-header-content-length")
            request = decode(body, None if length is None else length.decode("latin-1"), model)
            outputs = await _while_there(receive, answer(model, request.inputs, request.wanted))
            content, head = encode(model, request.id, outputs)
        except Refusal as error:
            if error.status >= 500:
                _log.warning("refused", extra={"model": model.name, "status": error.status, "reason": error.words})
            return error.status, orjson.dumps({"error": error.words}), [(b"content-type", b"application/json")]
        except bodies.Gone:
            raise
        except asyncio.CancelledError:  # the server ends, and has waited long enough
            return 503, orjson.dumps({"error": ENDING}), [(b"content-type", b"application/json")]
        except Exception:
            _log.exception("failed", extra={"model": model.name})
            return 500, orjson.dumps({"error": FAILED}), [(b"content-type", b"application/json")]
        answered = [(b"content-type", b"application/json")]
        if head is not None:
            answered = [
                (b"content-type", b"application/octet-stream"),
                (b"inference-header-content-length", str(head).encode()),
            ]
        content, encoding = await bodies.packed(content, headers.get(b"accept-encoding"))
        if encoding is not None:
            answered.append((b"content-encoding", encoding))
        return 200, content, answered


class _Endpoints:
    """Everything but inference."""

    def __init__(self, repository: Repository, access: Access) -> None:
        self._repository, self._access = repository, access

    def _model(self, request: Request) -> ServedModel:
        return self._repository.get(request.path_params["name"], request.path_params.get("version", ""))

    async def live(self, request: Request) -> Response:
        return Response()

    async def ready(self, request: Request) -> Response:
        if request.app.state.draining:
            return _error(503, ENDING)
        return Response()

    async def server(self, request: Request) -> Response:
        return _json(server_metadata())

    async def model(self, request: Request) -> Response:
        return _json(metadata(self._repository, **request.path_params))

    async def model_ready(self, request: Request) -> Response:
        self._model(request)
        return Response()

    async def config(self, request: Request) -> Response:
        return _json(configuration(self._model(request)))

    async def statistics(self, request: Request) -> Response:
        return _json(statistics(self._repository, **request.path_params))

    async def index(self, request: Request) -> Response:
        body = await self._body(request)
        return _json(self._repository.index(ready=body.get("ready") is True))

    async def load(self, request: Request) -> Response:
        self._access.check_control()
        body = await self._body(request)
        await self._repository.load(request.path_params["name"], body.get("parameters"))
        return Response(media_type="application/json")

    async def unload(self, request: Request) -> Response:
        self._access.check_control()
        await self._body(request)
        await self._repository.unload(request.path_params["name"])
        return Response(media_type="application/json")

    async def _body(self, request: Request) -> dict[str, Any]:
        headers = dict(request.scope["headers"])
        try:
            content = await bodies.read(request.receive, headers, self._access.max_body, self._access.timeout)
        except bodies.Gone:
            raise Refusal(400, "the client has gone") from None  # and reads no answer; what it asked for is not done
        return parse(content) if content.strip() else {}

    async def metrics(self, request: Request) -> Response:
        content, kind = exposition(self._repository, request.headers.get("accept", ""))
        return Response(content, media_type=kind)

    async def about(self, request: Request) -> Response:
        return _json(page.about(self._repository, self._model(request)))
