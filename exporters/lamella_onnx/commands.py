"""The hooks of lamella_onnx: commands, and the law that a layer means the same in ONNX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lamella as lm
from lamella.cli import Command
from lamella.terminal import Terminal
from lamella_onnx.backend import OnnxruntimeBackend
from lamella_onnx.demo import DEMO

if TYPE_CHECKING:
    from lamella_onnx.parity import ParityReport

__all__: list[str] = []


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="an ONNX file that lamella_onnx.export wrote")
    parser.add_argument("--external-data", action="store_true", help="read arrays from files in the model's folder too")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="the longest that it may take; default: %(default)g",
    )


def _verify(arguments: argparse.Namespace) -> int:
    from lamella_onnx.proof import verify

    return _told(lambda: verify(arguments.file, external_data=arguments.external_data, timeout=arguments.timeout))


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a file that model.save wrote")
    parser.add_argument("file", help="the ONNX file to write")


def _export(arguments: argparse.Namespace) -> int:
    from lamella_onnx.exporter import export

    return _told(lambda: export(lm.load(arguments.model), arguments.file))


def _told(compare: Callable[[], ParityReport]) -> int:
    """Show the report of a comparison, or what differs."""
    from lamella_onnx.runtime import ParityError

    try:
        report = compare()
    except ParityError as error:
        print(f"lamella: {error}", file=sys.stderr)
        return 1
    Terminal().print(report.table())
    return 0


def _law(case: Any) -> str:
    from lamella_onnx.law import same_in_onnx  # the registry asks for names; onnx loads when a law is run

    return same_in_onnx(case)


@lm.hookimpl
def lamella_backends() -> dict[str, Any]:
    return {"onnxruntime": OnnxruntimeBackend}


@lm.hookimpl
def lamella_commands() -> dict[str, Any]:
    return {
        "demo": DEMO,
        "export": Command("write a saved model as an ONNX file with its proof", _configure_export, _export),
        "verify": Command("replay the proof that an exported file carries", _configure_verify, _verify),
    }


@lm.hookimpl
def lamella_laws() -> dict[str, Any]:
    return {"onnx": _law}
