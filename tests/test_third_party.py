"""Distributions of others: found through their entry points, examined, trained, saved, loaded and exported."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml
from wheels import ROOT

import lamella as lm
from lamella import cli, hookspecs
from lamella.cli import shell
from lamella.cli.new_plugin import KINDS, create

PIXELS = ROOT / "examples" / "lamella-pixels"


def test_a_distribution_of_others_installs_and_is_found(environment, installed):
    """Its own tests train, save, load and export; the option --lamella in its settings adds the laws."""
    environment.install(PIXELS)
    assert environment.run("-c", "import lamella; print(lamella.__file__)").startswith(str(installed))
    layers = environment.run("-m", "lamella", "layers").splitlines()
    (line,) = [line for line in layers if line.startswith("depth_to_space ")]
    assert line.endswith(" DepthToSpace(block_size)")
    assert "  layers  " in line
    assert "  lamella-pixels 0.1.0  " in line
    printed = environment.run("-c", "import lamella as lm; print(lm.layers())").splitlines()
    assert ["depth_to_space", "DepthToSpace", "lamella-pixels", "0.1.0"] in [line.split() for line in printed]
    code = "import lamella as lm, sys; lm.layer('lamella:dense', units=1); print('lamella_pixels' in sys.modules)"
    assert environment.run("-c", code) == "False\n"
    shutil.copytree(PIXELS / "tests", environment.folder / "tests")
    shutil.copy(PIXELS / "pyproject.toml", environment.folder)
    told = environment.run("-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA")
    assert "PASSED tests/test_layers.py::test_small_digits_grow_and_the_model_travels" in told
    assert "PASSED lamella:lamella-pixels::depth_to_space::DepthToSpace(2) on (N, 8, 2, 3) float32::onnx" in told
    assert "failed" not in told
    data = json.loads(environment.run("-m", "lamella", "check", "lamella_pixels:SubpixelConv2D", "--json"))
    assert data["sound"]


def test_a_new_plugin_passes_its_own_tests_at_once(environment):
    told = environment.run("-m", "lamella", "new-plugin", "lamella-soft-gate")
    assert "a layer SoftGate in lamella_soft_gate/layers.py" in told
    assert told.splitlines()[-4:-1] == [
        "    cd lamella-soft-gate",
        f'    {environment.python} -m pip install --editable ".[test]"',
        f"    {environment.python} -m pytest",
    ]
    folder = environment.folder / "lamella-soft-gate"
    assert {path.name for path in folder.iterdir()} == {
        ".github",
        ".gitignore",
        "LICENSE",
        "README.md",
        "lamella_soft_gate",
        "pyproject.toml",
        "tests",
        "wheels",
    }
    texts = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".whl"]
    left = [path for path in texts if re.search(r"@\w+@", path.read_text())]
    assert left == []
    environment.install(folder)
    told = environment.run("-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", folder=folder)
    assert "PASSED lamella_soft_gate/layers.py::lamella_soft_gate.layers.SoftGate" in told
    assert "PASSED lamella:lamella-soft-gate::soft_gate::SoftGate() on (N, 5) float32::gradient" in told
    assert "failed" not in told


@pytest.mark.parametrize(
    ("system", "path", "runs", "said"),
    [
        ("posix", "/home/a b/python", True, "'/home/a b/python'"),
        ("posix", "lamella-swish", False, "lamella-swish"),
        ("nt", r"C:\code\.venv\Scripts\python.exe", True, r"C:\code\.venv\Scripts\python.exe"),
        ("nt", r"C:\my code\python.exe", True, r'& "C:\my code\python.exe"'),
        ("nt", r"C:\my code\lamella-swish", False, r'"C:\my code\lamella-swish"'),
    ],
)
def test_commands_are_those_of_the_system(system, path, runs, said, monkeypatch):
    with monkeypatch.context() as here:
        here.setattr(os, "name", system)
        quoted = shell.quoted(path, runs=runs)
    assert quoted == said


def test_the_python_that_runs_goes_by_its_name_where_a_shell_would_find_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert shell.python() == "python"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shell.python() == shlex.quote(sys.executable)
    (tmp_path / "python").write_text("#!/bin/sh\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep + str(tmp_path))  # begins with the current folder
    assert shell.python() == shlex.quote(sys.executable)


def test_the_program_goes_by_what_a_shell_would_find(tmp_path, monkeypatch):
    (tmp_path / "lamella").write_text("#!/bin/sh\n")
    (tmp_path / "lamella").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "argv", ["/usr/lib/lamella/__main__.py"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shell.program() == "lamella"
    monkeypatch.setattr(sys, "executable", "/usr/bin/python")  # the program that is found is of another one
    assert shell.program() == "/usr/bin/python -m lamella"
    monkeypatch.setattr(sys, "argv", [".venv/bin/lamella"])
    assert shell.program() == ".venv/bin/lamella"


def test_a_new_plugin_has_an_example_of_every_hook(tmp_path):
    create("soft-gate", tmp_path)
    package = tmp_path / "soft-gate" / "soft_gate"
    given = {hook for file in package.glob("*.py") for hook in re.findall(r"def lamella_(\w+)\(", file.read_text())}
    assert given == {*KINDS, "specimens"} == {*hookspecs.KINDS, "specimens"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_module_of_a_new_plugin_stands_alone(kind, environment):
    """So that an author may delete any of them, with its test and its line in pyproject.toml."""
    create("soft-gate", environment.folder)
    folder = environment.folder / "soft-gate"
    settings = folder / "pyproject.toml"
    for other in KINDS:
        if other != kind:
            (folder / "soft_gate" / f"{other}.py").unlink()
            (folder / "tests" / f"test_{other}.py").unlink()
            line = f'{other} = "soft_gate.{other}"\n'
            assert line in settings.read_text()
            settings.write_text(settings.read_text().replace(line, ""))
    environment.install(folder)
    assert " passed" in environment.run("-m", "pytest", "-p", "no:cacheprovider", "-q", folder=folder)


NAMES = ["soft-gate", "lamella-exponential-moving-average-pooling", "Up2D"]


@pytest.mark.parametrize("name", NAMES)
def test_a_new_plugin_is_in_shape_whatever_its_name(name, tmp_path):
    ruff = pytest.importorskip("ruff", reason="ruff comes with lamella[dev]; make lint runs this").find_ruff_bin()
    create(name, tmp_path)
    (folder,) = tmp_path.iterdir()
    subprocess.run([ruff, "check", "--no-cache"], cwd=folder, check=True)
    subprocess.run([ruff, "format", "--no-cache", "--check"], cwd=folder, check=True)


def test_the_workflow_of_a_new_plugin_passes_from_the_first_push(tmp_path):
    """Its steps run in an environment without lamella, from the files that a push holds; the rest is borrowed."""
    pytest.importorskip("mypy", reason="mypy and ruff come with lamella[dev]; make lint runs this")
    ruff = pytest.importorskip("ruff").find_ruff_bin()
    create("soft-gate", tmp_path)
    folder = tmp_path / "soft-gate"
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    pushed = tmp_path / "pushed"
    subprocess.run(["git", "checkout-index", "-a", f"--prefix={pushed}/"], cwd=folder, check=True)

    venv.create(tmp_path / "env", with_pip=True, symlinks=True)
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    for one in Path(sysconfig.get_path("purelib")).iterdir():
        if not one.name.startswith(("lamella", "_lamella", "pip", "__pycache__")):
            (borrowed / one.name).symlink_to(one)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(str(borrowed))
    (tmp_path / "env" / "bin" / "ruff").symlink_to(ruff)
    workflow = yaml.safe_load((pushed / ".github/workflows/test.yml").read_text())
    variables = {**os.environ, **workflow["env"], "PATH": f"{tmp_path / 'env' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    variables.pop("PYTHONPATH", None)
    steps = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    assert len(steps) == 5
    for step in steps:
        offline = step.replace("pip install", "pip install --no-index --no-build-isolation")
        done = subprocess.run(["bash", "-e", "-c", offline], cwd=pushed, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{step}\n{done.stdout}{done.stderr}"
    code = "import lamella, lamella_sklearn; print(lamella.__file__)"
    done = subprocess.run(["python", "-c", code], cwd=pushed, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(site))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("soft-gate", ("soft-gate", "soft_gate", "SoftGate", "soft_gate")),
        ("Lamella_Soft.Gate", ("lamella-soft-gate", "lamella_soft_gate", "SoftGate", "soft_gate")),
        ("MyLayer2D", ("my-layer2-d", "my_layer2_d", "MyLayer2D", "my_layer2d")),
        ("lamella", None),
    ],
)
def test_names_follow_from_the_name_of_the_distribution(name, expected, tmp_path):
    if expected is None:
        with pytest.raises(lm.ArgumentError, match="but there is one already"):
            create(name, tmp_path)
        return
    distribution, package, cls, layer = expected
    create(name, tmp_path)
    text = (tmp_path / distribution / package / "layers.py").read_text()
    assert f"class {cls}(lm.Layer)" in text
    assert f'return {{"{layer}": {cls}}}' in text
    with pytest.raises(lm.ArgumentError, match="exists already; choose another name"):
        create(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "expected letters, digits and '-', with a letter first"),
        ("../x", "expected letters, digits and '-', with a letter first"),
        ("2d", "expected letters, digits and '-', with a letter first"),
        ("lamella-2d", "would name a class '2d', which Python does not allow"),
        ("none", "would name a class 'None', which Python does not allow"),
        ("json", "would name a package 'json', but there is one already"),
        ("numpy", "would name a package 'numpy', but there is one already"),
        ("array.api.strict", "would name a package 'array_api_strict', but there is one already"),
        ("pyyaml", "would take the place of the distribution 'pyyaml', which is installed"),
        ("test-time", "would name a package 'test_time', which pytest takes for tests"),
        ("build", "which git would leave out"),
        ("Wheels", "which is the folder of lamella's wheel; choose another, such as 'lamella-wheels'"),
        ("lpt1", "which Windows keeps for a device"),
        ("my-dense", None),
        ("lamella-dense", "would name a layer 'dense', which lamella 0.1.0 has"),
    ],
)
def test_names_that_cannot_be_are_refused_and_leave_nothing(name, words, tmp_path, capsys):
    assert cli.main(["new-plugin", name, "--folder", str(tmp_path)]) == (2 if words else 0)
    error = capsys.readouterr().err
    if words:
        assert error.startswith("lamella: name: ")
        assert words in error
        assert list(tmp_path.iterdir()) == []


def test_a_new_plugin_goes_whole_into_a_repository_that_leaves_wheels_out(tmp_path):
    """As the usual .gitignore for Python does, above the new folder."""
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("wheels/\n*.whl\n")
    create("soft-gate", tmp_path)
    told = ["git", "status", "--short", "--ignored", "--untracked-files=all"]
    said = subprocess.run(told, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert "?? soft-gate/wheels/lamella-0.1.0-py3-none-any.whl\n" in said
    assert "!!" not in said


def test_a_link_that_leads_nowhere_is_there(tmp_path):
    (tmp_path / "soft-gate").symlink_to(tmp_path / "nowhere")
    with pytest.raises(lm.ArgumentError, match="soft-gate exists already"):
        create("soft-gate", tmp_path)


def test_a_new_plugin_that_fails_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lamella.cli.new_plugin._FILES", {"a": "pyproject.txt", "b": "missing.txt"})
    assert cli.main(["new-plugin", "soft-gate", "--folder", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["new-plugin", "soft-gate", "--folder", str(tmp_path / "nowhere")]) == 2
    assert "folder: expected one that exists" in capsys.readouterr().err


def test_a_new_plugin_can_be_written_from_a_zip_file(environment, installed, tmp_path):
    """With the same wheel, byte for byte, as lamella makes of itself where it is unpacked."""
    archive = shutil.make_archive(str(tmp_path / "lamella-0.1.0"), "zip", installed)
    for name, home in (("from-zip", archive), ("from-folder", installed)):
        code = f"import sys; sys.path.insert(0, {str(home)!r}); from lamella.cli import main; sys.exit(main())"
        environment.run(
            "-S", "-c", f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); {code}", "new-plugin", name
        )
    wheels = [
        (tmp_path / name / "wheels" / "lamella-0.1.0-py3-none-any.whl").read_bytes()
        for name in ("from-zip", "from-folder")
    ]
    assert wheels[0] == wheels[1]
    assert len(wheels[0]) > 100_000


def test_a_new_plugin_needs_all_of_lamella(tmp_path, monkeypatch):
    with monkeypatch.context() as here:
        here.setattr("lamella.cli.wheel.PACKAGES", ("lamella", "lamella_that_is_gone"))
        with pytest.raises(lm.LamellaError, match="lamella_that_is_gone is missing. Likely fix: install lamella again"):
            create("soft-gate", tmp_path)

    whole = importlib.metadata.distribution("lamella")

    class Bare:
        version, metadata = whole.version, whole.metadata

        def read_text(self, name: str) -> str | None:
            return None if name == "entry_points.txt" else whole.read_text(name)

    class Old(Bare):
        version = "0.0.1"

    for broken, words in ((Bare, "lacks its entry_points.txt"), (Old, "lamella 0.0.1 is installed, and 0.1.0 runs")):
        monkeypatch.setattr("importlib.metadata.distribution", lambda name, broken=broken: broken())
        with pytest.raises(lm.LamellaError, match=f"{words}. Likely fix: install lamella again"):
            create("soft-gate", tmp_path)

    def gone(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", gone)
    with pytest.raises(lm.LamellaError, match="lamella is not installed. Likely fix: python -m pip install ."):
        create("soft-gate", tmp_path)
    assert list(tmp_path.iterdir()) == []
