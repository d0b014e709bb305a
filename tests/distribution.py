"""What is published: builds sdist and wheel, holds them against the tree, and uses the wheel as a stranger would.

``make dist`` runs this program, in an environment with build and twine. It says a line for each step, and ends with the
first that fails. ``test_distribution.py`` holds the contents in every run of the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
PLUGIN = "lamella-soft-gate"  # a name for the package that `lamella new-plugin` writes


def main() -> int:
    begin = time.monotonic()
    try:
        committed = said("git", "log", "-1", "--format=%ct", folder=ROOT).strip()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"make dist holds what it builds against a git repository: {getattr(error, 'output', '')}{error}")
    os.environ.setdefault("SOURCE_DATE_EPOCH", committed)
    os.environ.pop("PYTHONPATH", None)
    with tempfile.TemporaryDirectory() as folder:
        step("build an sdist, and a wheel from it", build)
        sdist, wheel = the(DIST, "*.tar.gz"), the(DIST, "*.whl")
        step(
            "build both again: the same bits; a wheel of the tree: the same", lambda: equal(sdist, wheel, Path(folder))
        )
        step(
            "metadata as package indexes want them",
            lambda: said(python(), "-m", "twine", "check", "--strict", *built()),
        )
        step("the sdist holds what the repository does", lambda: need(faults_of_sdist(sdist, tracked())))
        step("the wheel holds its packages, licences and data", lambda: need(faults_of_wheel(wheel)))
        step("install the wheel in a fresh environment", lambda: install(wheel, Path(folder)))
        step("lamella --version, layers, check", lambda: smoke(wheel, Path(folder)))
        step("lamella demo", lambda: demo(Path(folder)))
        step(f"lamella new-plugin {PLUGIN}, and its tests", lambda: new_plugin(Path(folder)))
    print(f"dist/ is ready ({time.monotonic() - begin:.0f} s): {', '.join(file.name for file in (sdist, wheel))}")
    return 0


def step(words: str, run: Callable[[], object]) -> None:
    begin = time.monotonic()
    try:
        run()
    except (AssertionError, subprocess.CalledProcessError) as error:
        output = getattr(error, "output", None)
        sys.exit(f"FAILED  {words}\n{output or ''}{error}")
    print(f"ok  {words} ({time.monotonic() - begin:.1f} s)", flush=True)


def said(*command: str | Path, folder: Path | None = None) -> str:
    """What a command prints that must succeed."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout


def the(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def built() -> list[Path]:
    return sorted(DIST.iterdir())


def python(folder: Path | None = None) -> Path:
    """The interpreter of this environment, or of the fresh one in a folder."""
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    return Path(sys.executable) if folder is None else folder / "env" / inside


def need(faults: list[str]) -> None:
    assert not faults, "\n".join(faults)


# The steps


def build() -> None:
    """As anybody builds it: in an environment of its own, with what pyproject.toml asks for."""
    shutil.rmtree(DIST, ignore_errors=True)
    said(python(), "-m", "build", "--outdir", DIST, ROOT)


def equal(sdist: Path, wheel: Path, folder: Path) -> None:
    for kinds, name in ((["--sdist"], sdist.name), (["--wheel"], wheel.name)):
        said(python(), "-m", "build", "--no-isolation", *kinds, "--outdir", folder / "again", ROOT)
        assert (folder / "again" / name).read_bytes() == (DIST / name).read_bytes(), f"{name} is not the same again"


def install(wheel: Path, folder: Path) -> None:
    venv.create(folder / "env", with_pip=True)
    said(python(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}[plot]")


def smoke(wheel: Path, folder: Path) -> None:
    version = wheel.name.split("-")[1]
    assert said(python(folder), "-m", "lamella", "--version", folder=folder).startswith(f"lamella {version} ")
    assert "Dense" in said(python(folder), "-m", "lamella", "layers", folder=folder)
    told = said(python(folder), "-m", "lamella", "check", "lamella_layers.dense", folder=folder)
    assert "all laws hold" in told, told


def demo(folder: Path) -> None:
    said(python(folder), "-m", "lamella", "demo", "--output", "digits", folder=folder)
    left = {file.suffix for file in (folder / "digits").iterdir()}
    assert {".lamella", ".onnx", ".png"} <= left, f"the demo left {left}"


def new_plugin(folder: Path) -> None:
    said(python(folder), "-m", "lamella", "new-plugin", PLUGIN, folder=folder)
    package = folder / PLUGIN
    pip = (python(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    said(*pip, "--editable", ".[test]", folder=package)
    said(python(folder), "-m", "pytest", "-q", folder=package)


# Contents


def tracked() -> set[str]:
    """The files of the repository, those that are not committed yet included."""
    listed = said("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder=ROOT)
    return {name for name in listed.split("\0") if name and (ROOT / name).exists()}


def faults_of_sdist(sdist: Path, expected: set[str]) -> list[str]:
    """What an sdist lacks of the repository, and what it has beyond."""
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    return [f"missing: {name}" for name in sorted(expected - held)] + [
        f"extra: {name}" for name in sorted(held - expected)
    ]


def faults_of_wheel(wheel: Path) -> list[str]:
    """What is wrong with the contents of a wheel, in words."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    stem = "-".join(wheel.name.split("-")[:2])
    packages = sorted(
        path.parent for top in ("core", "plugins", "exporters") for path in ROOT.glob(f"{top}/*/__init__.py")
    )
    expected = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for package in packages
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = [f"{stem}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")]
    info += [f"{stem}.dist-info/licenses/{name}" for name in ("LICENSE", "core/lamella/datasets/digits.LICENSE.md")]
    faults = [f"missing: {name}" for name in sorted({*expected, *info} - {*held})]
    faults += [f"extra: {name}" for name in sorted({*held} - {*expected, *info})]
    faults += [f"other than in the tree: {name}" for name in sorted(expected) if held.get(name, b"") != expected[name]]
    faults += [f"not typed: {package.name}" for package in packages if f"{package.name}/py.typed" not in held]
    description = held.get(info[0], b"").decode().partition("\n\n")[2]
    links = re.findall(
        r"\]\((?!https://|#)[^)]*\)", re.sub(r"^```.*?^```", "", description, flags=re.DOTALL | re.MULTILINE)
    )
    return faults + [f"a link that leads nowhere on a package index: {link}" for link in links]


if __name__ == "__main__":
    sys.exit(main())
