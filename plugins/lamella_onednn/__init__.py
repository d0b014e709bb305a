"""The backend "onednn": NumPy's arrays, with kernels by oneDNN, which runs convolutions on all cores.

Importing this package loads nothing; the library is looked for when the backend is made.
"""

from __future__ import annotations

from typing import Any

import lamella as lm
from lamella_onednn.backend import OneDNNBackend

__all__ = ["OneDNNBackend"]


@lm.hookimpl
def lamella_backends() -> dict[str, Any]:
    return {"onednn": OneDNNBackend}
