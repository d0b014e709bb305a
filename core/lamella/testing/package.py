"""What a package gives, each with the specimens that show it to the laws."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from lamella import hookspecs, registry
from lamella.configuration import Configured
from lamella.errors import RegistryError, did_you_mean
from lamella.protocol import ArraySpec, Layer
from lamella.registry import FAILURES, Entry, Plugin, Registry, canonical
from lamella.testing.check import ConformanceError, check_specimen
from lamella.testing.laws import laws_of
from lamella.testing.laws.metrics import takes
from lamella.testing.report import Verdict
from lamella.testing.specimen import Specimen
from lamella.testing.subjects import described, kind_of

__all__ = ["Package", "Subject", "find_package", "title", "verdicts_of", "words_of"]


KINDS = ("layers", "losses", "activations", "optimizers", "metrics", "schedules", "initializers")
"""What is examined, or told not to be."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One thing that a package gives: a layer, say, or an optimizer.

    Attributes:
        name: under which it is registered; of what is not registered, the name of its class.
        kind: what the hook for it gives, as in ``"layers"``.
        cls: its class; of activations and initializers, which are objects, None.
        origin: distribution and version, or the module.
        specimens: what shows it.
        lost: why the plugin's specimens can't be had, or nothing.
    """

    name: str
    kind: str
    cls: type | None
    origin: str
    specimens: tuple[Specimen, ...]
    lost: str = ""

    @property
    def fault(self) -> str:
        """Why it can't be examined although plugins owe specimens of such things, or nothing."""
        if self.specimens or self.kind not in OWED:
            return ""
        return self.lost or (
            f"{self.name!r} has no specimen, so nothing can be examined. Likely fix: return one from the hook "
            f"lamella_specimens beside it, such as {OWED[self.kind]}"
        )

    @property
    def not_examined(self) -> str:
        """Why nothing is said of it, for kinds of which no specimens are owed, or nothing."""
        if self.specimens or self.kind in OWED:
            return ""
        if not laws_of(self.kind):
            return f"there are no laws for {self.kind}"
        some = SHOWN_BY[self.kind].format(getattr(self.cls, "__name__", self.name))
        return f"it can't be made or drawn for without arguments; show it by a specimen, such as {some}"


OWED = {
    "layers": "Specimen(MyLayer(3), (lm.ArraySpec(('N', 4)),))",
    "losses": "Specimen(MyLoss(), (lm.ArraySpec(('N', 4)), lm.ArraySpec(('N', 4)))), of prediction and target",
    "activations": "Specimen(my_activation, (lm.ArraySpec(('N', 4)),)), or one of a layer that applies it",
}
"""The kinds of which every plugin shows specimens, and one of each."""

SHOWN_BY = {"optimizers": "Specimen({}(...), ())", "metrics": "Specimen({}(...), (prediction, target))"}

FORMS = (
    (ArraySpec(("N", 5)), ArraySpec(("N",), "int64", low=0, high=5)),  # classes
    (ArraySpec(("N", 5)), ArraySpec(("N", 5))),  # values
    (ArraySpec(("N", 1)), ArraySpec(("N", 1), "int64", low=0, high=2)),  # yes-no decisions
)
"""What metrics without specimens are tried on: predictions and targets."""


@dataclasses.dataclass(frozen=True)
class Package:
    """What a target has found: subjects, and faults of plugins: what can't be loaded, and names that lamella has."""

    target: str
    subjects: tuple[Subject, ...]
    faults: tuple[str, ...]

    def fault_of(self, subject: Subject) -> str:
        """Why a subject can't be examined, or nothing, also where the package's own faults tell it already."""
        return "" if subject.fault in self.faults else subject.fault


class _Module:
    """An entry point for a module that no distribution names."""

    dist = None

    def __init__(self, module: ModuleType) -> None:
        self.name = self.value = module.__name__
        self.module = module

    def load(self) -> ModuleType:
        return self.module


