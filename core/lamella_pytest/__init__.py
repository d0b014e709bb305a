"""The option ``--lamella`` of pytest, and no more: pytest loads this module whether or not the option is given.

It stands beside lamella, since importing anything from within lamella would import all of it, and NumPy.
"""

from __future__ import annotations

from typing import Any

__all__ = ["pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: Any) -> None:
    parser.getgroup("lamella").addoption(
        "--lamella",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="also examine the layers of a package (or of PACKAGE:LAYER one) against the laws that all layers "
        "obey; -k chooses among them by layer, specimen and law",
    )


def pytest_configure(config: Any) -> None:
    config.addinivalue_line("markers", "lamella: a law examined on a specimen of a layer, from --lamella")
    if config.getoption("lamella"):
        from lamella.testing import pytest_plugin

        config.pluginmanager.register(pytest_plugin, "lamella-laws")
