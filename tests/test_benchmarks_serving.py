"""The programs that load servers: they run, and see a server that answers something else."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from wheels import ROOT

SERVING = ROOT / "benchmarks" / "serving"


@pytest.fixture
def serving(monkeypatch):
    """Imports a module of the folder, which sees the others as scripts in one folder do."""
    monkeypatch.syspath_prepend(SERVING)
    names = ("models", "race", "report", "soak")
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


def python(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk")
def test_a_quick_run_of_lamella_alone(tmp_path):
    quick = ("--quick", "--models", "digits", "--contestants", "lamella", "--folder", tmp_path)
    ended = python(SERVING, *quick)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "quick.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"models", "quick.json", "quick.md", "quick.png"}
    assert found["errors"] == found["left_out"] == {}
    assert list(found["contestants"]) == ["lamella"]
    forms = [f"digits-{form}-{clients}" for form in ("json", "binary") for clients in (1, 16, 64)]
    assert list(found["workloads"]) == forms
    for name, workload in found["workloads"].items():
        own = workload["contestants"]["lamella"]
        assert own["rate"]["median"] > 0
        assert 0 < own["p50"]["median"] <= own["p99"]["median"]
        assert f"{name} " in ended.stdout
        if name.endswith("-1"):
            assert 0 < workload["in_process"]["median"] < own["python"]["median"]
    assert "| digits, JSON, 16 clients |" in (tmp_path / "quick.md").read_text()


LIAR = """
import http.server, json, sys


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"outputs": [{"data": [0.1] * 10}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def test_a_server_that_answers_something_else_is_out(serving, tmp_path):
    models, race = serving("models"), serving("race")
    (tmp_path / "liar.py").write_text(LIAR)
    liar = race.Contestant("liar", sys.executable, [str(tmp_path / "liar.py"), "{model}", "{port}"], [], speaks_v2=True)
    errors = {}
    path = models.export("digits", tmp_path)
    assert list(race.run("digits", path, [liar], race.Settings(rounds=1, seconds=1), errors)) == []
    for form in ("json", "binary"):
        assert f"liar answers something else in {form}" in errors[f"digits, {form}, liar"]


def test_a_server_that_ends_at_once_says_why(serving, tmp_path):
    race = serving("race")
    broken = race.Contestant("broken", sys.executable, ["-c", "raise SystemExit('no model here')"], [])
    with pytest.raises(race.ContestantError, match="broken is not ready .*\n.*no model here"):
        race.Server(broken, tmp_path, tmp_path, race.Settings(timeout=20))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_short_soak():
    ended = python(SERVING / "soak.py", "--seconds", "3")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "by the server's" in ended.stdout
    for kind in ("vanishes", "sends garbage", "sends slowly", "sends too much", "reads nothing"):
        assert f"{kind}: " in ended.stdout


def answer(soak, rows, places, identifier, **changes):
    """What a server says to a request for some rows of a pool."""
    y = rows.y[places]
    output = {"name": "y", "datatype": "FP32", "shape": list(y.shape), "data": y.ravel().tolist()}
    said = {"id": identifier, "model_name": rows.name, "outputs": [output | changes]}
    return 200, {}, json.dumps(said).encode()


def test_the_soak_sees_lost_and_mixed_up_answers(serving, tmp_path):
    models, soak = serving("models"), serving("soak")
    rows = soak.Rows(models.export("digits", tmp_path), "digits", 16)
    soak.check(rows, [3, 5], "a", *answer(soak, rows, [3, 5], "a"))
    wrong = {
        "off by": answer(soak, rows, [5, 3], "a"),
        "off by nan": answer(soak, rows, [3, 5], "a", data=[float("nan")] * 20),
        "answered": answer(soak, rows, [3, 5], "b"),
        r"answered .*\[1, 20\]": answer(soak, rows, [3, 5], "a", shape=[1, 20]),
        "503": (503, {}, b"{}"),
    }
    for words, one in wrong.items():
        with pytest.raises(soak.WrongAnswerError, match=words):
            soak.check(rows, [3, 5], "a", *one)


def test_the_soak_wants_rows_that_it_can_tell_apart(serving, tmp_path, monkeypatch):
    models, soak = serving("models"), serving("soak")
    path = models.export("digits", tmp_path)
    monkeypatch.setattr(soak.models, "rows", lambda session, count: np.zeros((count, 1, 28, 28), "float32"))
    with pytest.raises(ValueError, match="a mix-up would not be seen"):
        soak.Rows(path, "digits", 4)


def test_the_soak_sees_growth(serving, capsys):
    soak = serving("soak")
    flat = [(float(second), second, 100.0 + 5 * (second % 2)) for second in range(100)]
    assert soak.memory(flat) == []
    grown = [(after, answers, megabytes + 0.2 * after) for after, answers, megabytes in flat]
    (words,) = soak.memory(grown)
    assert words.startswith("memory grew by 1")
