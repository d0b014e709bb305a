"""`lamella check` and `pytest --lamella`: what they find, what they say of it, and what they cost."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lamella as lm
from lamella import cli
from lamella.cli.new_plugin import create
from lamella.testing.laws import laws
from lamella.testing.package import find_package, verdicts_of
from lamella_layers import Flatten

ALL = list(laws())
MODULE = """
import lamella as lm

class Doubled(lm.Layer):
    def __init__(self, fault=False):
        self.fault = fault

    def forward_pass(self, ctx, x):
        if self.fault is None:
            self.calls = 1
        return 2.0 * x

    def backward_pass(self, ctx, dy):
        return (3.0 if self.fault else 2.0) * dy

class Whole(lm.Layer):
    def build(self, declare, x):
        raise lm.GraphError("expected a moon")

    forward_pass = backward_pass = Doubled.forward_pass

class Hidden(lm.Layer):
    pass

@lm.hookimpl
def lamella_layers():
    return {"doubled": Doubled, "bare": Hidden} if "BARE" else {"doubled": Doubled}

@lm.hookimpl
def lamella_specimens():
    x = lm.ArraySpec(("N", 4))
    return [lm.testing.Specimen(layer, (x,)) for layer in (SUBJECTS)]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of layers into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(name: str, subjects: str, *, bare: bool = False) -> str:
        text = MODULE.replace("SUBJECTS", subjects).replace("BARE", "bare" if bare else "")
        Path(f"{name}.py").write_text(text)
        return name

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def checked(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(["check", *arguments])
    return (status, *capsys.readouterr())


def test_a_sound_module_is_checked_before_anything_is_packaged(module, capsys):
    status, out, error = checked(module("sound", "Doubled(),"), capsys=capsys)
    heading, line, *_, last = out.splitlines()
    assert (status, error) == (0, "")
    assert heading.split() == ["name", "kind", "specimen", "laws", "seconds"]
    assert re.fullmatch(rf"doubled +layer +Doubled\(\) on \(N, 4\) float32 +{len(ALL)} hold +\d+\.\d\d", line)
    assert last == "specimens: 1, all laws hold"


def test_what_is_broken_is_told_below_and_fails(module, capsys):
    name = module("broken", "Doubled(), Doubled(True), Whole()", bare=True)
    status, out, error = checked(name, capsys=capsys)
    assert (status, error) == (1, "")
    assert "Doubled(fault=True) on (N, 4) float32  1 broken, " in out
    assert "\nbroken  Doubled(fault=True) on (N, 4) float32: gradient: " in out
    assert "\nbroken  Whole() on (N, 4) float32: runs: GraphError: " in out
    assert "expected a moon" in out
    assert "\nbroken  bare: 'bare' has no specimen, so nothing can be examined. Likely fix: " in out
    assert out.splitlines()[-1] == "specimens: 3, broken: 3"
    assert checked(f"{name}:Whole", capsys=capsys)[0] == 1
    assert checked(f"{name}:bare", capsys=capsys)[0] == 1
    status, out, _ = checked(f"{module('sound', 'Doubled(),')}:Hidden", capsys=capsys)  # known to no hook
    assert status == 1
    assert "'Hidden' has no specimen" in out


def test_a_terminal_gets_a_report_that_fits_and_cuts_no_word(module, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = checked(module("shown", "Doubled(), Doubled(True)"), "lamella:Reshape", capsys=capsys)
    assert status == 1
    assert "…" not in out
    out = re.sub(r"\x1b\[\d+m", "", out)
    assert max(map(len, out.splitlines())) <= 80
    told = " ".join(out.split())  # lines end between words
    assert "skipped lamella:Reshape: Reshape((3, 2)) on (N, 6) int64: gradient: " in told
    assert "difference quotients of forward_pass give " in told
    assert told.index("broken shown: Doubled(fault=True) on (N, 4) float32: gradient: ") < told.index("skipped lamella")


def test_laws_that_are_skipped_for_one_reason_stand_in_one_line_below_what_is_broken(module, capsys):
    status, out, _ = checked(module("stuck", "Doubled(None),"), capsys=capsys)
    assert status == 1
    found = [line for line in out.splitlines() if line.startswith(("broken", "skipped"))]
    assert len(found) == 2
    assert found[0].startswith("broken  Doubled(fault=None) on (N, 4) float32: purity: ")
    others = ", ".join(law for law in ALL if law != "purity")
    assert found[1] == f"skipped  Doubled(fault=None) on (N, 4) float32: {others}: the layer does not run: see purity"


def test_json_holds_the_verdicts(module, capsys):
    status, out, _ = checked("--json", "lamella_layers.dense:dense", module("one", "Doubled(True),"), capsys=capsys)
    data = json.loads(out)
    assert (status, data["sound"], data["lamella"]) == (1, False, lm.__version__)
    dense, one = data["packages"]
    assert {specimen["layer"] for specimen in dense["specimens"]} == {"dense"}
    assert dense["specimens"][0]["origin"] == f"lamella {importlib.metadata.version('lamella')}"
    (specimen,) = one["specimens"]
    assert (specimen["specimen"], specimen["inputs"]) == ("Doubled(fault=True)", ["(N, 4) float32"])
    outcomes = {verdict["law"]: verdict["outcome"] for verdict in specimen["verdicts"]}
    assert [law for law in ALL if outcomes[law] == "broken"] == ["gradient"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("lamela", "'lamela': no installed distribution, package or module of that name; .* Did you mean 'lamella'"),
        ("lamella:Desne", r"'lamella' has no layer 'Desne'\. Did you mean 'dense'\? Expected one of accuracy, "),
        (
            "lamella:xyz",
            r"'lamella' has no layer 'xyz'\. Expected one of .*\. "
            r"After a change of its entry points, a package has to be installed again",
        ),
        ("hollow", "'hollow' gives nothing by its hooks, so there is nothing to examine"),
        ("json", "'json' has no hooks, so it gives nothing.*, or name the module .* such as json.my_layer"),
        ("json:dumps", "'json' has no hooks, so it gives nothing"),
        ("lamella-new", r"'lamella-new' is not installed, .* Likely fix: python -m pip install -e \./lamella-new\n"),
        ("Lamella_New", r".* Likely fix: python -m pip install -e \./lamella-new\n"),
        ("folder", "'folder' is a folder without __init__.py, and no package, so it gives nothing"),
        ("lamella_layers.Dense", "'lamella_layers.Dense': no module of that name. Did you mean 'lamella_layers:Dense'"),
        *((one, f"'{one}': expected a package or module, such as 'my_package', or") for one in ("", ":", ":x", ".x")),
        ("failing", "'failing' could not be imported: ZeroDivisionError"),
        ("needing", "'needing' could not be imported: No module named 'moon'"),
    ],
)
def test_targets_that_are_not_there_are_one_message(target, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("failing.py").write_text("1 / 0")
    Path("needing.py").write_text("import moon")
    Path("hollow.py").write_text("import lamella as lm\n@lm.hookimpl\ndef lamella_layers():\n    return {}\n")
    Path("folder").mkdir()
    create("lamella-new")
    status, out, error = checked(target, capsys=capsys)
    assert (status, out) == (2, "")
    assert re.match(f"lamella: {words}", error)


def test_distributions_packages_and_modules_are_found_by_name():
    every = find_package("lamella")
    assert {"dense", "mean_squared_error", "activation"} < {subject.name for subject in every.subjects}
    assert not [subject.name for subject in every.subjects if subject.fault]
    family = {s.name for s in find_package("lamella_layers.reshaping").subjects}
    assert {"flatten", "reshape"} <= family < {subject.name for subject in every.subjects} - {"dense"}
    assert {s.name for s in find_package("Lamella:Flatten").subjects} == {"flatten"}


def test_an_activation_that_no_specimen_mentions_has_none(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bent.py").write_text(
        "import lamella as lm\nfrom lamella_layers import Activation\n"
        "def forward(xp, x):\n    return 2.0 * x\n"
        "def backward(xp, x, y, dy):\n    return 2.0 * dy\n"
        "seen, unseen = (lm.ActivationFunction(forward, backward) for _ in range(2))\n"
        "@lm.hookimpl\ndef lamella_activations():\n    return {'seen': seen, 'unseen': unseen}\n"
        "@lm.hookimpl\ndef lamella_specimens():\n"
        "    return [lm.testing.Specimen(Activation(seen), (lm.ArraySpec(('N', 3)),))]\n"
    )
    found = {subject.name: subject.fault for subject in find_package("bent").subjects}
    assert list(found) == ["unseen", "Activation"]
    assert found["unseen"].startswith("'unseen' has no specimen")
    assert "such as Specimen(my_activation, (lm.ArraySpec(('N', 4)),)), or one of a layer that" in found["unseen"]
    assert found["Activation"] == ""


RULES = """
import lamella as lm

class Signs(lm.optimizers.Optimizer):
    def __init__(self, learning_rate=0.01, power=1.0):
        self.learning_rate, self.power = learning_rate, power

    def update(self, xp, p, g, slots, lr, t):
        return p - lr * xp.sign(g), {}

class Powers(Signs):
    def __init__(self, power):
        self.learning_rate, self.power = 0.1, power

class Bias(lm.metrics.Metric):
    def per_sample(self, prediction, target):
        target -= SHIFT
        return (prediction - target).mean(axis=1)

class Odd(lm.metrics.Metric):
    def per_sample(self, prediction, target):
        raise lm.DataError("expected images")

class Root(lm.schedules.Schedule):
    def __init__(self, learning_rate):
        self.learning_rate = learning_rate

def near_zero(rng, shape, fan_in, fan_out):
    return rng.normal(0.0, 1e-3, shape)

cube = lm.ActivationFunction(lambda xp, x: x * x * x, lambda xp, x, y, dy: 3.0 * x * x * dy)

@lm.hookimpl
def lamella_optimizers():
    return {"signs": Signs, "signum": Signs, "powers": Powers}

@lm.hookimpl
def lamella_metrics():
    return {"bias": Bias, "odd": Odd}

@lm.hookimpl
def lamella_schedules():
    return {"root": Root}

@lm.hookimpl
def lamella_initializers():
    return {"near_zero": near_zero}

@lm.hookimpl
def lamella_activations():
    return {"cube": cube}

@lm.hookimpl
def lamella_specimens():
    return [lm.testing.Specimen(cube, (lm.ArraySpec(("N", 3)),)), MORE]
"""


@pytest.fixture
def rules(module):
    """Writes a module of optimizers, metrics and other things that are no layers."""

    def write(name: str, *, shift: float = 0.0, more: str = "") -> str:
        Path(f"{name}.py").write_text(RULES.replace("SHIFT", str(shift)).replace("MORE", more))
        return name

    return write


def test_optimizers_metrics_and_activations_are_examined_or_named(rules, capsys):
    status, out, _ = checked(rules("rules"), capsys=capsys)
    lines = out.splitlines()
    assert status == 0, out
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["cube", "activation"],
        ["signs", "optimizer"],
        ["bias", "metric"],
    ]
    assert "Bias() on (N, 5) float32, (N, 5) float32" in lines[3]
    told = [line for line in lines if line.startswith("not examined")]
    assert told[0].startswith("not examined  optimizers powers: it needs arguments; ")
    assert told[0].endswith("show it by a specimen, such as Specimen(Powers(...), ())")
    assert told[1].endswith("such as Specimen(Odd(...), (prediction, target))")
    assert told[2:] == [
        "not examined  schedules root: there are no laws for schedules",
        "not examined  initializers near_zero: there are no laws for initializers",
    ]
    assert lines[-1] == "specimens: 3, all laws hold"


def test_specimens_of_optimizers_and_metrics_are_examined(rules, capsys):
    more = "lm.testing.Specimen(Root(0.1), ()), lm.testing.Specimen(lm.regularization.L2(), ()), "
    more += "lm.testing.Specimen(Powers(0.5), ()), lm.testing.Specimen(Bias(), (lm.ArraySpec(('N', 2)),) * 2)"
    status, out, _ = checked("--json", rules("shown", shift=0.5, more=more), capsys=capsys)
    (package,) = json.loads(out)["packages"]
    found = {one["layer"]: one for one in package["specimens"]}
    assert status == 1
    assert (found["powers"]["specimen"], found["powers"]["kind"], found["powers"]["inputs"]) == (
        "Powers(0.5)", "optimizers", []
    )  # fmt: skip
    assert found["bias"]["inputs"] == ["(N, 2) float32"] * 2
    broken = [verdict for verdict in found["bias"]["verdicts"] if verdict["outcome"] == "broken"]
    assert broken[0]["detail"] == "update wrote into the target"
    assert [one["name"] for one in package["not_examined"]] == ["odd", "root", "near_zero", "L2"]


def test_pytest_examines_optimizers_and_skips_what_has_no_laws(rules):
    status, out = run_pytest("-q", "-rA", "--lamella", rules("collected_rules"))
    assert status == 0, out
    assert "PASSED lamella:collected_rules::signs::Signs()::elementwise" in out
    assert "PASSED lamella:collected_rules::bias::Bias() on (N, 5) float32, (N, 5) float32::no rows" in out
    assert "PASSED lamella:collected_rules::cube::activation forward" not in out
    assert "not examined: there are no laws for schedules" in out


def run_pytest(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "500"})
    return done.returncode, done.stdout + done.stderr


