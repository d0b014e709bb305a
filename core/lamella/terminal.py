"""What people see: styled text, tables that fit their terminal, and a line that is redrawn in place."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from lamella import notebook

__all__ = ["Column", "Line", "Table", "Terminal", "aside", "fold", "plain", "styled", "width_of"]

_CODES = {"bold": 1, "dim": 2, "italic": 3, "red": 31, "green": 32, "yellow": 33, "cyan": 36}
_RESET, _ERASE, _HIDE, _SHOW = "\x1b[0m", "\r\x1b[2K", "\x1b[?25l", "\x1b[?25h"
_JOINT = r"\w[(=]|/"  # after which a word may go on in the next line
_STYLE = r"\x1b\[[\d;]*m"
_Cells = list[tuple[str, str]]  # characters, each with its style


def styled(text: str, style: str) -> str:
    r"""Return text in a style such as ``"bold red"``.

    >>> styled("broken", "bold red")
    '\x1b[1;31mbroken\x1b[0m'
    """
    return f"\x1b[{';'.join(str(_CODES[word]) for word in style.split())}m{text}{_RESET}"


def plain(text: str) -> str:
    """Return text without its styles."""
    return re.sub(_STYLE, "", text)


def width_of(text: str) -> int:
    """Return how many columns of a terminal a line takes, whatever its styles.

    >>> width_of(styled("層 x", "bold"))
    4
    """
    return sum(map(_width, plain(text)))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):  # joins the character before it
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cells(text: str) -> _Cells:
    cells, style = [], ""
    for code, character in re.findall(f"({_STYLE})|(.)", text, re.DOTALL):
        if code:
            style = "" if code == _RESET else style + code
        else:
            cells.append((character, style))
    return cells


def _joined(cells: _Cells) -> str:
    runs = ((style, "".join(c for c, _ in run)) for style, run in itertools.groupby(cells, key=lambda cell: cell[1]))
    return "".join(f"{style}{run}{_RESET}" if style else run for style, run in runs)


def _html(text: str) -> str:
    """Text with its styles, for a notebook."""
    words = {str(code): word for word, code in _CODES.items()}
    return "".join(
        notebook.styled("".join(c for c, _ in run), " ".join(words[code] for code in re.findall(r"\d+", style)))
        for style, run in itertools.groupby(_cells(text), key=lambda cell: cell[1])
    )


def _fitting(cells: _Cells, width: int) -> int:
    """How many of the first characters fit."""
    totals = itertools.accumulate(_width(character) for character, _ in cells)
    return next((at for at, total in enumerate(totals) if total > width), len(cells))


def fold(text: str, width: int) -> list[str]:
    """Break text into lines that fit; lines keep the indentation of the first.

    Lines end between words, else behind ``Conv2D(``, ``size=`` or ``/``, else behind ``_``, else anywhere; a no-break
    space holds words together.

    >>> fold("  one two three", 9), fold("Conv2D(strides=2)", 12)
    (['  one two', '  three'], ['Conv2D(', 'strides=2)'])
    """
    lines = []
    for line in text.split("\n"):
        rest = _cells(line)
        indent = rest[: len(line) - len(line.lstrip(" "))]
        indent = indent if len(indent) <= width // 2 else []
        while (end := _fitting(rest, width)) < len(rest):
            end = max(end, 1)
            places = range(len(indent) + 1, end + 1)
            spaces = [at for at in places if rest[at][0] == " "]
            ends = [one.end() for one in re.finditer(_JOINT, "".join(character for character, _ in rest))]
            joints = [at for at in places if at in ends]
            weak = [at for at in places if rest[at - 1][0] == "_"]
            at = (spaces or joints or weak or [end])[-1]
            lines.append(_joined(rest[:at]).rstrip(" "))
            rest = rest[at:]
            while rest and rest[0][0] == " ":
                rest = rest[1:]
            rest = indent + rest if rest else rest
        lines.append(_joined(rest))
    return lines


def _longest_word(text: str) -> int:
    """The width below which folding breaks a word of it, with the indentation that the word would get."""
    word = rf"[^ ]+?(?:{_JOINT})|[^ ]+"
    found = [one for line in plain(text).split("\n") for one in re.findall(rf"^ *(?:{word})|{word}", line)]
    return max(map(width_of, found), default=0)


class Column(NamedTuple):
    """A column of a table; in a narrow terminal the one that is widest for its share is folded first."""

    heading: str
    right: bool = False
    share: float = 1.0


class Table:
    """Rows below headings and a rule, with a title above and notes below; ``str(table)`` is plain and cuts nothing.

    >>> table = Table(["layer", Column("parameters", right=True)], title="a model")
    >>> table.add("dense_1", "1,234")
    >>> print(table)
    a model
    <BLANKLINE>
     layer    parameters
     -------------------
     dense_1       1,234
    """

    def __init__(self, columns: Iterable[str | Column], title: str = "") -> None:
        self.columns = [Column(column) if isinstance(column, str) else column for column in columns]
        self.title = title
        self.rows: list[Sequence[str]] = []
        self.notes: list[str] = []

    def add(self, *cells: str) -> None:
        """Add a row; cells that are not given are empty."""
        self.rows.append((*cells, *[""] * (len(self.columns) - len(cells))))

    def lines(self, width: int | None = None, rule: str = "-") -> list[str]:
        """Return the lines with their styles, folded to a width if there is one."""
        rows = [[styled(column.heading, "bold") for column in self.columns], *self.rows]
        widths = [
            max(width_of(line) for cell in cells for line in cell.split("\n")) for cells in zip(*rows, strict=True)
        ]
        shown = [at for at, wide in enumerate(widths) if wide]
        room = sys.maxsize if width is None else width - 2 * len(shown) + 1  # one before the first, two between
        words = [max(map(_longest_word, cells)) for cells in zip(*rows, strict=True)]
        while sum(widths) > room and max(widths) > 2:
            wide = [at for at in shown if widths[at] > words[at]] or [at for at in shown if widths[at] > 2]
            widths[max(wide, key=lambda at: widths[at] / self.columns[at].share)] -= 1
        body = []
        for row in rows:
            folded = [fold(row[at], widths[at]) for at in shown]
            for parts in itertools.zip_longest(*folded, fillvalue=""):
                padded = []
                for at, part in zip(shown, parts, strict=True):
                    space = " " * (widths[at] - width_of(part))
                    padded.append(space + part if self.columns[at].right else part + space)
                body.append(f" {'  '.join(padded)}".rstrip(" ").replace("\N{NO-BREAK SPACE}", " "))
            if row is rows[0]:
                body.append(f" {rule * (sum(widths) + 2 * len(shown) - 2)}")
        title = [styled(self.title, "bold"), ""] if self.title else []
        notes = self.notes if width is None else [line for note in self.notes for line in fold(note, width)]
        notes = ["", *notes] if notes else []
        return [*title, *body, *notes]

    def __str__(self) -> str:
        return plain("\n".join(self.lines()))

    def _repr_html_(self) -> str:
        rows = [[column.heading for column in self.columns], *self.rows]
        shown = [at for at, cells in enumerate(zip(*rows, strict=True)) if any(cells)]
        columns = [(_html(self.columns[at].heading), self.columns[at].right) for at in shown]
        body = ([_html(row[at]) for at in shown] for row in self.rows)
        return notebook.table(_html(self.title), columns, body, map(_html, self.notes))


class Terminal:
    """A stream, standard output by default, and what it can show.

    Attributes:
        is_terminal: whether somebody is watching.
        redraws: whether a line can be redrawn in place.
        has_styles: whether it shows styles: not if ``NO_COLOR`` is set.
        has_unicode: whether it takes more than ASCII.
        is_notebook: whether a notebook shows it, which draws tables by itself.
    """

    def __init__(self, stream: Any = None, *, is_terminal: bool | None = None, width: int | None = None) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.is_terminal = getattr(self.stream, "isatty", bool)() if is_terminal is None else is_terminal
        self.redraws = self.is_terminal and _follows_escapes(self.stream)
        self.has_styles = self.redraws and not os.environ.get("NO_COLOR")
        self.has_unicode = _encodes("─━…", getattr(self.stream, "encoding", None) or "utf-8")
        self.is_notebook = type(self.stream).__module__.partition(".")[0] == "ipykernel"
        self._width = width

    @property
    def width(self) -> int:
        """Its columns now."""
        return self._width or shutil.get_terminal_size().columns

    def print(self, what: str | Table) -> None:
        """Print text or a table, which fits a terminal and is whole elsewhere."""
        if isinstance(what, Table) and self.is_notebook:
            from IPython.display import display  # which is there, where a notebook is

            display(what)
            return
        if isinstance(what, Table):
            width = self.width if self.is_terminal else None
            what = "\n".join(what.lines(width, "─" if self.is_terminal and self.has_unicode else "-"))
        print(self.shown(what), file=self.stream)

    def shown(self, text: str) -> str:
        """Return text as it can be shown here: with its styles, or without."""
        return text if self.has_styles else plain(text)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Send what the code of others prints to standard error, and undo what it does to the standard streams."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.redirect_stderr(sys.stderr):
        yield


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _follows_escapes(stream: Any) -> bool:
    """Whether a terminal follows escape sequences; that of Windows has to be asked to."""
    if sys.platform != "win32":
        return os.environ.get("TERM") not in ("dumb", "unknown")
    import ctypes
    import msvcrt

    try:
        handle = msvcrt.get_osfhandle(stream.fileno())
    except (OSError, ValueError):
        return False
    kernel, mode = ctypes.windll.kernel32, ctypes.c_ulong()
    processing = 4  # ENABLE_VIRTUAL_TERMINAL_PROCESSING
    return bool(
        kernel.GetConsoleMode(ctypes.c_void_p(handle), ctypes.byref(mode))
        and kernel.SetConsoleMode(ctypes.c_void_p(handle), mode.value | processing)
    )


class Line:
    """A line at the bottom of a terminal, redrawn in place; what others print meanwhile goes above it.

    It shows nothing where lines can't be redrawn, and is gone when it stops, by an error or else.
    """

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self.started = False
        self._text = ""
        self._stands_in: dict[str, _Above] = {}

    def __enter__(self) -> Line:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Take the terminal's last line."""
        if not self.terminal.redraws or self.started:
            return
        self.started, self._text, self._stands_in = True, "", {}
        self._write(_HIDE)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is self.terminal.stream or Terminal(stream).is_terminal:
                self._stands_in[name] = _Above(stream, self)
                setattr(sys, name, self._stands_in[name])

    def show(self, text: str) -> None:
        """Replace what the line says; what does not fit is cut."""
        width = self.terminal.width
        if width_of(text) > width:
            more = "…" if self.terminal.has_unicode else "..."
            cells = _cells(text)
            text = _joined(cells[: _fitting(cells, width - len(more))]) + more
        self._text = self.terminal.shown(text)
        if self.started:
            self._write(f"{_ERASE}{self._text}")

    def above(self, text: str, stream: Any = None) -> None:
        """Print a line or more above this one."""
        stream = self.terminal.stream if stream is None else stream
        if self.started:
            self._write(_ERASE)
        print(text, file=stream, flush=True)
        if self.started:
            self._write(self._text)

    def stop(self) -> None:
        """Give the line back."""
        if not self.started:
            return
        for name, above in self._stands_in.items():
            above.flush()
            if getattr(sys, name) is above:
                setattr(sys, name, above.stream)
        self.started = False
        self._write(f"{_ERASE}{_SHOW}")

    def _write(self, text: str) -> None:
        self.terminal.stream.write(text)
        self.terminal.stream.flush()


class _Above:
    """Stands in for a standard stream while a line is shown: holds what it is given until the end of a line."""

    def __init__(self, stream: Any, line: Line) -> None:
        self.stream, self._line, self._held = stream, line, ""

    def write(self, text: str) -> int:
        if not self._line.started:  # somebody kept it
            self.stream.write(text)
            return len(text)
        whole, ended, self._held = (self._held + text).rpartition("\n")
        if ended:
            self._line.above(whole, self.stream)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        if self._held:
            held, self._held = self._held, ""
            self._line.above(held, self.stream)
        self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
