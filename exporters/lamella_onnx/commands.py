"""The hooks of lamella_onnx: commands, and the law that a layer means the same in ONNX."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import lamella as lm
from lamella.cli import Command
from lamella.terminal import Terminal
from lamella_onnx.demo import DEMO

__all__: list[str] = []


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="an ONNX file that lamella_onnx.export wrote")


def _verify(arguments: argparse.Namespace) -> int:
    from lamella_onnx.proof import verify
    from lamella_onnx.runtime import ParityError

    try:
        report = verify(arguments.file)
    except ParityError as error:
        print(f"lamella: {error}", file=sys.stderr)
        return 1
    Terminal().print(report.table())
    return 0


def _law(case: Any) -> str:
    from lamella_onnx.law import same_in_onnx  # the registry asks for names; onnx loads when a law is run

    return same_in_onnx(case)


@lm.hookimpl
def lamella_commands() -> dict[str, Any]:
    return {
        "demo": DEMO,
        "verify": Command("replay the proof that an exported file carries", _configure_verify, _verify),
    }


@lm.hookimpl
def lamella_laws() -> dict[str, Any]:
    return {"onnx": _law}
