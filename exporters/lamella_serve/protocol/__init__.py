"""The messages of the protocol over gRPC, those of Triton's extensions of it, and those of gRPC's health checks.

``open_inference_grpc.proto`` (https://github.com/kserve/open-inference-protocol) and ``health.proto``
(https://github.com/grpc/grpc-proto) are the published definitions, under the Apache License 2.0, unchanged.
``messages.binpb`` is what protoc makes of all three files, by `make protocol`.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["HEALTH", "SERVICE", "message"]

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    """The definitions, in a pool of their own: a client of Triton in the same process brings the same names."""
    pool = descriptor_pool.DescriptorPool()
    content = resources.files(__name__).joinpath("messages.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        pool.Add(file)
    return pool


@functools.cache
def message(name: str, service: str = SERVICE) -> Any:
    """Return the class of a message of a service.

    >>> message("ModelInferRequest")(model_name="digits").model_name
    'digits'
    """
    package = service.rpartition(".")[0]
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{package}.{name}"))