def find_package(target: str) -> Package:
    """Return what there is to examine.

    Arguments:
        target: the name of a distribution, a package or a module, registered or not; ``"name:layer"`` for one layer
            of it, by its registered name or its class.

    Raises:
        RegistryError: if there is no such package or layer, or nothing in it to examine.
    """
    name, _, layer = target.partition(":")
    if name.endswith(".py") or "/" in name or os.sep in name:
        module = os.path.basename(name).removesuffix(".py")
        raise RegistryError(f"{name!r}: expected the name of a package or module, such as {module!r}, in its folder")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RegistryError(f"{target!r}: expected a package or module, such as 'my_package', or 'my_package:MyLayer'")
    plugins = [plugin for plugin in registry.plugins() if _belongs(plugin, name)]
    source: Any = registry
    if not plugins:
        imported = _import(name)
        if not _has_hooks(imported) and not (layer and _layer_of(imported, layer)):
            raise RegistryError(_without_hooks(name, imported))
        source = Registry([_Module(imported)])
    subjects, faults = _subjects(source, plugins or source.plugins())
    if layer:
        chosen = [subject for subject in subjects if layer in (subject.name, getattr(subject.cls, "__name__", ""))]
        subjects, faults = chosen or [_unregistered(name, layer, plugins, subjects, faults)], []
    if not subjects and not faults:
        raise RegistryError(f"{name!r} gives no layers, losses, optimizers, ..., so there is nothing to examine")
    return Package(target, tuple(subjects), tuple(faults))


def verdicts_of(specimen: Specimen) -> tuple[Verdict, ...]:
    """What each law says of a specimen; one verdict, ``"runs"``, where it does not get as far as the laws."""
    doing = f"{type(specimen.subject).__name__}.__repr__ failed: "
    try:
        repr(specimen.subject)
        doing = ""
        return check_specimen(specimen).verdicts
    except ConformanceError as error:
        return error.report.verdicts
    except FAILURES as error:  # already while it is built
        return (Verdict("runs", "broken", f"{doing}{type(error).__name__}: {error}"),)


def words_of(specimen: Specimen) -> str:
    """What a specimen shows, in its own words; where its ``__repr__`` fails, its class."""
    try:
        return described(specimen.subject)
    except FAILURES:
        return f"{type(specimen.subject).__name__}(...)"


def title(specimen: Specimen) -> str:
    """A specimen in a few words.

    >>> from lamella_layers import Dense
    >>> import lamella as lm
    >>> title(Specimen(Dense(3), (lm.ArraySpec(("N", 4)),)))
    'Dense(3) on (N, 4) float32'
    """
    return f"{words_of(specimen)}{' on ' if specimen.inputs else ''}{', '.join(map(str, specimen.inputs))}"


def _belongs(plugin: Plugin, name: str) -> bool:
    """Whether a plugin is of the distribution, package or module of that name."""
    module = plugin.module.partition(":")[0]
    return plugin.distribution == canonical(name) or module == name or module.startswith(f"{name}.")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise RegistryError(f"{name!r} could not be imported: {error}") from error
    except FAILURES as error:
        raise RegistryError(f"{name!r} could not be imported: {type(error).__name__}: {error}") from error
    parent, _, last = name.rpartition(".")
    if parent and hasattr(sys.modules.get(parent), last):
        raise RegistryError(f"{name!r}: no module of that name. Did you mean '{parent}:{last}'?")
    known = {plugin.distribution for plugin in registry.plugins() if plugin.is_known}
    known |= {plugin.module.partition(".")[0] for plugin in registry.plugins()}
    raise RegistryError(
        f"{name!r}: no installed distribution, package or module of that name; those with lamella plugins are "
        f"{', '.join(sorted(known))}.{did_you_mean(name, known)} Likely fix: python -m pip install -e {_place_of(name)}"
    )


def _place_of(distribution: str) -> str:
    """Where to install it from."""
    for folder in (distribution, canonical(distribution)):
        if Path(folder, "pyproject.toml").is_file():
            return f"./{folder}"
    return ". in its folder"


def _has_hooks(module: ModuleType) -> bool:
    try:
        return bool(registry.hooks(module))
    except FAILURES:  # told when it is registered
        return True


def _without_hooks(name: str, module: ModuleType) -> str:
    """Why there is nothing to examine in a module that nobody has registered."""
    if module.__spec__ is not None and module.__spec__.origin is None:  # a folder that can be imported as any can
        if Path(name, "pyproject.toml").is_file():
            return f"{name!r} is not installed, only its folder is here. Likely fix: python -m pip install -e ./{name}"
        return f"{name!r} is a folder without __init__.py, and no package, so there is nothing to examine"
    inside = f", or name the module that has them, such as {name}.my_layer" if hasattr(module, "__path__") else ""
    return (
        f"{name!r} has no hooks, so there is nothing to examine. Likely fix: put @lamella.hookimpl above its "
        f"lamella_layers and lamella_specimens{inside}"
    )


