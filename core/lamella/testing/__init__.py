"""Testing layers and losses against the laws that they all obey."""

from typing import Any

from lamella import registry
from lamella.protocol.specimen import Specimen

__all__ = ["ConformanceError", "ConformanceReport", "Specimen", "check_layer", "check_loss", "check_specimen"]

LAWS = registry.Kind("laws")  # functions (case) -> detail


def __getattr__(name: str) -> Any:
    # The laws run models, and models know losses, whose module carries specimens: so the laws come last.
    if name in __all__:
        from lamella.testing import check

        return getattr(check, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
