"""``lamella inspect``: tells what is in a file, without building the model."""

from __future__ import annotations

import argparse
import importlib.metadata
import math

from lamella.commands import Command
from lamella.errors import counted
from lamella.files.inspection import Inspection, inspect
from lamella.registry import SCRIPT
from lamella.terminal import Column, Table, Terminal, styled
from lamella.version import __version__

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a file that model.save wrote")


def _run(arguments: argparse.Namespace) -> int:
    found = inspect(arguments.file)
    shapes = ", ".join(str(("N", *shape)).replace("'", "") for shape in found.inputs)
    title = f"{found.path}: {found.kind} on {shapes}, {found.dtype}"
    table = Table(("", Column("layer"), Column("version"), Column("arguments", share=math.inf)), title=title)
    for number, layer in enumerate(found.layers):
        name = layer.type.removeprefix("lamella:")
        table.add(str(number), styled(name, "cyan"), layer.version or "", layer.arguments)
    table.notes += _notes(found)
    Terminal().print(table)
    return 0


def _notes(found: Inspection) -> list[str]:
    state = sum(math.prod(shape) for name, shape in found.arrays.items() if name.startswith("state/"))
    size = f"{found.parameters:,} parameters" + (f", {state:,} in state" if state else "")
    lines = [f"{size}; format {found.format}, {found.bytes:,} bytes"]
    lines.append(f"\ntrained for {counted(found.step, 'step')}, {counted(found.epochs, 'finished epoch')}")
    if found.optimizer is not None:
        lines[-1] += f", by {found.optimizer}"
    if found.stopped is not None:
        lines.append(f"\ntraining was stopped: {found.stopped}")
    elif found.training is not None:
        epoch, batches = found.training
        done = f" after {batches} batch{'es' * (batches != 1)}" if batches else ""
        lines.append(f"\nfit(checkpoint=, resume=True) goes on with epoch {epoch + 1}{done}")
    packages = [_needed(name, version) for name, version in found.distributions.items() if name != SCRIPT]
    script = ", and what a script made known by lm.register" if SCRIPT in found.distributions else ""
    lines.append(f"\nneeds {', '.join(packages) or 'no package'}{script}")
    return lines


def _needed(name: str, version: str) -> str:
    """A distribution with the version that the file has seen, and what is installed if that is another or none."""
    try:
        here = __version__ if name == "lamella" else importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} {version} (not installed)"
    return f"{name} {version}" + (f" ({here} is installed)" if here != version else "")


COMMAND = Command("tell what is in a file, without building the model", _configure, _run)
