"""The benchmark suite: it runs, writes down what it saw, and refuses a contestant that computes something else."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
from wheels import ROOT

SUITE = ROOT / "benchmarks" / "suite"


@pytest.fixture
def suite(monkeypatch):
    """The modules of the suite, which see each other as scripts in one folder do."""
    monkeypatch.syspath_prepend(SUITE)
    names = ("workloads", "race")
    yield [importlib.import_module(name) for name in names]
    for name in names:
        del sys.modules[name]


def python(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_a_quick_run_of_lamella_alone(tmp_path):
    quick = (SUITE, "--quick", "--torch", tmp_path / "python", "--jax", tmp_path / "python", "--folder", tmp_path)
    ended = python(*quick, "--workloads", "mlp-64", "mlp-1-predict")
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "quick.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"quick.json", "quick.png"}
    assert found["quick"]
    assert found["errors"] == found["means"] == {}
    assert list(found["contestants"]) == ["lamella"]
    assert set(found["left_out"]) == {"PyTorch", "PyTorch channels last", "torch.compile", "JAX"}
    assert "without JAX: " in ended.stdout
    assert list(found["workloads"]) == ["mlp-8", "mlp-1-predict"]
    for name, workload in found["workloads"].items():
        assert workload["training"] == (name == "mlp-8")
        own = workload["contestants"]["lamella"]
        assert 0 < own["least"] <= own["median"] <= own["most"]
        assert own["import_seconds"] < own["first_step_seconds"]
        assert f"{name} " in ended.stdout
    losses = found["workloads"]["mlp-8"]["contestants"]["lamella"]["losses"]
    assert losses == sorted(losses, reverse=True)


def pair(race, workloads, tmp_path, **other):
    """Two lamellas that start with arrays of their own; the second's differ where it is said."""
    workload = workloads.Workload("gru", 2)
    settings = race.Settings(threads=1, timeout=60)
    start, children, said = workload.draw(), {}, {}
    for label, arrays in {"lamella": start, "other": start | other}.items():
        np.savez(tmp_path / f"{label}.npz", **arrays)
        contestant = race.Contestant(label, "lamella", sys.executable, {"backend": "numpy"})
        job = {"workload": dataclasses.asdict(workload), "arrays": str(tmp_path / f"{label}.npz")}
        children[label] = race.Child(contestant, settings, tmp_path, **job)
    try:
        said = {label: child.answer() for label, child in children.items()}
        return race.check(workload, start, children, said)
    finally:
        for child in children.values():
            child.close()


def test_equal_contestants_agree(suite, tmp_path):
    workloads, race = suite
    assert pair(race, workloads, tmp_path) == {"other": 0.0}


@pytest.mark.parametrize("array", ["gru_1.recurrent_bias", "x"])
def test_a_contestant_that_computes_something_else_is_refused(suite, tmp_path, array):
    workloads, race = suite
    changed = workloads.Workload("gru", 2).draw()[array] * 1.05
    with pytest.raises(race.ContestantError, match=r"^other computes something else than lamella: loss 1 differs by"):
        pair(race, workloads, tmp_path, **{array: changed})


def test_a_wrong_gradient_shows_in_what_steps_change(suite, tmp_path):
    workloads, race = suite
    workload = workloads.Workload("mlp", 8)
    start = workload.draw()
    names = [weight.name for weight in workloads.NETWORKS["mlp"].weights()]
    rng = np.random.default_rng(0)
    change = {name: 1e-3 * rng.standard_normal(start[name].shape) for name in names}

    class Stub:
        def __init__(self, label, **factors):
            self.results = tmp_path / f"{label}.npz"
            np.savez(self.results, *(start[name] + factors.get(name, 1.0) * change[name] for name in names))

    said = {label: {"losses": [2.0, 1.9, 1.8]} for label in ("one", "two")}
    twice = {"one": Stub("one"), "two": Stub("two", **{"dense_2.bias": 2.0})}
    with pytest.raises(race.ContestantError, match=r"^two .* than one: change of dense_2\.bias differs by"):
        race.check(workload, start, twice, said)
    race.check(workload, start, {"one": Stub("one"), "two": Stub("two")}, said)


def test_what_a_child_says_before_it_fails_is_shown(suite, tmp_path):
    workloads, race = suite
    contestant = race.Contestant("lamella", "lamella", sys.executable, {"backend": "numpy"})
    job = {"workload": dataclasses.asdict(workloads.WORKLOADS[0]), "arrays": str(tmp_path / "nothing.npz")}
    child = race.Child(contestant, race.Settings(), tmp_path, **job)
    try:
        with pytest.raises(race.ContestantError, match=r"lamella ended with status 1:\n(.*\n)*.*nothing\.npz"):
            child.answer()
    finally:
        child.close()


def test_a_child_that_hangs_is_ended(suite, tmp_path):
    _, race = suite
    contestant = race.Contestant("lamella", "lamella", sys.executable, {"backend": "numpy"})
    child = race.Child(contestant, race.Settings(timeout=0.01), tmp_path)
    try:
        with pytest.raises(race.ContestantError, match=r"lamella said nothing for 0\.01 s and was ended"):
            child.answer()
    finally:
        child.close()
    assert child.process.returncode != 0


def test_ratios_take_the_fastest_peer_of_each_round(suite):
    _, race = suite
    contestants = [race.Contestant(name, name, "") for name in ("lamella", "torch", "jax")]
    found = race.ratios(contestants, {"lamella": [1.0, 2.0], "torch": [3.0, 9.0], "jax": [5.0, 8.0]})
    assert found["lamella"]["rounds"] == [3.0, 4.0]
    assert race.ratios(contestants[:1], {"lamella": [1.0]}) == {}


def test_unknown_names_are_refused_with_what_there_is():
    ended = python(SUITE, "--workloads", "mlp", "--list")
    assert ended.returncode == 0
    assert "mlp-1-predict" in ended.stdout
    ended = python(SUITE, "--workloads", "mlp")
    assert ended.returncode == 1
    assert "no workload is called 'mlp'; there are mlp-1, mlp-64" in ended.stderr


def test_a_prepared_step_changes_file_less_than_forty_times():
    """Each change is a call from one file into another, which a small step has to pay for."""
    counted = "import sys; sys.path.insert(0, 'benchmarks'); import cost; print(*cost.changes_of_file())"
    ended = subprocess.run([sys.executable, "-c", counted], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    files, changes = map(int, ended.stdout.split())
    assert files <= 10
    assert changes < 40


def test_the_first_model_learns():
    done = python(ROOT / "benchmarks" / "first_model" / "in_lamella.py")
    assert json.loads(done.stdout)["accuracy"] > 0.85, done.stderr
