"""``lamella check``: examines what a package gives."""

from __future__ import annotations

import argparse

from lamella.commands import Command
from lamella.testing.command import check

__all__ = ["COMMAND"]


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        nargs="+",
        metavar="PACKAGE[:NAME]",
        help="a distribution, a package or a module, or one layer of it, such as my_package:MyLayer",
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def _run(arguments: argparse.Namespace) -> int:
    return check(arguments.target, as_json=arguments.json)


COMMAND = Command("examine what a package gives against the laws that all such things obey", _configure, _run)
