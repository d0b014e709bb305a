"""The messages of the protocol over gRPC, and those of Triton's extensions of it.

``open_inference_grpc.proto`` is the published definition (https://github.com/kserve/open-inference-protocol, Apache
License 2.0), unchanged. ``messages.binpb`` is what protoc makes of both files, by `make protocol`.
"""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["SERVICE", "message"]

SERVICE = "inference.GRPCInferenceService"


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    """The definitions, in a pool of their own: a client of Triton in the same process brings the same names."""
    pool = descriptor_pool.DescriptorPool()
    content = resources.files(__name__).joinpath("messages.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        pool.Add(file)
    return pool


@functools.cache
def message(name: str) -> Any:
    """Return the class of a message.

    >>> message("ModelInferRequest")(model_name="digits").model_name
    'digits'
    """
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))
