"""Fixtures of several files: the wheel of lamella, and environments that hold nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from wheels import ROOT, Environment, install_wheel, run

# Programs: those of `make judge`, for an environment with Triton's client, and one that takes parts of the system away.
collect_ignore = ["against_triton", "without_posix.py"]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lamella's own wheel, unpacked and compiled as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    install_wheel(ROOT, folder / "site", folder / "dist")
    run("-m", "compileall", "-q", str(folder / "site"))
    return folder / "site"


@pytest.fixture
def environment(tmp_path: Path, installed: Path) -> Environment:
    return Environment(tmp_path, installed)
