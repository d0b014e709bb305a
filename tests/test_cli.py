"""The command line: what it prints to people, to pipes, and when something is wrong."""

from __future__ import annotations

import csv
import importlib.metadata
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

import lamella as lm
from lamella import cli, hookspecs, registry, terminal
from lamella.cli import listing
from lamella.datasets import digits
from lamella.testing.laws import LAWS
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


def rows(printed: str) -> list[list[str]]:
    """The lines of a table in a pipe, below the headings, in cells."""
    heading, *lines = printed.splitlines()
    places = [heading.index(word) for word in ("name", "kind", "distribution", "class")]
    return [[line[a:b].strip() for a, b in zip(places, [*places[1:], None], strict=True)] for line in lines]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))


def test_layers_in_a_pipe_are_one_narrow_line_each():
    done = piped("layers")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) < 110
    found = {name: cells for name, *cells in rows(done.stdout)}
    assert set(found) == set(lm.layers())
    version = importlib.metadata.version("lamella")
    assert found["conv2d"] == ["layers", f"lamella {version}", "Conv2D(filters, kernel_size, ...)"]
    assert found["flatten"][2] == "Flatten()"
    assert found["max_pooling2d"][2] == "MaxPooling2D(...)"


def test_list_in_a_pipe_has_a_line_for_each_name_of_each_kind():
    assert set(listing.KINDS) == {*hookspecs.KINDS, "callbacks"}
    done = piped("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) < 110
    given = [(cells[0], cells[1]) for cells in rows(done.stdout)]
    expected = [(name, kind) for kind in hookspecs.KINDS for name in registry.shortest_names(registry.entries(kind))]
    expected += [(name, "commands") for name in cli.OWN] + [(name, "laws") for name in LAWS]
    assert sorted(one for one in given if one[1] != "callbacks") == sorted(expected)
    assert [name for name, kind in given if kind == "callbacks"] == [
        name for name in lm.callbacks.__all__ if name not in ("Callback", "StopTraining", "larger_is_better")
    ]
    assert [cells[:2] for cells in rows(piped("list", "lamella_layers.dense").stdout)] == [["dense", "layers"]]
    assert "callbacks" in {cells[1] for cells in rows(piped("list", "lamella").stdout)}
    found = rows(piped("list", "metrics", "losses").stdout)
    assert [kind for kind, _ in itertools.groupby(found, key=lambda cells: cells[1])] == ["losses", "metrics"]
    assert ["mse", "losses", "MeanSquaredError()"] in [[*cells[:2], cells[3]] for cells in found]


def test_list_takes_names_of_any_kind(capsys):
    def listed(*words):
        assert cli.main(list(words)) == 0
        printed = capsys.readouterr()
        return [tuple(cells[:2]) for cells in rows(printed.out)], printed.err

    assert listed("list", "adam", "Conv2D") == ([("conv2d", "layers"), ("adam", "optimizers")], "")
    both = [("mean_squared_error", "losses"), ("mse", "losses")]
    assert listed("list", "losses", "mse") == (both, "")
    assert listed("layers", "dense") == ([("dense", "layers")], "")
    assert listed("list", "laws", "onnx") == ([("onnx", "laws")], "")
    assert listed("list", "losses", "adam") == ([], "lamella: there is nothing of these kinds\n")
    assert listed("list", "optimizers", "lamella_serve") == ([], "lamella: there is nothing of these kinds\n")
    assert cli.main(["list", "adm"]) == 2
    assert "'adm' is no kind, and no name of anything. Did you mean 'adam'?\n" in capsys.readouterr().err
    assert cli.main(["list", "foo"]) == 2
    assert "Did you mean" not in capsys.readouterr().err
    assert cli.main(["dense"]) == 2
    assert "Did you mean 'lamella list dense'?" in capsys.readouterr().err


@pytest.mark.parametrize("more", ["…", "..."])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_list_on_a_terminal_fits_and_names_everything(width, more, monkeypatch, capsys):
    on_a_terminal(monkeypatch, width)
    monkeypatch.setattr(terminal, "_encodes", lambda text, encoding: more == "…")
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert printed.isascii() == (more == "...")
    words = set(re.findall(r"[\w-]+", printed))
    for kind in hookspecs.KINDS:
        assert words >= {entry.name for entry in registry.entries(kind)}
    for cls in lm.layers().values():
        assert f" {cls.__name__}(" in printed
    assert ("Conv2D(filters, kernel_size, " in printed) == (width >= 80)
    assert ("  LayerNormalization" in printed.replace(" LayerNormalization(", "")) == (width >= 100)  # the operator
    assert f"\n{more} stands for what does not fit; --json prints it all\n" in printed
    assert cli.main(["layers", "lamella_layers.reshaping"]) == 0
    printed = capsys.readouterr().out
    assert "\n4 layers\nlamella list: losses, metrics, optimizers and all else\n" in printed
    assert " UpSampling2D(size=2, " in printed


def test_a_list_as_json_holds_all_that_is_known(capsys):
    assert cli.main(["list", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["lamella"], data["problems"]) == (lm.__version__, [])
    found = {(one["kind"], one["name"]): one for one in data["entries"]}
    keys = ("kind", "name", "aliases", "class", "arguments", "summary", "onnx_operators")
    assert {tuple(one) for one in found.values()} == {(*keys, "module", "distribution", "version")}
    assert found["layers", "dense"] == {
        "kind": "layers",
        "name": "dense",
        "aliases": [],
        "class": "Dense",
        "arguments": [
            {"name": "units", "default": None, "keyword_only": False},
            {"name": "use_bias", "default": "True", "keyword_only": True},
            {"name": "activation", "default": "None", "keyword_only": True},
            {"name": "kernel_initializer", "default": "'glorot_uniform'", "keyword_only": True},
            {"name": "bias_initializer", "default": "'zeros'", "keyword_only": True},
        ],
        "summary": "Every output is a weighted sum of all features: y = activation(x W + b).",
        "onnx_operators": ["MatMul", "Add"],
        "module": "lamella_layers.dense",
        "distribution": "lamella",
        "version": lm.__version__,
    }
    assert found["layers", "dropout"]["onnx_operators"] == []
    assert found["losses", "mean_squared_error"]["aliases"] == ["mse"]
    assert found["activations", "silu"]["aliases"] == ["swish"]
    assert found["metrics", "accuracy"]["aliases"] == ["acc"]
    drawn = found["initializers", "he_normal"]
    assert (drawn["aliases"], drawn["class"], drawn["arguments"]) == (["kaiming_normal"], None, None)
    assert cli.main(["layers", "--json", "lamella:Dense"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] == [found["layers", "dense"]]


OWN_THINGS = """
import lamella as lm

def half(x):
    return x / 2

class Scale(lm.Layer):
    "Scales by ``f``."
    def __init__(self, f=half):
        self.f = f
    def forward_pass(self, ctx, x):
        return self.f(x)
    def backward_pass(self, ctx, dy):
        return self.f(dy)

class Pull(lm.losses.Loss):
    "Pulls."

@lm.hookimpl
def lamella_layers():
    return {"scale": Scale}

@lm.hookimpl
def lamella_losses():
    return {"pull": Pull}
"""


def test_a_list_of_a_module_that_is_not_installed_has_all_its_kinds(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_things.py").write_text(OWN_THINGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    on_a_terminal(monkeypatch, 100)
    assert cli.main(["list", "own_things"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "own_things layers  own_things",
        f"  scale  {'Scale(f=<function half>)':<61}  ?",  # and no address
        "",
        "losses  own_things",
        "  pull   Pull()",
        "",
        "1 layer, 1 loss",
        "?: no specimen says which",
    ]
    assert cli.main(["layers", "own_things"]) == 0
    printed = capsys.readouterr().out
    assert " Scale(" in printed
    assert "Pull" not in printed
    assert "1 layer\nlamella list own_things: also losses (1)\n" in printed
    assert cli.main(["list", "metrics", "own_things"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["", "nothing"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["losses"], r"lamella: unknown command 'losses'; .* Did you mean 'lamella list losses'\?"),
        (
            ["list", "loss"],
            r"lamella: 'loss' is no kind, and no name of anything. Did you mean 'losses'\?\n'loss': no installed",
        ),
        (["list", "json"], "lamella: 'json' has no hooks, so it gives nothing"),
        (["list", "lamella:dens"], r"lamella: 'lamella' gives no 'dens' by its hooks. Did you mean 'dense'\?"),
        (["layers", "lamella:qqqq"], r"gives no 'qqqq' by its hooks. After a change of its entry points, .* -e \.$"),
    ],
)
def test_a_list_of_what_is_not_there_says_what_might_be_meant(arguments, words, capsys):
    assert cli.main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert re.search(words, error, re.MULTILINE)


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
    on_a_terminal(monkeypatch, 100)
    assert cli.main(["layers"]) == 0
    printed, problems = capsys.readouterr()
    assert " acme:dense " in printed
    assert " dense " in printed
    assert "acme:dense is found by its full name only: lamella, or another plugin, has that name" in problems
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
def test_layers_tells_of_broken_plugins_beside_the_table(capsys):
    assert cli.main(["layers"]) == 0
    out, error = capsys.readouterr()
    assert {cells[0] for cells in rows(out)} == set(lm.layers())
    assert error == (
        "lamella: plugin 'swish' of an unknown distribution (nowhere.swish) could not be loaded: "
        "ModuleNotFoundError: No module named 'nowhere'\n"
    )


@pytest.mark.usefixtures("with_broken_plugin")
def test_an_unknown_command_gets_a_suggestion_and_the_plugins_that_might_give_it(capsys):
    assert cli.main(["verfy", "x.onnx"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(
        "lamella: unknown command 'verfy'; expected one of check, demo, export, export-repository, inspect, layers, "
        "list, new-plugin, serve, verify. Did you mean 'verify'?"
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
    monkeypatch.setattr(demo, "EPOCHS", 2)
    tried: list[np.ndarray] = []
    evaluate, fit = lm.Model.evaluate, lm.Model.fit
    monkeypatch.setattr(
        lm.Model, "evaluate", lambda model, x, y, **given: tried.append(x) or evaluate(model, x, y, **given)
    )
    seen: list[np.ndarray] = []

    def fit_and_note(model: lm.Model, x: np.ndarray, y: np.ndarray, **given: object) -> object:
        seen.extend([x, given["validation_data"][0]])  # type: ignore[index]
        return fit(model, x, y, **given)

    monkeypatch.setattr(lm.Model, "fit", fit_and_note)
    folder = tmp_path / "new" / "digits"
    assert cli.main(["demo", "--output", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "1797 handwritten digits: 1258 for training, 179 for validation, 360 for the test\n" in printed
    assert "\nan epoch has 6290: training digits as they are, and moved up, down, left, right\n" in printed
    assert "\nepoch 2/2  loss " in printed
    assert re.search(r"\nkept: the weights of epoch [12], whose val_loss is the lowest\n", printed)
    assert "agrees" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("test accuracy: ")]
    accuracy = float(
        line.removeprefix("test accuracy: ").removesuffix(" % of 360 digits, which were not used until now")
    )
    assert accuracy > 75  # two epochs; `make demo` takes twelve

    images, labels = digits()
    _, validate, test = demo.stratified_split(labels, 0.1, 0.2, seed=0)
    assert [len(one) for one in seen] == [6290, 179]
    np.testing.assert_array_equal(seen[1], images[validate] / 16)
    used = {one.tobytes() for array in seen for one in array}
    assert not any(one.tobytes() in used for one in images[test] / 16)
    assert [one.tobytes() for one in tried] == [(images[test] / 16).tobytes()]  # once, after training
    model = lm.load(folder / "digits.lamella")
    logits = model.predict(images[test] / 16)
    assert round(100 * float((logits.argmax(axis=1) == labels[test]).mean()), 1) == accuracy
    history = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in history] == ["1", "2"]
    kept = min(history, key=lambda row: float(row["val_loss"]))
    scores = model.evaluate(images[validate] / 16, labels[validate], loss="softmax_cross_entropy")
    assert float(kept["val_loss"]) == pytest.approx(scores["loss"], rel=1e-4)
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


@pytest.mark.parametrize("step", [1, 60])  # an epoch has 98
def test_demo_that_is_stopped_leaves_no_model(step, tmp_path, monkeypatch, capsys):
    class Press(lm.callbacks.EarlyStopping):
        steps = 0

        def on_batch_end(self, model: object, rows: int, logs: object) -> None:
            self.steps += 1
            if self.steps == step:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(lm.callbacks, "EarlyStopping", Press)
    assert cli.main(["demo", "--output", str(tmp_path)]) == 130
    assert "lamella: interrupted" in capsys.readouterr().err
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
    parts = demo.stratified_split(labels, 0.1, 0.2, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        np.testing.assert_allclose(np.bincount(labels[part]) / np.bincount(labels), share, atol=0.006)
    assert not np.array_equal(parts[2], demo.stratified_split(labels, 0.1, 0.2, seed=1)[2])


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
    assert done.returncode == 0
    assert all(line.startswith("lamella: ") and "evil 1" in line for line in done.stderr.splitlines())  # no traceback
    for arguments in (["layers"], ["--version"], ["--help"]):
        assert f"{arguments} 0" in done.stdout
    assert "evil 1" in done.stderr  # by `lamella layers`
    assert "evil 1" in done.stdout  # by `lm.layers()`
