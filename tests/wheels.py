"""Wheels, built as they are published, and environments that hold nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*command: str, python: Path | str = sys.executable, folder: Path = ROOT, **environment: str) -> str:
    """What Python prints for a command that must succeed."""
    done = subprocess.run(
        [str(python), *command], cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install_wheel(source: Path, site: Path, dist: Path) -> None:
    """Build the wheel of a project and unpack it, which is how a wheel without scripts is installed."""
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(dist), folder=source)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


class Environment:
    """A fresh virtual environment with lamella's wheel; what lamella and its tests depend on is borrowed."""

    def __init__(self, folder: Path, installed: Path) -> None:
        venv.create(folder / "env", symlinks=os.name != "nt")
        self.folder = folder
        self.python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.site = Path(
            run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", python=self.python).strip()
        )
        (self.site / "borrowed.pth").write_text(f"{installed}\n{sysconfig.get_path('purelib')}\n")

    def install(self, source: Path) -> None:
        install_wheel(source, self.site, self.folder / f"dist-{source.name}")

    def run(self, *command: str, folder: Path | None = None) -> str:
        return run(*command, python=self.python, folder=folder or self.folder)
