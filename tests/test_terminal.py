"""What people see: styles where they are taken, tables that fit, and a line that is redrawn in place."""

from __future__ import annotations

import io
import re
import sys

import pytest

import lamella as lm
from lamella.terminal import Column, Line, Table, Terminal, fold, plain, styled, width_of
from lamella.training.progress import Progress
from lamella_layers import Dense


class Tty(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """The lines that stand on a terminal in the end."""
    lines = [""]
    for part in re.findall(r"\x1b\[2K|\x1b\[\S*?[a-zA-Z]|\n|\r|[^\x1b\n\r]+", written):
        if part == "\x1b[2K":
            lines[-1] = ""
        elif part == "\n":
            lines.append("")
        elif part[0] not in "\x1b\r":
            lines[-1] += part
    return lines


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Tty:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    return Tty()


@pytest.mark.parametrize(
    ("variable", "value", "styles", "redraws"),
    [("TERM", "xterm", True, True), ("TERM", "dumb", False, False), ("NO_COLOR", "1", False, True)],
)
def test_styles_only_where_they_are_taken(variable, value, styles, redraws, tty, monkeypatch):
    monkeypatch.setattr(sys, "stdout", tty)
    monkeypatch.setenv(variable, value)
    Terminal().print(styled("broken", "bold red"))
    assert tty.getvalue() == ("\x1b[1;31mbroken\x1b[0m\n" if styles else "broken\n")
    with Line(Terminal()) as line:
        line.show(styled("meanwhile", "dim"))
    assert ("meanwhile" in tty.getvalue()) == redraws
    assert ("\x1b[2m" in tty.getvalue()) == styles
    pipe = io.StringIO()
    Terminal(pipe).print(styled("broken", "bold red"))
    assert pipe.getvalue() == "broken\n"


def test_what_is_folded_fits_and_keeps_text_styles_and_indentation():
    text = f"  {styled('Conv2D', 'cyan')}(filters, kernel_size, *, {styled('name', 'bold')}=1)"
    for width in range(1, 50):
        lines = fold(text, width)
        assert all(width_of(line) <= width for line in lines), width
        assert re.sub(r"\s", "", plain("".join(lines))) == re.sub(r"\s", "", plain(text))
        assert [line.count("\x1b[") % 2 for line in lines] == [0] * len(lines)  # none runs on into the next line
    assert fold(text, 50) == [text]
    assert [plain(line) for line in fold(text, 20)] == ["  Conv2D(filters,", "  kernel_size, *,", "  name=1)"]
    assert fold("global_average_pooling1d_1", 18) == ["global_average_", "pooling1d_1"]
    assert fold("a/b\N{NO-BREAK SPACE}c d", 6) == ["a/b\N{NO-BREAK SPACE}c", "d"]
    assert fold("層層層", 5) == ["層層", "層"]
    assert fold("e\u0301e\u0301e\u0301", 2) == ["e\u0301e\u0301", "e\u0301"]
    assert fold("one\ntwo", 9) == ["one", "two"]


def table() -> Table:
    made = Table([Column("layer", share=9), "arguments", Column("values", right=True), ""], title="a model")
    made.add(styled("層", "bold"), "units, use_bias=True, activation=None, kernel_initializer='zeros'", "7")
    made.add()
    made.add("dense_1", "units", "1,234")
    made.notes.append(styled("2 layers", "dim"))
    return made


def test_a_table_fits_a_terminal(tty, monkeypatch):
    monkeypatch.setattr(sys, "stdout", tty)
    Terminal().print(table())
    lines = plain(tty.getvalue()).splitlines()
    assert lines[:5] == [
        "a model",
        "",
        " layer    arguments               values",
        f" {'─' * 39}",
        " 層       units, use_bias=True,        7",
    ]
    assert lines[-4:] == ["", " dense_1  units                    1,234", "", "2 layers"]
    made = Table([Column("small"), Column("large", share=3)])
    made.add("a " * 40, "b " * 40)
    assert (made.lines(43)[2].count("a"), made.lines(43)[2].count("b")) == (5, 15)
    made = Table(["one", "many"])
    made.add("several words here", "unbreakable")
    assert [plain(line).split() for line in made.lines(21)[2:]] == [["several", "unbreakable"], ["words"], ["here"]]
    for columns in range(14, 120):
        long = table()
        long.notes.append("\nand a note that goes on for longer than most terminals of today have columns to show " * 2)
        assert max(map(width_of, long.lines(columns))) <= columns
    monkeypatch.setattr(tty, "encoding", "ascii", raising=False)
    Terminal().print(Table(["a"]))
    assert plain(tty.getvalue()).endswith("\n a\n -\n")


def test_a_table_is_plain_and_whole_elsewhere(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    pipe = io.StringIO()
    Terminal(pipe).print(table())
    assert pipe.getvalue() == f"{table()}\n"
    assert "units, use_bias=True, activation=None, kernel_initializer='zeros'       7\n" in pipe.getvalue()
    assert "\x1b" not in pipe.getvalue()
    assert " ---" in pipe.getvalue()


def test_what_others_print_goes_above_the_line(tty, monkeypatch):
    monkeypatch.setattr(sys, "stdout", tty)
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    line = Line(Terminal())
    with line:
        line.show("half done")
        print("a", "callback")
        sys.stdout.writelines(["b\n", "c"])
        print("to a file", end="", file=sys.stderr)
        assert log.getvalue() == "to a file"  # nobody sees it there, so it waits for nothing
        assert screen(tty.getvalue()) == ["a callback", "b", "half done"]
        kept = sys.stdout
        line.show("x" * 50)
        assert screen(tty.getvalue())[-1] == "x" * 39 + "…"
    assert sys.stdout is tty
    print("after", file=kept)
    assert screen(tty.getvalue()) == ["a callback", "b", "c", "after", ""]


def test_the_cursor_comes_back_after_an_error(tty, monkeypatch):
    monkeypatch.setattr(sys, "stdout", tty)

    def fail() -> None:
        with Line(Terminal()) as line:
            line.show("half done")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert tty.getvalue().endswith("\x1b[2K\x1b[?25h")
    assert sys.stdout is tty

    class Failing(lm.Callback):
        def on_batch_end(self, model, rows, logs):
            print("seen")
            raise ValueError("no")

    monkeypatch.setattr(sys, "stdout", tty := Tty())
    model = lm.Sequential([Dense(1)], input_shape=2)
    data = [[0.0, 1.0]] * 4, [[1.0]] * 4
    with pytest.raises(ValueError, match="no"):
        model.fit(*data, loss="mean_squared_error", optimizer="sgd", callbacks=[Progress(), Failing()], progress=False)
    assert tty.getvalue().endswith("\x1b[?25h")
    assert "seen" in screen(tty.getvalue())
    assert sys.stdout is tty


def test_many_numbers_fit_the_terminal_and_none_is_cut(tty, monkeypatch):
    monkeypatch.setattr(sys, "stdout", tty)
    progress, model = Progress(), lm.Sequential([Dense(1)], input_shape=2)
    names = ["loss", "price_loss", "price_mean_absolute_error", "kind_accuracy"]
    logs = dict.fromkeys((*names, *(f"val_{name}" for name in names)), 0.25)
    progress.on_train_begin(model, 2, 1)
    progress.on_epoch_begin(model, 0)
    progress.on_batch_end(model, 8, logs)
    assert screen(tty.getvalue())[-1].startswith("epoch 1/2  ━━━━━━  loss 0.2500  …  ")
    progress.on_epoch_end(model, 0, logs)
    progress.on_train_end(model)
    assert screen(tty.getvalue()) == [
        "epoch 1/2  loss 0.2500",
        "           price_loss 0.2500",
        "           price_mean_absolute_error 0.2500",
        "           kind_accuracy 0.2500",
        "           val_loss 0.2500",
        "           val_price_loss 0.2500",
        "           val_price_mean_absolute_error 0.2500",
        "           val_kind_accuracy 0.2500",
        "",
    ]


def test_a_notebook_gets_a_line_for_each_epoch(monkeypatch):
    notebook = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", notebook)
    model = lm.Sequential([Dense(1)], input_shape=2)
    model.fit([[0.0, 1.0]] * 4, [[1.0]] * 4, loss="mean_squared_error", optimizer="sgd", epochs=2)
    assert [line.split("  loss")[0] for line in notebook.getvalue().splitlines()] == ["epoch 1/2", "epoch 2/2"]


def test_words_are_not_cut_where_they_open_or_join():
    text = "ScaledDotProductAttention(num_heads=2, dropout=0.4)"
    assert fold(text, 30) == ["ScaledDotProductAttention(", "num_heads=2, dropout=0.4)"]
    assert fold(text, 13) == ["ScaledDotProd", "uctAttention(", "num_heads=2,", "dropout=0.4)"]
    assert fold("(N,\N{NO-BREAK SPACE}3)", 5) == ["(N,\N{NO-BREAK SPACE}3", ")"]
    made = Table(["specimen", "laws"])
    made.add(text, "8 hold")
    assert [plain(line) for line in made.lines(36)[2:]] == [
        " ScaledDotProductAttention(   8 hold",
        " num_heads=2, dropout=0.4)",
    ]
