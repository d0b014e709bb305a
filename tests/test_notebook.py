"""What a notebook shows of models, histories and reports: small tables, in which nothing that users named is markup."""

from __future__ import annotations

import io
import math
import re
import sys
import types
from html.parser import HTMLParser

import pytest

import lamella as lm
import lamella_onnx
from lamella.notebook import curve
from lamella.terminal import Column, Table, Terminal, styled
from lamella_layers import Dense, Dropout, SeparableConv2D


class Page(HTMLParser):
    """The cells of tables, and everything that opens and closes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        assert self.open == [], "a tag that is not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("polyline", "circle"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag not in ("polyline", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data


def shown(thing: object) -> Page:
    return Page(thing._repr_html_())  # type: ignore[attr-defined]


def test_a_model_is_shown_as_its_summary():
    model = lm.Sequential(
        [SeparableConv2D(3, 2).named("apart"), Dropout(0.1).named("thinned")], input_shape=(2, 5, 5)
    ).freeze("apart")
    page = shown(model)
    assert page.rows[0] == ["layer", "output shape", "parameters", "connected to", "notes"]
    assert [row[0] for row in page.rows[1:]] == [
        "input_1 (Input)",
        "apart",
        "  depthwise (DepthwiseConv2D)",
        "  pointwise (Conv2D)",
        "thinned (Dropout)",
    ]
    assert page.rows[4][1:] == ["(N,\xa03,\xa04,\xa04)", "9", "depthwise", "frozen"]
    assert "Sequential, float32 on numpy" in page.text
    assert "0 trainable parameters, 17 frozen" in page.text
    assert '<span class="italic">apart</span>' in model._repr_html_()


def test_columns_without_anything_are_left_out():
    assert shown(lm.Sequential([Dense(3)], input_shape=2)).rows[0][-1] == "connected to"


def test_a_history_is_shown_with_its_curves_and_best_epochs():
    history = lm.History()
    for loss, accuracy in ((0.9, 0.5), (0.4, 0.9), (0.6, 0.8)):
        history.add({"loss": loss / 2, "val_loss": loss, "val_accuracy": accuracy, "learning_rate": 0.01})
    history.stopped = "good <enough>"
    page = shown(history)
    assert page.rows == [
        ["", "", "training", "validation", "best", "in epoch"],
        ["loss", "", "0.3", "0.6", "0.4", "2"],
        ["accuracy", "", "", "0.8", "0.9", "2"],
        ["learning_rate", "", "0.01", "", "", ""],
    ]
    assert page.tags.count("svg") == 3
    assert "History of 3 epochs" in page.text
    assert "stopped: good <enough>" in page.text


def test_a_history_without_validation_has_no_columns_for_it():
    history = lm.History()
    history.add({"loss": 0.5})
    assert shown(history).rows == [["", "", "training"], ["loss", "", "0.5"]]
    assert "History of 0 epochs" in shown(lm.History()).text


def test_a_history_stays_small():
    history = lm.History()
    for epoch in range(5000):
        history.add({"loss": 1 / (1 + epoch), "val_loss": 2 / (1 + epoch)})
    assert len(history._repr_html_()) < 8000


def test_a_curve_leaves_out_what_is_not_finite():
    points = re.findall(r'points="(.*?)"', curve([1.0, math.nan, 3.0], [2.0, math.inf]))
    assert [len(line.split()) for line in points] == [2, 1]
    assert points[0] == "4.0,20.0 116.0,4.0"  # the low one below, the high one above
    assert "nan" not in curve([math.nan], []) + curve([], [])


class Shift(lm.Layer):
    """``y = x + 1``, with the gradient of ``2 x``."""

    def forward_pass(self, ctx, x):
        return x + 1

    def backward_pass(self, ctx, dy):
        return 2 * dy


def test_reports_are_shown(tmp_path):
    model = lm.Sequential([Dense(3)], input_shape=2)
    page = shown(lamella_onnx.export(model, tmp_path / "<b>.onnx"))
    assert page.rows[1][:3] == ["dense_1", "batch of 1", "3"]
    assert page.rows[1][-1] == "agrees"
    assert "<b>.onnx: opset" in page.text
    page = shown(lm.testing.check_layer(Dense(3), lm.ArraySpec(("N", 2))))
    assert page.rows[1][:2] == ["gradient", "holds"]
    with pytest.raises(lm.testing.ConformanceError) as found:
        lm.testing.check_layer(Shift(), lm.ArraySpec(("N", 2)))
    for text in (shown(found.value.report).text, str(found.value.report)):
        assert "counterexample: x = " in text


def test_nothing_that_users_named_is_markup():
    bad = "<script>alert('x')</script>&amp;"
    history = lm.History()
    history.add({bad: 1.0})
    history.stopped = bad
    table = Table([bad, Column(bad, right=True)], title=bad)
    table.add(styled(bad, "bold red"), bad)
    table.notes = [bad]
    for thing in (history, table):
        page = shown(thing)
        assert "script" not in page.tags
        assert page.text.count(bad) >= 2
    assert shown(table).rows == [[bad, bad], [bad, bad]]
    assert '<span class="bold red">&lt;script&gt;' in table._repr_html_()


def test_a_summary_is_a_table_of_the_notebook(monkeypatch):
    displayed: list[object] = []
    display = types.ModuleType("IPython.display")
    display.display = displayed.append  # type: ignore[attr-defined]
    notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(sys, "stdout", notebook)
    lm.Sequential([Dense(3)], input_shape=2).summary()
    assert [type(one) for one in displayed] == [Table]
    assert notebook.getvalue() == ""


def test_a_summary_is_text_elsewhere(capsys):
    lm.Sequential([Dense(3)], input_shape=2).summary()
    assert "dense_1" in capsys.readouterr().out
    assert not Terminal().is_notebook