def test_pytest_collects_one_test_for_each_layer_specimen_and_law(module):
    name = module("collected", "Doubled(), Doubled(True), Whole()", bare=True)
    Path("test_other.py").write_text("def test_other(): pass")
    status, out = run_pytest("-q", "-rA", "--lamella", name, "--lamella", "lamella:Reshape", "-W", "error")
    assert status == 1
    start = f"lamella:{name}::doubled::Doubled() on (N, 4) float32"
    assert [line for line in out.splitlines() if line.startswith(f"PASSED {start}")] == [
        f"PASSED {start}::{law}" for law in ALL
    ]
    assert "PASSED test_other.py::test_other" in out
    assert f"FAILED lamella:{name}::doubled::Doubled(fault=True) on (N, 4) float32::gradient - " in out
    assert "gradient of Doubled(fault=True) on (N, 4) float32 ___" in out
    assert "backward_pass gives" in out
    assert f"FAILED lamella:{name}::Whole::Whole() on (N, 4) float32::gradient" in out
    assert f"FAILED lamella:{name}::bare::specimen - " in out
    assert "SKIPPED" in out
    assert "no output is of floats" in out
    assert "Traceback" not in out
    assert "pytest_plugin.py:" not in re.sub(r"^SKIPPED .*$", "", out, flags=re.MULTILINE)
    assert out.count(" FAILED") + out.count("\nFAILED") == 2 + len(ALL)


