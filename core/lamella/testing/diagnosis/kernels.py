"""Which kernels give other results than their references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from lamella.primitives import Primitive
from lamella.testing.diagnosis.relation import same

__all__ = ["kernels_that_differ"]


def kernels_that_differ(run: Callable[[], Any]) -> list[str]:
    """Run something on NumPy, and compare every kernel that it calls with its reference."""
    differ: dict[str, None] = {}
    plain = Primitive.__call__

    def watched(primitive: Primitive, ctx: Any, *args: Any, **options: Any) -> Any:
        args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)  # both read all of it
        result = plain(primitive, ctx, *args, **options)
        xp = getattr(ctx, "xp", ctx)
        if any(name in primitive.kernels for name in xp.kernels) and isinstance(result, np.ndarray):
            reference = primitive.reference(xp, *args, **options)
            if not same(result, reference) and not np.array_equal(result, reference, equal_nan=True):
                differ[repr(primitive.__name__)] = None  # type: ignore[attr-defined]
        return result

    with mock.patch.object(Primitive, "__call__", watched):
        run()
    return list(differ)
