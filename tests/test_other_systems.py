"""What only some systems have: lamella does without. Windows and macOS themselves are not tried here."""

from __future__ import annotations

import sys
import types

import pytest
from wheels import ROOT, run

from lamella_onnx import isolation


def test_everything_runs_without_what_only_posix_has():
    assert run(str(ROOT / "tests" / "without_posix.py")).endswith("all of it ran\n")


def test_limits_that_a_system_refuses_are_left_out(monkeypatch):
    """As macOS refuses to limit memory; the others stand."""
    was = []

    def setrlimit(kind, limits):
        if kind == "memory":
            raise ValueError("current limit exceeds maximum limit")
        was.append(kind)

    kinds = {"RLIMIT_AS": "memory", "RLIMIT_CPU": "seconds", "RLIMIT_CORE": "core", "RLIM_INFINITY": -1}
    fake = types.SimpleNamespace(getrlimit=lambda kind: (-1, -1), setrlimit=setrlimit, **kinds)
    monkeypatch.setitem(sys.modules, "resource", fake)
    isolation._limit(1000, 1.0)
    assert was == ["seconds", "core"]


@pytest.mark.parametrize("refusals", [2, 10**9])
def test_a_file_that_others_have_open_is_waited_for(refusals, tmp_path, monkeypatch):
    """But not for ever; then what stood there still does, and nothing is left behind."""
    from lamella.files import writing

    tried, replace = [], writing.os.replace

    def refused(old, new):
        tried.append(new)
        if len(tried) <= refusals:
            raise PermissionError("Access is denied")
        replace(old, new)

    monkeypatch.setattr(writing, "fcntl", None)
    monkeypatch.setattr(writing, "_PATIENCE", 0.1)
    monkeypatch.setattr(writing.os, "replace", refused)
    (tmp_path / "file").write_bytes(b"old")
    if refusals == 2:
        writing.write_atomically(tmp_path / "file", b"new")
    else:
        with pytest.raises(PermissionError):
            writing.write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == (b"new" if refusals == 2 else b"old")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert len(tried) >= 3
