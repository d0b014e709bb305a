"""The four clients of tritonclient behind one: over HTTP and gRPC, blocking and with asyncio.

What they answer becomes plain lists and dictionaries, the same for all four, so that answers can be compared.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

SECONDS = 30  # to wait for an answer
AT_ONCE = 16  # requests of a client that are under way together

Inputs = Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]
Outputs = Iterable[str | tuple[str, int]]  # names, or names and how many classes to tell


class Client:
    """A client of tritonclient.

    Attributes:
        name: "http", "http aio", "grpc" or "grpc aio".
        over_http: whether it speaks HTTP.
        aio: whether it is one for asyncio; then its coroutines run to their end in each call.
    """

    NAMES = ("http", "http aio", "grpc", "grpc aio")

    def __init__(self, name: str, http_address: str, grpc_address: str) -> None:
        self.name = name
        self.over_http, self.aio = name.startswith("http"), name.endswith("aio")
        self._module = importlib.import_module("tritonclient." + name.replace(" ", "."))
        self._loop = asyncio.new_event_loop()
        address = http_address if self.over_http else grpc_address
        options: dict[str, Any] = {"concurrency": AT_ONCE, "network_timeout": SECONDS} if name == "http" else {}
        self._client = self._done(self._made(address, options)) if self.aio else self._make(address, options)

    def _make(self, address: str, options: Mapping[str, Any]) -> Any:
        return self._module.InferenceServerClient(address, **options)

    async def _made(self, address: str, options: Mapping[str, Any]) -> Any:  # an aiohttp session starts in a loop
        return self._make(address, options)

    def close(self) -> None:
        """Close its connections."""
        closed = self._client.close()
        if self.aio:
            self._done(closed)
        self._loop.close()

    def _done(self, coroutine: Awaitable[Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(coroutine, SECONDS))

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method that asks about the server or its models; return JSON."""
        if not self.over_http and not method.startswith("is_"):
            options["client_timeout"] = SECONDS
            if method.startswith("get_"):
                options["as_json"] = True
        answer = getattr(self._client, method)(*args, **options)
        return self._done(answer) if self.aio else answer

    def infer(self, *request: Any, **options: Any) -> Any:
        """Ask a model; the arguments are those of `_request`."""
        answer = self._client.infer(**self._request(*request, **options))
        return self._told(self._done(answer) if self.aio else answer)

    def infer_together(self, requests: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Ask a model several times before the first answer is there; answers come in the order of requests."""
        made = [self._request(*request) for request in requests]
        if self.aio:
            answers = self._done(self._all(made))
        elif self.over_http:
            waiting = [self._client.async_infer(**request) for request in made]
            answers = [one.get_result(timeout=SECONDS) for one in waiting]
        else:
            futures = [concurrent.futures.Future[Any]() for _ in made]
            for request, future in zip(made, futures, strict=True):
                self._client.async_infer(**request, callback=_filling(future))
            answers = [future.result(SECONDS) for future in futures]
        return [self._told(answer) for answer in answers]

    async def _all(self, requests: Iterable[Mapping[str, Any]]) -> list[Any]:
        return await asyncio.gather(*(self._client.infer(**request) for request in requests))

    def infer_in_stream(self, requests: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Ask over one stream of gRPC; an answer that is an error stands as such in the list."""
        made = [self._request(*request) for request in requests]
        for request in made:
            request.pop("client_timeout")
        answers: list[tuple[Any, Any]] = []
        if self.aio:
            answers = self._done(self._streamed(made))
        else:
            came = concurrent.futures.Future[Any]()

            def take(result: Any, error: Any) -> None:
                answers.append((result, error))
                if len(answers) == len(made):
                    came.set_result(None)

            self._client.start_stream(take)
            for request in made:
                self._client.async_stream_infer(**request)
            came.result(SECONDS)
            self._client.stop_stream()
        return [failure(error) if error else self._told(result) for result, error in answers]

    async def _streamed(self, requests: Iterable[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
        async def each() -> Any:
            for request in requests:
                yield request

        return [one async for one in self._client.stream_infer(each())]

    def _request(
        self,
        model: str,
        inputs: Inputs,
        outputs: Outputs = (),
        *,
        binary: bool = True,
        version: str = "",
        compressed: str = "",
        **more: Any,
    ) -> dict[str, Any]:
        """The arguments of tritonclient's methods.

        Arguments:
            outputs: those wanted; none: all.
            binary: whether tensors travel as bytes over HTTP. Else they do in JSON, but for bfloat16, which the client
                can't write there, and outputs must be named.
            compressed: "gzip" or "deflate", both ways over HTTP.
        """
        tensors = []
        for name, array in inputs.items() if isinstance(inputs, Mapping) else inputs:
            datatype = np_to_triton_dtype(array.dtype)
            how = {"binary_data": binary or datatype == "BF16"} if self.over_http else {}
            tensors.append(self._module.InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, **how))
        wanted = []
        for one in outputs:
            name, classes = (one, 0) if isinstance(one, str) else one
            how = {"binary_data": binary} if self.over_http else {}
            wanted.append(self._module.InferRequestedOutput(name, class_count=classes, **how))
        if self.over_http and compressed:
            more |= {"request_compression_algorithm": compressed, "response_compression_algorithm": compressed}
        elif compressed:
            more["compression_algorithm"] = compressed
        if not self.over_http:
            more["client_timeout"] = SECONDS
        return {"model_name": model, "inputs": tensors, "outputs": wanted, "model_version": version, **more}

    def _told(self, result: Any) -> dict[str, Any]:
        """An answer without what differs between transports."""
        answer = result.get_response()
        if not self.over_http:
            outputs = [(one.name, one.datatype, list(one.shape)) for one in answer.outputs]
            name, version, identifier = answer.model_name, answer.model_version, answer.id
        else:
            outputs = [(one["name"], one["datatype"], one["shape"]) for one in answer["outputs"]]
            name, version, identifier = answer["model_name"], answer["model_version"], answer.get("id", "")
        return {
            "model": name,
            "version": version,
            "id": identifier,
            "outputs": [
                {"name": output, "datatype": datatype, "shape": shape, "values": values(result.as_numpy(output))}
                for output, datatype, shape in outputs
            ],
        }


def _filling(future: concurrent.futures.Future[Any]) -> Callable[[Any, Any], None]:
    def fill(result: Any, error: Any) -> None:
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)

    return fill


def values(array: np.ndarray) -> list[Any]:
    """The elements of an array, row by row, as JSON can hold them."""
    flat = array.ravel()
    if array.dtype == object:
        return [text if isinstance(text, str) else text.decode("utf-8", "backslashreplace") for text in flat]
    return flat.astype(np.float64 if array.dtype.kind not in "iub" else array.dtype).tolist()


def failure(error: InferenceServerException) -> dict[str, str]:
    """A refusal: its status, which is compared, and its words, which are not."""
    status = str(error.status()).removeprefix("StatusCode.")
    return {"error": status, "says": error.message()}