def _subjects(source: Any, plugins: list[Plugin]) -> tuple[list[Subject], list[str]]:
    """What plugins of one registry give, in their order, and what is wrong with them."""
    entries: list[tuple[Entry, str]] = []
    specimens: list[tuple[Specimen, Plugin]] = []
    faults = []
    lost = {}
    for plugin in plugins:
        for kind in KINDS:
            entries += [(entry, kind) for entry in source.entries(kind, plugin)]
        try:
            specimens += [(specimen, plugin) for specimen in source.specimens(plugin)]
        except RegistryError as error:
            lost[plugin.key] = str(error)
            faults.append(str(error))
        if plugin.error:
            faults.append(f"{plugin} could not be loaded: {plugin.error}")
        faults += _taken(source, plugin)
    subjects: list[Subject] = []
    known: list[Any] = []
    for entry, kind in entries:
        own = tuple(specimen for specimen, _ in specimens if _shows(specimen, entry.object))
        cls = entry.object if isinstance(entry.object, type) else None
        if kind == "activations" and not own and any(_mentions(specimen, entry) for specimen, _ in specimens):
            continue  # the layer shows it
        if kind in SHOWN_BY and any(entry.object is one for one in known):
            continue  # by another name
        own = own or tuple(_made_for(kind, entry.object))
        subjects.append(Subject(entry.name, kind, cls, _origin(entry.plugin), own, lost.get(entry.plugin.key, "")))
        known.append(entry.object)
    others = [pair for pair in specimens if not any(_shows(pair[0], one) for one in known)]
    for cls, plugin in {type(specimen.subject): plugin for specimen, plugin in others}.items():
        own = tuple(specimen for specimen, _ in others if type(specimen.subject) is cls)
        subjects.append(Subject(cls.__name__, kind_of(own[0].subject), cls, _origin(plugin), own))
    return subjects, faults


def _shows(specimen: Specimen, thing: Any) -> bool:
    """Whether a specimen shows what is registered: a class, or an activation itself."""
    return type(specimen.subject) is thing or specimen.subject is thing


def _made_for(kind: str, cls: Any) -> Iterator[Specimen]:
    """A specimen of an optimizer or a metric that carries none, if it needs no arguments."""
    try:
        if kind == "optimizers":
            yield Specimen(cls(), ())
        if kind == "metrics":
            metric = cls()
            yield next(Specimen(metric, form) for form in FORMS if takes(metric, form))
    except FAILURES:  # it needs arguments, or data of another form
        return


def _taken(source: Any, plugin: Plugin) -> list[str]:
    """What is wrong with names that lamella itself gives, and goes on to mean by them."""
    own = [] if plugin.is_own else [one for one in registry.plugins() if one.is_own]
    told = []
    for kind in hookspecs.KINDS:
        taken = {entry.name: entry.object for one in own for entry in registry.entries(kind, one)}
        for entry in source.entries(kind, plugin):
            if entry.name in taken and taken[entry.name] is not entry.object:
                full = entry.qualified if plugin.is_known else f"my-distribution:{entry.name}"
                told.append(
                    f"{plugin}: {kind}: {entry.name!r} is lamella's own, which the plain name goes on to mean; this "
                    f"one is found by its full name only, {full!r}. Likely fix: choose another name"
                )
    return told


def _origin(plugin: Plugin) -> str:
    return plugin.module if isinstance(plugin.source, _Module) else plugin.origin


def _mentions(specimen: Specimen, entry: Entry) -> bool:
    """Whether a layer is configured with an activation, by name or as the object itself."""
    values = specimen.subject.config().values() if isinstance(specimen.subject, Configured) else ()
    names = (entry.name, entry.qualified)
    return any(value is entry.object or (isinstance(value, str) and value in names) for value in values)


def _unregistered(name: str, layer: str, plugins: list[Plugin], subjects: list[Subject], faults: list[str]) -> Subject:
    """A class that no hook gives and no specimen shows, if its module has it."""
    modules = {plugin.module.partition(":")[0] for plugin in plugins if not plugin.error} | {name}
    for module in sorted(modules, key=len):
        try:
            cls = _layer_of(importlib.import_module(module), layer)
        except ImportError:  # the name of a distribution need not be that of a module
            continue
        if cls:
            return Subject(layer, "layers", cls, module, ())
    known = [subject.name for subject in subjects]
    expected = f"{did_you_mean(layer, known)} Expected one of {', '.join(sorted(known)) or 'none'}"
    raise RegistryError("\n".join([f"{name!r} has no layer {layer!r}.{expected}", *faults]))


def _layer_of(module: ModuleType, name: str) -> type[Layer] | None:
    found = getattr(module, name, None)
    return found if isinstance(found, type) and issubclass(found, Layer) else None
