"""A repository in Triton's layout, for Triton itself or for ``lamella serve``, with as much batching as is proven."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lamella.arguments import positive
from lamella.errors import ArgumentError
from lamella.files.writing import write_atomically
from lamella_onnx.files import as_path
from lamella_serve.configuration import configuration, label_file, written
from lamella_serve.model import ServedModel, Settings
from lamella_serve.places import find

__all__ = ["export_repository"]
