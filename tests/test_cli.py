"""The command line: what it prints to people, to pipes, and when something is wrong."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

import lamella as lm
from lamella import cli, registry
from lamella.datasets import digits
from lamella_onnx import demo


def piped(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "lamella", *arguments], capture_output=True, text=True)


def test_version_names_what_decides_results():
    done = piped("--version")
    names = {name: importlib.metadata.version(name) for name in ("lamella", "numpy", "onnx", "onnxruntime")}
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    assert all(f"{name} {version}" in done.stdout for name, version in names.items())
    assert f"Python {sys.version.split()[0]}" in done.stdout


def test_no_command_prints_help(capsys):
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {name} " in printed for name in ("demo", "export", "layers", "verify"))


def test_layers_in_a_pipe_are_one_whole_line_each():
    done = piped("layers")
    assert (done.returncode, done.stderr) == (0, "")
    heading, *lines = done.stdout.splitlines()
    places = [heading.index(word) for word in ("layer", "class", "family", "distribution", "arguments", "ONNX")]
    table = [[line[a:b].strip() for a, b in zip(places, [*places[1:], None], strict=True)] for line in lines]
    rows = {row[0]: row[1:] for row in table}
    assert list(rows) == sorted(rows, key=lambda name: (rows[name][1], name))
    assert set(rows) == set(lm.layers())
    version = importlib.metadata.version("lamella")
    assert rows["dense"][:3] == ["Dense", "dense", f"lamella {version}"]
    assert rows["dense"][3].startswith("units, *, use_bias=True, activation=None")
    assert rows["dense"][4] == "MatMul, Add"
    assert rows["dropout"][4] == "nothing"
    assert rows["flatten"][3:] == ["none", "Reshape"]
    assert "…" not in done.stdout


@pytest.mark.parametrize("width", [80, 120])
def test_layers_on_a_terminal_fit_and_lose_nothing(width, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["layers"]) == 0
    plain = capsys.readouterr().out
    assert max(map(len, plain.splitlines())) <= width
    assert "…" not in plain
    for name, cls in lm.layers().items():
        assert f" {name} " in plain
        assert f" {cls.__name__}(" in plain
    assert f"{len(lm.layers())} layers in" in plain


def test_layers_tells_by_which_name_one_is_found_and_what_a_question_mark_means(monkeypatch, capsys):
    class Dense(lm.Layer):
        def build(self, declare, x):
            raise SystemExit(0)

    plugin = SimpleNamespace(
        lamella_layers=lm.hookimpl(lambda: {"dense": Dense}),
        lamella_specimens=lm.hookimpl(lambda: [lm.testing.Specimen(Dense(), lm.ArraySpec(("N", 3)))]),
    )
    point = SimpleNamespace(name="d", value="d", dist=SimpleNamespace(name="acme", version="1"), load=lambda: plugin)
    one = registry.Registry([*importlib.metadata.entry_points(group="lamella"), point])
    for name in ("plugins", "entries", "specimens"):
        monkeypatch.setattr(registry, name, getattr(one, name))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["layers"]) == 0
    printed = capsys.readouterr().out
    assert " acme:dense " in printed
    assert " dense " in printed
    assert "acme:dense is found by its full name only: lamella, or another plugin, has that name" in printed
    assert "\n?: no specimen says which" in printed


class Broken:
    name, value, dist = "swish", "nowhere.swish", None

    def load(self) -> None:
        raise ModuleNotFoundError("No module named 'nowhere'")


@pytest.fixture
def with_broken_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    one = registry.Registry([*importlib.metadata.entry_points(group="lamella"), Broken()])
    for name in ("plugins", "entries", "specimens"):
        monkeypatch.setattr(registry, name, getattr(one, name))


@pytest.mark.usefixtures("with_broken_plugin")
def test_layers_lists_broken_plugins_below(capsys):
    assert cli.main(["layers"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "plugin 'swish' of an unknown distribution (nowhere.swish) could not be loaded: "
        "ModuleNotFoundError: No module named 'nowhere'"
    )


@pytest.mark.usefixtures("with_broken_plugin")
def test_an_unknown_command_gets_a_suggestion_and_the_plugins_that_might_give_it(capsys):
    assert cli.main(["verfy", "x.onnx"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(
        "lamella: unknown command 'verfy'; expected one of check, demo, export, export-repository, inspect, layers, "
        "new-plugin, serve, verify. Did you mean 'verify'?"
    )
    assert "\nplugin 'swish' of an unknown distribution" in error
    assert cli.main(["xyz"]) == 2
    assert "verify. After a change of its entry points, a package has to be installed again" in capsys.readouterr()[1]


def test_commands_of_one_name_are_told_apart_by_their_distributions(monkeypatch, capsys):
    def giving(distribution: str, status: int) -> SimpleNamespace:
        commands = {name: cli.Command("shine", lambda parser: None, lambda _: status) for name in ("shine", "layers")}

        def refuse(parser: object) -> None:
            raise RuntimeError("its arguments can't be added")

        commands |= {distribution: cli.Command("fail", refuse, lambda _: status)}
        plugin = SimpleNamespace(lamella_commands=lm.hookimpl(lambda: commands))
        origin = SimpleNamespace(name=distribution, version="1")
        return SimpleNamespace(name="cli", value=f"{distribution}.cli", dist=origin, load=lambda: plugin)

    one = registry.Registry([giving("sun", 7), giving("moon", 8)])
    for name in ("plugins", "entries", "specimens"):
        monkeypatch.setattr(registry, name, getattr(one, name))
    assert cli.main(["sun:shine"]) == 7
    assert cli.main(["moon:layers"]) == 8
    assert cli.main(["layers"]) == 0  # lamella's own keeps its name
    assert cli.main([]) == 0  # nobody's arguments are asked for
    capsys.readouterr()
    assert cli.main(["shine"]) == 2
    assert "several distributions give the command 'shine'; say moon:shine or sun:shine" in capsys.readouterr().err


def test_no_plugin_of_others_is_imported_for_lamellas_own_commands(monkeypatch, capsys):
    point = SimpleNamespace(name="slow", value="slow", dist=None, loads=0)

    def load() -> SimpleNamespace:
        point.loads += 1
        return SimpleNamespace()

    point.load = load
    one = registry.Registry([*importlib.metadata.entry_points(group="lamella"), point])
    for name in ("plugins", "entries", "specimens"):
        monkeypatch.setattr(registry, name, getattr(one, name))
    assert cli.main(["verify", "nowhere.onnx"]) == 2
    assert cli.main(["new-plugin", "lamella-swirl", "--folder", "nowhere"]) == 2
    assert point.loads == 0
    assert cli.main(["swirl"]) == 2
    assert point.loads == 1


def command(monkeypatch: pytest.MonkeyPatch, run: Callable[[object], int]) -> None:
    monkeypatch.setitem(cli.OWN, "layers", cli.Command("fail", lambda parser: None, run))


@pytest.mark.parametrize(
    ("raised", "status", "words"),
    [
        (
            lm.ArgumentError("units: expected a positive int, got 0"),
            2,
            "lamella: units: expected a positive int, got 0",
        ),
        (lm.DataError("no rows"), 2, "lamella: no rows"),
        (lm.RegistryError("unknown name"), 2, "lamella: unknown name"),
        (FileNotFoundError(2, "No such file or directory", "x.onnx"), 2, "lamella: x.onnx: No such file or directory"),
        (KeyboardInterrupt(), 130, "lamella: interrupted"),
    ],
)
def test_errors_are_one_line_and_a_status(raised, status, words, monkeypatch, capsys):
    def run(_: object) -> int:
        raise raised

    command(monkeypatch, run)
    assert cli.main(["layers"]) == status
    out, error = capsys.readouterr()
    assert (out, error.strip()) == ("", words)


def test_a_bug_keeps_its_traceback(monkeypatch):
    command(monkeypatch, lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["layers"])


def test_verify_of_a_missing_file_is_one_line():
    done = piped("verify", "nowhere.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "nowhere.onnx" in done.stderr


def test_a_reader_that_stops_early_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m lamella layers | head -1", shell=True, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1


def test_demo_leaves_a_model_a_proof_pictures_and_a_history(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "PHASES", ((3e-3, 1),))
    folder = tmp_path / "new" / "digits"
    assert cli.main(["demo", "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "1797 handwritten digits: 1438 to learn from, 359 to test on" in printed
    assert "\nepoch 1/1  loss " in printed
    assert "agrees" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("test accuracy: ")]
    accuracy = float(line.removeprefix("test accuracy: ").removesuffix(" %"))
    assert accuracy > 75  # one epoch; `make demo` takes twelve

    images, labels = digits()
    _, test = demo.stratified_split(labels, 0.2, seed=0)
    model = lm.load(folder / "digits.lamella")
    logits = model.predict(images[test] / 16)
    assert round(100 * float((logits.argmax(axis=1) == labels[test]).mean()), 1) == accuracy
    (row,) = csv.DictReader((folder / "history.csv").read_text().splitlines())
    assert row["epoch"] == "1"
    assert float(row["val_accuracy"]) == pytest.approx(accuracy / 100, abs=5e-4)
    assert {path.name for path in folder.iterdir()} >= {"digits.lamella", "digits.onnx", "history.csv"}

    snippet = "\n".join(line.strip() for line in printed.splitlines()[-5:])
    scope: dict[str, object] = {}
    exec(snippet, scope)
    assert capsys.readouterr().out.startswith("[")
    probabilities = scope["probabilities"]
    assert isinstance(probabilities, np.ndarray)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert cli.main(["verify", str(folder / "digits.onnx")]) == 0
    assert "agrees" in capsys.readouterr().out


def test_demo_without_matplotlib_says_how_to_get_pictures(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = demo._draw(tmp_path, {}, np.zeros((1, 1, 8, 8)), np.zeros(1))
    assert "python -m pip install matplotlib" in text
    assert list(tmp_path.iterdir()) == []


def test_demo_without_onnxruntime_says_what_is_missing(monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.startswith("lamella_onnx.")]:
        if name not in ("lamella_onnx.demo", "lamella_onnx.commands"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main(["demo", "--output", str(tmp_path / "new")]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert "onnxruntime" in error
    assert error.endswith("try: python -m pip install onnxruntime\n")
    assert not (tmp_path / "new").exists()


def test_the_split_is_stratified_and_complete():
    labels = digits()[1]
    learn, test = demo.stratified_split(labels, 0.2, seed=0)
    assert sorted([*learn, *test]) == list(range(len(labels)))
    shares = np.bincount(labels[test]) / np.bincount(labels)
    np.testing.assert_allclose(shares, 0.2, atol=0.003)
    assert not np.array_equal(test, demo.stratified_split(labels, 0.2, seed=1)[1])


def test_moved_copies_are_moved_by_a_pixel():
    image = np.zeros((1, 1, 8, 8), "float32")
    image[0, 0, 3, 4] = 1
    moved, labels = demo.with_moved_copies(image, np.array([7]))
    assert [tuple(np.argwhere(one[0])[0]) for one in moved] == [(3, 4), (2, 4), (4, 4), (3, 3), (3, 5)]
    assert labels.tolist() == [7] * 5


EVIL = {
    "an error without words": "class E(Exception):\n    def __str__(self): raise RuntimeError('no')\nraise E()",
    "no Exception": "raise BaseException('b')",
    "a module that replaces itself": "import sys\nsys.modules[__name__] = 3",
    "a module that is everything": "import sys\nfrom unittest.mock import MagicMock\n"
    "sys.modules[__name__] = MagicMock()",
    "odd hooks": "import lamella as lm\n@lm.hookimpl\ndef lamella_layers(): return {'Evil': 1, 'evil': object}\n"
    "@lm.hookimpl\ndef lamella_commands(): return {'bad': lm.cli.Command(None, print, print)}",
    "entry points that are no UTF-8": b"\xff[lamella]\nevil = evil_mod\n",
    "entry points that are no lines": b"[lamella]\nevil_mod\n",
}
USES = """
import sys, lamella as lm
from lamella import cli
from lamella_layers import Dense
model = lm.Sequential([Dense(1)], input_shape=1)
model.fit([[1.0], [2.0]], [[1.0], [2.0]], loss="huber", optimizer="sgd", progress=False)
model.save("m")
lm.load("m")
for arguments in (["layers"], ["--version"], ["--help"]):
    try:
        print(arguments, cli.main(arguments))
    except SystemExit as ended:
        print(arguments, ended.code)
print(lm.layers())
"""


@pytest.mark.parametrize("case", EVIL)
def test_odd_plugins_break_nothing_and_are_named(case, tmp_path):
    folder, given = tmp_path / "evil-1.dist-info", EVIL[case]
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (tmp_path / "evil_mod.py").write_text(given if isinstance(given, str) else "")
    points = b"[lamella]\nevil = evil_mod\n" if isinstance(given, str) else given
    (folder / "entry_points.txt").write_bytes(points)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", USES],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for arguments in (["layers"], ["--version"], ["--help"]):
        assert f"{arguments} 0" in done.stdout
    assert done.stdout.count("evil 1") >= 2  # by `lamella layers` and `lm.layers()`
    print(*[line for line in done.stdout.splitlines() if "evil 1" in line], sep="\n")
