"""The house: imports point down its floors, and no file is in a circle. Lazy imports and those for types count."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    "lamella.version",
    "lamella.elsewhere",
    "lamella.errors",
    "lamella.arguments",
    "lamella.notebook",
    "lamella.terminal",
    "lamella.datasets",
    "lamella.primitives",
    "lamella.hookspecs",
    "lamella.registry",
    "lamella.backends",
    "lamella.commands",
    "lamella.activations",
    "lamella.protocol",
    "lamella.initializers",
    "lamella.schedules",
    "lamella.optimizers",
    "lamella.losses",
    "lamella.metrics",
    "lamella.regularization",
    "lamella.graph",
    "lamella.engine",
    "lamella.files",
    "lamella.network",
    "lamella.callbacks",
    "lamella.training",
    "lamella.model",
    "lamella.testing",
    "lamella.cli",
    "lamella.__main__",
    "lamella",
    "lamella_pytest",
    "lamella_layers",
    "lamella_onednn",
    "lamella_onnx",
    "lamella_serve",
    "lamella_sklearn",
]


def modules() -> dict[str, Path]:
    """Every file by the name of its module."""
    found = {}
    for source in ("core", "plugins", "exporters"):
        for file in (ROOT / source).rglob("*.py"):
            name = ".".join(file.relative_to(ROOT / source).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


def imported(name: str, file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules that a file imports, wherever in it."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                if full in known or base in known:
                    yield full if full in known else base


KNOWN = modules()
ARROWS = {name: sorted({to for to in imported(name, file, KNOWN) if to != name}) for name, file in KNOWN.items()}


def floor_of(name: str) -> str:
    """The floor that a module stands on: the face of lamella on its own, everything else by the longest name."""
    fits = [floor for floor in FLOORS if name == floor or (name.startswith(f"{floor}.") and floor != "lamella")]
    assert fits, f"{name} stands on no floor; give it a place in FLOORS"
    return max(fits, key=len)


def test_there_is_something_to_read():
    assert len(ARROWS) > 100
    assert "lamella.errors" in ARROWS["lamella.engine.passes"]
    assert "lamella_onnx.models" in KNOWN


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_imports_point_to_the_own_package_or_to_a_lower_floor(name):
    own = floor_of(name)
    for to in ARROWS[name]:
        assert floor_of(to) == own or FLOORS.index(floor_of(to)) < FLOORS.index(own), f"{name} imports {to}"


def test_no_file_is_in_a_circle():
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for to in ARROWS[name]:
                follow(to, (*path, name))
            done.add(name)

    for name in KNOWN:
        follow(name, ())


def test_families_import_what_third_parties_may_import():
    private = [f"{name} imports {to}" for name in KNOWN for to in ARROWS[name] if "lamella_onnx" in to]
    assert all(line.startswith(("lamella_onnx", "lamella_serve", "lamella_sklearn")) for line in private)
