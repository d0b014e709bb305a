"""Every page tells the truth: its snippets run, its links lead on, and what its tables list is all there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import EXTRAS, TARGETS, blocks, run_page
from wheels import ROOT

import lamella as lm
from lamella import cli, registry

PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]  # README.md has tests of its own
OTHERS = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
OTHERS += [page for folder in ("examples", "benchmarks") for page in sorted((ROOT / folder).rglob("*.md"))]
EVERYTHING = [*PAGES, *OTHERS]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix(""))


GALLERY = ROOT / "docs" / "gallery.md"  # shows lines of programs, which tests/test_examples.py runs


@pytest.mark.parametrize("page", [page for page in PAGES if page != GALLERY], ids=name_of)
def test_pages_run_from_top_to_bottom(page, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()  # as in the repository, where the commands of CONTRIBUTING.md run
    try:
        run_page(page, lambda: request.getfixturevalue("environment"))
    finally:
        lm.set_threads(None)


def test_the_gallery_shows_lines_of_its_programs():
    entries = GALLERY.read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(entries) == 6
    for entry in entries:
        programs = [GALLERY.parent / link for link in re.findall(r"\]\((\.\./examples/[\w/.]+)\)", entry)]
        files = [file for one in programs for file in (sorted(one.rglob("*.*")) if one.is_dir() else [one])]
        code = re.findall(r"^```(?:python|js)\n(.*?)^```$", entry, re.DOTALL | re.MULTILINE)
        assert code, entry
        for block in code:
            shown = [line.strip() for line in block.splitlines() if line.strip()]
            assert any(in_order(shown, file.read_text(encoding="utf-8")) for file in files), block


def in_order(shown: list[str], text: str) -> bool:
    """Whether these lines stand in a text one after the other, with others between them or without."""
    lines = iter([line.strip() for line in text.splitlines()])
    return all(line in lines for line in shown)


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page: links to them end in ``#`` and this."""
    plain = [
        re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in re.findall(r"^#+ (.*)$", prose(page), re.M)
    ]
    return {f"{one}-{plain[:k].count(one)}".removesuffix("-0") for k, one in enumerate(plain)}


@pytest.mark.parametrize("page", EVERYTHING, ids=name_of)
def test_links_and_paths_lead_somewhere(page):
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    paths = re.findall(r"`((?:core|plugins|exporters|tests|docs|examples|benchmarks)/[\w/.-]+)`", prose(page))
    assert missing + [path for path in paths if not (ROOT / path).exists()] == []


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page not in reached:
            reached.add(page)
            waiting += [page.parent / link for link in re.findall(r"\]\(([\w/.-]+\.md)", prose(page))]
    assert {page for page in PAGES if page.resolve() not in reached} == set()


@pytest.mark.parametrize("kind", ["activations", "losses", "optimizers", "schedules", "metrics", "initializers"])
def test_tables_name_what_is_registered(kind):
    rows = [row for page in PAGES for row in re.findall(rf"^\| {kind} \| (.*) \|$", prose(page), re.MULTILINE)]
    assert len(rows) == 1, f"{kind} stand in one table"
    own = {entry.name for entry in registry.entries(kind) if entry.plugin.distribution == "lamella"}
    assert set(re.findall(r"`(\w+)`", rows[0])) == own


def test_the_reference_names_every_layer():
    told = set(re.findall(r"^### (\w+)$", (ROOT / "docs" / "layers.md").read_text(), re.MULTILINE))
    assert told == {
        one.object.__name__ for one in registry.entries("layers") if one.plugin.distribution != registry.SCRIPT
    }
    assert f"lamella has {len(told)}, `torch.nn`" in (ROOT / "docs" / "why.md").read_text()


def test_callbacks_are_listed():
    cells = re.findall(r"^\| (`.*?) \|", section("docs/train.md", "Callbacks"), re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", " ".join(cells)))
    classes = {name for name in lm.callbacks.__all__ if isinstance(getattr(lm.callbacks, name), type)}
    assert told == classes - {"Callback", "StopTraining"}


def section(page: str, heading: str) -> str:
    """What stands under a heading of a page."""
    (text,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return text


def test_promises_name_tests():
    text = (ROOT / "docs" / "promises.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith(("| promise", "| ---"))]
    for row in rows:
        promise, held = row.strip("| ").rsplit(" | ", 1)
        assert promise.endswith("."), row
        named = re.findall(r"`(\w+)::(\w+)`", held)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), f"{file}::{test}"


def test_commands_exist():
    there = {entry.name for entry in registry.entries("commands")} | set(cli.OWN)
    assert set(re.findall(r"^\| `lamella ([a-z][\w-]*)", prose(ROOT / "docs" / "commands.md"), re.MULTILINE)) == there
    for page in EVERYTHING:
        assert set(re.findall(r"`lamella ([a-z][\w-]*)", prose(page))) <= there, page
        assert set(re.findall(r"`make ([a-z-]+)", prose(page))) <= TARGETS, page
        extras = re.findall(r"\.\[(\w+)\]", page.read_text())
        assert set(extras) <= EXTRAS, page


def test_the_tree_is_there():
    tree = section("CONTRIBUTING.md", "Where things are")
    paths = re.findall(r"^(\w+/[\w/]*) ", tree, re.MULTILINE)
    assert len(paths) >= 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_ten_tests_make_smoke():
    tests = [line for path in (ROOT / "tests").glob("*.py") for line in path.read_text().splitlines()]
    assert tests.count("@pytest.mark.smoke") == 10


def test_the_page_on_the_inside_names_what_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)(?:: ([\w.]+))?`", text.replace(":\n", ": "))
    assert len(named) > 40
    for path, name in named:
        file = ROOT / path if path.split("/")[0] in ("plugins", "exporters", "tests") else ROOT / "core/lamella" / path
        assert file.is_file(), path
        defined = re.findall(r"^\s*(?:def|class) (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(name.split(".") if name else ()) <= set(defined), f"{path}: {name}"


def test_the_tutorial_shows_what_its_code_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "tutorial.md"
    run_page(page, lambda: pytest.fail("it installs nothing"))
    printed = {without_figures(line) for line in capsys.readouterr().out.splitlines()}
    shown = [line for language, text in blocks(page) if language == "text" for line in text.splitlines()]
    assert len(shown) > 50
    assert [line for line in shown if without_figures(line) not in printed] == []


def without_figures(line: str) -> str:
    """Figures differ between machines, and with them the width of columns."""
    return " ".join(re.sub(r"-?\d[\d.,]*(e-\d+)?", "0", line).split())