def test_pytest_chooses_by_keyword_and_by_mark(module):
    name = module("chosen", "Doubled(), Doubled(True)")
    Path("test_other.py").write_text("def test_other(): pass")
    assert "1 passed" in run_pytest("-q", "--lamella", name, "-k", "slicing and fault")[1]
    status, out = run_pytest("-q", "--lamella", f"{name}:doubled", "-m", "lamella", "--collect-only")
    assert status == 0
    assert "test_other" not in out.replace("1 deselected", "")
    assert out.count("::") == 2 * len(ALL) * 3


def test_pytest_says_what_it_cannot_find():
    status, out = run_pytest("--lamella", "lamela")
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --lamella: 'lamela': no installed distribution" in out


def test_pytest_without_the_option_loads_nothing(module):
    Path("test_free.py").write_text(
        "import sys\n"
        "def test_free(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.hasplugin('lamella')\n"
        "    assert not {'lamella', 'numpy', 'lamella_layers'} & set(sys.modules)\n"
    )
    status, out = run_pytest("-q", "-W", "error")
    assert status == 0, out


def test_a_layer_that_ends_the_program_is_broken():
    class Quits(lm.Layer):
        def forward_pass(self, ctx, x):
            raise SystemExit(0)

    (verdict,) = verdicts_of(lm.testing.Specimen(Quits(), lm.ArraySpec(("N", 4))))
    assert (verdict.law, verdict.outcome, verdict.detail) == ("runs", "broken", "SystemExit: 0")


