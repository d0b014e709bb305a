"""The wheel of the lamella that runs, made from where it is installed: for packages that are to be tested elsewhere."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import Any

from lamella.errors import LamellaError
from lamella.version import __version__

__all__ = ["PACKAGES", "wheel"]

PACKAGES = (
    *("lamella", "lamella_layers", "lamella_onednn", "lamella_onnx"),
    *("lamella_pytest", "lamella_serve", "lamella_sklearn"),
)
"""What the distribution holds. A test compares it with pyproject.toml."""

_WHEEL = "Wheel-Version: 1.0\nGenerator: lamella {}\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def wheel() -> tuple[str, bytes]:
    """Return the name and the content of the wheel, the same whether lamella is installed as a copy or editable.

    Raises:
        LamellaError: lamella is not installed, and only its code can be imported; or the installation is of another
            version, or lacks files.
    """
    try:
        distribution = importlib.metadata.distribution("lamella")
    except importlib.metadata.PackageNotFoundError as error:
        raise LamellaError("lamella is not installed. Likely fix: python -m pip install . in its folder") from error
    if distribution.version != __version__:
        raise LamellaError(
            f"lamella {distribution.version} is installed, and {__version__} runs. Likely fix: install lamella again"
        )
    stem = f"lamella-{distribution.version}"
    info = f"{stem}.dist-info"
    files = dict(file for package in PACKAGES for file in _files(package))
    licences = [f"licenses/{name}" for name in distribution.metadata.get_all("License-File") or ()]
    for name in ("METADATA", "entry_points.txt", *licences):
        text = distribution.read_text(name)
        if text is None:
            raise LamellaError(f"the installation of lamella lacks its {name}. Likely fix: install lamella again")
        files[f"{info}/{name}"] = text.encode()
    files[f"{info}/WHEEL"] = _WHEEL.format(distribution.version).encode()
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980, so that equal files are equal wheels
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return f"{stem}-py3-none-any.whl", file.getvalue()


def _files(package: str) -> list[tuple[str, bytes]]:
    """The files of a package by their names in a wheel, wherever it is: in a folder, or in a zip file."""
    spec = importlib.util.find_spec(package)
    reader: Any = getattr(spec and spec.loader, "get_resource_reader", None)
    if reader is None:
        raise LamellaError(f"{package} is missing. Likely fix: install lamella again")
    return sorted(_below(reader(package).files(), package))


def _below(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    for one in folder.iterdir():
        if one.is_file():
            yield f"{path}/{one.name}", one.read_bytes()
        elif one.name != "__pycache__":
            yield from _below(one, f"{path}/{one.name}")


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
