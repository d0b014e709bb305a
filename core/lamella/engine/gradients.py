"""The gradients of parameters, and how those of several threads are added up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from lamella.engine.arrays import Storage

__all__ = ["Gradients"]


class Gradients(Mapping[str, Any]):
    """Gradients of some parameters by full name, in one flat buffer.

    Each thread has a buffer. The first pass that runs on a thread writes its gradients there, and the passes after it
    add theirs; at the end the buffers of all threads are added up in the first.
    """

    def __init__(self, storage: Storage, names: Collection[str]) -> None:
        self.storage = storage
        self.names = frozenset(names)
        self.runs = storage.layout.runs(self.names)

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        return self.storage.part(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.storage.layout.declarations if name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def add_up(self, others: Iterable[Gradients]) -> None:
        """Add the gradients in other buffers to those here, in their order. The other buffers may be written over."""
        for other in others:
            for run in self.runs:
                self.storage.flat[run] += other.storage.flat[run]
