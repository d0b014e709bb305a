"""``lamella check``: examines what packages give, and prints what the laws say as a table or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lamella.terminal import Column, Line, Table, Terminal, aside, fold, styled
from lamella.testing.contents import KINDS
from lamella.testing.package import Package, Subject, find_package, look_here, title, verdicts_of, words_of
from lamella.testing.report import Verdict
from lamella.version import __version__

__all__ = ["check"]


class _Row(NamedTuple):
    """One specimen and what was found; without a specimen, why there is none."""

    subject: Subject
    specimen: str
    title: str
    inputs: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    seconds: float

    @property
    def kind(self) -> str:
        """Such as ``"layer"``."""
        return "loss" if self.subject.kind == "losses" else self.subject.kind.removesuffix("s")

    @property
    def title_of_whole_specs(self) -> str:
        """The title, of which no line ends within the spec of an input."""
        whole = (spec.replace(" ", "\N{NO-BREAK SPACE}") for spec in self.inputs)
        return f"{self.title.removesuffix(', '.join(self.inputs))}{', '.join(whole)}"

    @property
    def broken(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.outcome == "broken"]

    @property
    def summary(self) -> str:
        """Such as ``"6 hold, 1 skipped"``."""
        outcomes = [verdict.outcome for verdict in self.verdicts]
        words = {"broken": "broken", "holds": "hold" if outcomes.count("holds") > 1 else "holds", "skipped": "skipped"}
        return ", ".join(f"{outcomes.count(one)} {word}" for one, word in words.items() if one in outcomes)


def check(targets: Sequence[str], *, as_json: bool = False) -> int:
    """Examine every specimen of the targets; 0 if all laws hold, else 1.

    What plugins print meanwhile goes to standard error.

    Raises:
        RegistryError: if there is no such package or layer, or nothing to examine.
    """
    look_here()
    with aside():
        packages = [find_package(target) for target in dict.fromkeys(targets)]
        rows = [list(_progress(package)) for package in packages]
    faults = [fault for package in packages for fault in package.faults]
    sound = not faults and not any(row.broken for found in rows for row in found)
    if as_json:
        print(json.dumps({"lamella": __version__, "sound": sound, "packages": _data(packages, rows)}, indent=2))
    else:
        several = len(packages) > 1
        named = zip(packages, rows, strict=True)
        _show([(package.target if several else "", row) for package, found in named for row in found], faults, packages)
    return 0 if sound else 1


def _rows(package: Package) -> Iterator[_Row]:
    for subject in package.subjects:
        if fault := package.fault_of(subject):
            yield _Row(subject, "", "none", (), (Verdict("specimen", "broken", fault),), 0.0)
        for specimen in subject.specimens:
            started = time.perf_counter()
            verdicts = verdicts_of(specimen)
            inputs = tuple(map(str, specimen.inputs))
            seconds = time.perf_counter() - started
            yield _Row(subject, words_of(specimen), title(specimen), inputs, verdicts, seconds)


def _progress(package: Package) -> Iterator[_Row]:
    """The rows; on a terminal, with a line meanwhile that says how far it is."""
    total = sum(len(subject.specimens) or bool(package.fault_of(subject)) for subject in package.subjects)
    with Line(Terminal(sys.stderr)) as line:
        line.show(f"{package.target}: 0 of {total} examined")
        for count, row in enumerate(_rows(package), 1):
            yield row
            line.show(f"{package.target}: {count} of {total} examined")


def _data(packages: list[Package], rows: list[list[_Row]]) -> list[dict[str, Any]]:
    return [
        {
            "target": package.target,
            "faults": list(package.faults),
            "specimens": [
                {
                    "layer": row.subject.name,
                    "kind": row.subject.kind,
                    "origin": row.subject.origin,
                    "specimen": row.specimen,
                    "inputs": list(row.inputs),
                    "seconds": round(row.seconds, 3),
                    "verdicts": [verdict.as_dict() for verdict in row.verdicts],
                }
                for row in found
            ],
            "not_examined": [
                {"name": subject.name, "kind": subject.kind, "reason": subject.not_examined}
                for subject in package.subjects
                if subject.not_examined
            ],
        }
        for package, found in zip(packages, rows, strict=True)
    ]


def _show(targets: list[tuple[str, _Row]], faults: list[str], packages: list[Package]) -> None:
    """A line for each specimen; below, what is broken, what was skipped and what is not examined, with the reasons.

    Rows come with the target that gave them, if there are several.
    """
    terminal = Terminal()
    rows = [row for _, row in targets]
    heading = ("name", "kind", "specimen", "laws", "seconds")
    cells = [(row.subject.name, row.kind, row.title, row.summary, f"{row.seconds:.2f}") for row in rows]
    if terminal.is_terminal and rows:
        terminal.print(_table(rows))
    elif rows:
        widths = [max(map(len, column)) for column in zip(heading, *cells, strict=True)]
        print("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in (heading, *cells)))
    if rows:
        print()

    def say(text: str, style: str) -> None:
        lines = fold(text, terminal.width) if terminal.is_terminal else [text]
        terminal.print(styled("\n".join(lines), style))

    for target, row in targets:
        about = f"{f'{target}: ' if target else ''}{row.title if row.specimen else row.subject.name}"
        for verdict in row.broken:
            first, *more = verdict.lines()
            law = f"{verdict.law}: " if row.specimen else ""
            say("\n".join([f"broken  {about}: {law}{first}", *(f"    {line}" for line in more)]), "red")
    for fault in faults:
        say(f"broken  {fault}", "red")
    for target, row in targets:
        reasons: dict[str, list[str]] = {}
        for verdict in row.verdicts:
            if verdict.outcome == "skipped":
                reasons.setdefault(verdict.detail, []).append(verdict.law)
        told = "; ".join(f"{', '.join(laws)}: {reason}" for reason, laws in reasons.items())
        if told:
            say(f"skipped  {f'{target}: ' if target else ''}{row.title}: {told}", "yellow")
    for (kind, reason), names in _not_examined(packages).items():
        say(f"not examined  {kind} {', '.join(names)}: {reason}", "yellow")
    examined, broken = sum(bool(row.specimen) for row in rows), sum(bool(row.broken) for row in rows) + len(faults)
    say(f"specimens: {examined}, {f'broken: {broken}' if broken else 'all laws hold'}", "bold")


def _table(rows: list[_Row]) -> Table:
    """A table for a terminal, with a heading for each kind where there are several."""
    table = Table(Column(name, right=name == "seconds") for name in ("name", "specimen", "laws", "seconds"))
    kinds = sorted({row.subject.kind for row in rows}, key=KINDS.index)
    for kind in kinds:
        if len(kinds) > 1:
            table.add(styled(kind, "bold"))
        for row in rows:
            if row.subject.kind == kind:
                laws = styled(row.summary, "red" if row.broken else "green")
                table.add(row.subject.name, row.title_of_whole_specs, laws, f"{row.seconds:.2f}")
    return table


def _not_examined(packages: list[Package]) -> dict[tuple[str, str], list[str]]:
    """Names by kind and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for package in packages:
        for subject in package.subjects:
            if subject.not_examined:
                found.setdefault((subject.kind, subject.not_examined), []).append(subject.name)
    return found