PLUGIN = """
import sys
import lamella as lm

print("shone at import")

class Shining(lm.Layer):
    def forward_pass(self, ctx, x):
        print("shone in a pass")
        return x

    def backward_pass(self, ctx, dy):
        return dy

class Mute(Shining):
    def __repr__(self):
        raise ValueError("no words")

@lm.hookimpl
def lamella_layers():
    return {"NAME": SUBJECT}

@lm.hookimpl
def lamella_specimens():
    BEFORE
    return [lm.testing.Specimen(SUBJECT(), lm.ArraySpec(("N", 3)))]
"""


@pytest.fixture
def plugin(module):
    """Writes a module with what plugins do wrong."""

    def write(name: str, *, layer: str = "shining", subject: str = "Shining", before: str = "pass") -> str:
        text = PLUGIN.replace("NAME", layer).replace("SUBJECT", subject).replace("BEFORE", before)
        Path(f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize("before", ["pass", "sys.stdout = None"])
def test_what_a_plugin_prints_stays_out_of_what_is_told(before, plugin, capsys):
    status, out, error = checked("--json", plugin("loud", before=before), capsys=capsys)
    assert (status, json.loads(out)["sound"]) == (0, True)
    assert ("shone in a pass" in error) == (before == "pass")  # from several threads, whose lines may run together
    assert error.replace("shone in a pass", "").strip() == "shone at import"


def test_a_layer_without_words_is_broken_in_words(plugin, capsys):
    name = plugin("mute", subject="Mute")
    status, out, _ = checked(name, capsys=capsys)
    assert status == 1
    assert "broken  Mute(...) on (N, 3) float32: runs: Mute.__repr__ failed: ValueError: no words\n" in out


def test_a_name_of_lamellas_own_is_a_fault(plugin, capsys):
    status, out, _ = checked(plugin("taken", layer="dense"), capsys=capsys)
    assert status == 1
    assert "broken  module taken: layers: 'dense' is lamella's own" in out
    assert out.splitlines()[-1] == "specimens: 1, broken: 1"


@pytest.mark.parametrize(
    ("before", "words"), [("sys.exit(0)", "SystemExit: 0"), ("return None", "got NoneType; is a return missing?")]
)
def test_specimens_that_cannot_be_had_are_told_once(before, words, plugin, capsys):
    name = plugin("lost", before=before)
    status, out, _ = checked(name, capsys=capsys)
    first, last = out.splitlines()
    assert (status, last) == (1, "specimens: 0, broken: 1")
    assert re.fullmatch(rf"broken  module lost: lamella_specimens\(\): .*{re.escape(words)}", first)
    status, out, _ = checked(f"{name}:shining", capsys=capsys)
    assert status == 1
    assert f"broken  shining: {first.removeprefix('broken  ')}\n" in out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: (Flatten, x), "a metric or an optimizer, got the class Flatten; did you mean Flatten()?"),
        (lambda x: ("flatten", x), "expected a layer, a loss, an activation, a metric or an optimizer, got 'flatten'"),
        (lambda x: (Flatten(), 3), "inputs: expected specs such as lamella.ArraySpec(('N', 4)), got 3"),
        (lambda x: (Flatten(), lm.ArraySpec((3,))), "the batch axis first, got (3,) float32"),
        (lambda x: (Flatten(), x, "Identity"), "operators: expected names such as ('Conv',), got 'Identity'"),
        (lambda x: (Flatten(), x, None, "", "exact", "", (x, "words")), "refuses: expected pairs of input specs and"),
    ],
)
def test_specimens_that_show_nothing_are_refused(make, words):
    with pytest.raises(lm.ArgumentError, match=f"Specimen: .*{re.escape(words)}"):
        lm.testing.Specimen(*make(lm.ArraySpec(("N", 3))))


def test_pytest_tells_what_cannot_be_examined_and_nothing_twice(plugin):
    lost, mute = plugin("lost", before="sys.exit(0)"), plugin("mute", subject="Mute")
    status, out = run_pytest("-q", *(word for name in (lost, mute, mute) for word in ("--lamella", name)))
    assert status == 1
    assert "module lost: lamella_specimens(): SystemExit: 0" in out
    assert "Mute.__repr__ failed: ValueError: no words" in out
    assert f"{1 + len(ALL)} failed" in out


def test_what_has_no_laws_is_named(capsys):
    assert checked("lamella_onnx", capsys=capsys)[:2] == (
        0,
        "not examined  backends onnxruntime: layers are examined on every backend that calls them\n"
        "not examined  commands demo, export, verify: there are no laws for commands\n"
        "not examined  laws onnx: there are no laws for laws\nspecimens: 0, all laws hold\n",
    )
    status, out, _ = checked("lamella_onednn", capsys=capsys)
    assert status == 0
    assert "not examined  backends onednn: layers are examined on every backend that calls them" in out
