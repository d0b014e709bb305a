"""The judge that holds `lamella serve` against Triton: what it compares, what it overlooks, and what it can't."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import onnxruntime
import pytest
from wheels import ROOT

from lamella_serve.triton import export_repository

JUDGE = ROOT / "tests" / "against_triton"


@pytest.fixture
def modules(monkeypatch):
    """The modules of the judge that need no client of Triton, which see each other as scripts in one folder do."""
    monkeypatch.syspath_prepend(JUDGE)
    names = ("agreement", "meant", "models", "servers", "judge")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


ANSWER = {"model": "m", "id": "", "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "values": [1.0, 2.0]}]}


def changed(**parts):
    return ANSWER | {"outputs": [ANSWER["outputs"][0] | parts]}


@pytest.mark.parametrize(
    ("expected", "got", "where"),
    [
        (ANSWER, changed(values=[1.0, 2.00001]), ["outputs/0/values/1"]),
        (ANSWER, changed(values=[1.0, float("nan")]), ["outputs/0/values/1"]),
        (ANSWER, changed(values=[1.0, 2]), ["outputs/0/values/1"]),
        (ANSWER, changed(values=[1.0]), ["outputs/0/values"]),
        (ANSWER, changed(shape=[2, 1]), ["outputs/0/shape/0", "outputs/0/shape/1"]),
        (ANSWER, changed(shape=[]), ["outputs/0/shape"]),
        (ANSWER, changed(datatype="FP64", name="z"), ["outputs/0/name", "outputs/0/datatype"]),
        (ANSWER, ANSWER | {"id": "7", "more": 1}, ["id", "more"]),
        (ANSWER, ANSWER | {"outputs": ANSWER["outputs"] * 2}, ["outputs"]),
        (ANSWER, {"error": "400", "says": "no"}, ["error"]),
        ({"error": "400", "says": "no"}, {"error": "404", "says": "no"}, ["error"]),
        ({"failed": "gone"}, {"failed": "gone"}, ["failed"]),
        ({"error": "400", "says": "no"}, {"failed": "gone"}, ["failed"]),
        (True, 1, [""]),
        ({"ready": False}, {"ready": None}, ["ready"]),
        ([ANSWER], [changed(values=[0.0, 2.0])], ["0/outputs/0/values/0"]),
    ],
)
def test_it_sees_every_difference(modules, expected, got, where):
    differences = modules["agreement"].differences
    assert [one[0] for one in differences(expected, got)] == where
    assert [one[0] for one in differences(got, expected)] == where


def test_it_overlooks_words_and_the_last_bit(modules):
    differences = modules["agreement"].differences
    nan = changed(values=[float("nan"), 2.0])
    assert not list(differences(nan, changed(values=[float("nan"), float(np.nextafter(np.float32(2), np.float32(3)))])))
    assert not list(differences({"error": "400", "says": "no"}, {"error": "400", "says": "never"}))


def test_what_is_meant_is_told_and_must_still_be_there(modules):
    meant = [modules["agreement"].Meant("because", ("a call",), "error", ("400",))]
    bad, worse, gone = ({"error": status, "says": ""} for status in ("400", "500", "404"))
    judge = modules["judge"].judge
    verdict = judge({"a call": {"http": worse}}, {"a call": {"http": bad}}, meant)
    assert (verdict.same, verdict.meant, verdict.wrong) == (0, 1, [])
    assert "400 (1)" in str(verdict.table)
    assert "because" in str(verdict.table)
    verdict = judge({"a call": {"grpc": worse}}, {"a call": {"grpc": gone}}, meant)
    assert verdict.wrong == [
        'a call, grpc, error: Triton has "500", lamella "404"',
        "no longer differs, so meant.py should not say so: because",
    ]
    verdict = judge({"a call": {"http": bad, "grpc": bad}}, {"a call": {"grpc": bad}}, [])
    assert (verdict.same, verdict.meant, len(verdict.wrong)) == (1, 0, 1)
    assert "differs" in str(verdict.table)


def test_its_models_run_and_become_a_repository(modules, tmp_path):
    for version, files in modules["models"].write(tmp_path / "models").items():
        for file in files:
            onnxruntime.InferenceSession(file)
        export_repository([str(file) for file in files], str(tmp_path / "repository"), version=version)
    assert {path.name for path in (tmp_path / "repository" / "arithmetic").iterdir()} == {"1", "2", "config.pbtxt"}
    rows = (tmp_path / "repository" / "rows" / "config.pbtxt").read_text()
    assert "dims: 1\n  reshape {\n  }" in rows  # Triton wants a size for every output
