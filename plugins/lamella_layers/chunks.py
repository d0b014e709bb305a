"""Some samples of a batch after others, few enough for what a kernel does with them to stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["chunks"]

_CHUNK_BYTES = 1 << 20


def chunks(count: int, bytes_each: int) -> Iterator[slice]:
    """Slices of ``count`` samples.

    >>> list(chunks(5, 1 << 19))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    step = max(1, _CHUNK_BYTES // bytes_each)
    return (slice(start, start + step) for start in range(0, count, step))
