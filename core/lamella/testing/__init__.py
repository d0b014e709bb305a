"""Testing what plugins give against the laws of its kind."""

from typing import TYPE_CHECKING, Any

from lamella import registry
from lamella.protocol.specimen import Specimen

if TYPE_CHECKING:
    from lamella.testing.check import (
        ConformanceError,
        ConformanceReport,
        check_activation,
        check_layer,
        check_loss,
        check_metric,
        check_optimizer,
        check_specimen,
    )

__all__ = [
    "ConformanceError",
    "ConformanceReport",
    "Specimen",
    "check_activation",
    "check_layer",
    "check_loss",
    "check_metric",
    "check_optimizer",
    "check_specimen",
]

LAWS = registry.Kind("laws")  # functions (case) -> detail


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # Those who import specimens, as losses do, come before models, which the laws run.
        if name in __all__:
            from lamella.testing import check

            return getattr(check, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
