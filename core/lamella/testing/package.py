"""What a package gives that the laws can examine: its layers and losses, each with the specimens that show it."""

from __future__ import annotations

import dataclasses
import importlib
import os
from types import ModuleType
from typing import Any

from lamella import registry
from lamella.configuration import Configured
from lamella.errors import RegistryError, did_you_mean
from lamella.protocol import Layer
from lamella.registry import Entry, Plugin, Registry, canonical
from lamella.testing.check import ConformanceError, Verdict, check_specimen
from lamella.testing.specimen import Specimen

__all__ = ["Package", "Subject", "examine", "find_package", "title"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A layer, a loss or an activation of a package.

    Attributes:
        name: under which it is registered; of what is not registered, the name of its class.
        cls: its class; of an activation, None.
        origin: distribution and version, or the module.
        specimens: what shows it; without any, it can't be examined and so fails.
    """

    name: str
    cls: type | None
    origin: str
    specimens: tuple[Specimen, ...]

    @property
    def fault(self) -> str:
        """Why it can't be examined, or nothing."""
        if self.specimens:
            return ""
        return (
            f"{self.name!r} has no specimen, so nothing can be examined. Likely fix: return one from the hook "
            "lamella_specimens beside it, such as Specimen(MyLayer(3), (lm.ArraySpec(('N', 4)),))"
        )


@dataclasses.dataclass(frozen=True)
class Package:
    """What a target has found: subjects, and faults of plugins that could not be loaded."""

    target: str
    subjects: tuple[Subject, ...]
    faults: tuple[str, ...]


class _Module:
    """An entry point for a module that no distribution names."""

    dist = None

    def __init__(self, module: ModuleType) -> None:
        self.name = self.value = module.__name__
        self.module = module

    def load(self) -> ModuleType:
        return self.module


def find_package(target: str) -> Package:
    """What there is to examine.

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
    plugins = [plugin for plugin in registry.plugins() if _belongs(plugin, name)]
    if plugins:
        subjects, faults = _subjects(registry, plugins)
    else:
        source = Registry([_Module(_import(name))])
        subjects, faults = _subjects(source, source.plugins())
    if layer:
        chosen = [subject for subject in subjects if layer in (subject.name, getattr(subject.cls, "__name__", ""))]
        subjects, faults = chosen or [_unregistered(name, layer, plugins, subjects, faults)], []
    if not subjects and not faults:
        raise RegistryError(f"{name!r} gives no layers, losses or specimens, so there is nothing to examine")
    return Package(target, tuple(subjects), tuple(faults))


def examine(specimen: Specimen) -> tuple[Verdict, ...]:
    """What each law says of a specimen; one verdict, ``"runs"``, where the layer does not get as far as the laws."""
    try:
        return check_specimen(specimen).verdicts
    except ConformanceError as error:
        return error.report.verdicts
    except (Exception, SystemExit) as error:  # the layer's own code may raise anything, already while it is built
        return (Verdict("runs", "broken", f"{type(error).__name__}: {error}"),)


def title(specimen: Specimen) -> str:
    """A specimen in a few words.

    >>> from lamella_layers import Dense
    >>> import lamella as lm
    >>> title(Specimen(Dense(3), (lm.ArraySpec(("N", 4)),)))
    'Dense(3) on (N, 4) float32'
    """
    return f"{specimen.subject!r} on {', '.join(map(str, specimen.inputs))}"


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
    except (Exception, SystemExit) as error:
        raise RegistryError(f"{name!r} could not be imported: {type(error).__name__}: {error}") from error
    known = {plugin.distribution for plugin in registry.plugins()}
    known |= {plugin.module.partition(".")[0] for plugin in registry.plugins()}
    raise RegistryError(
        f"{name!r}: no installed distribution, package or module of that name; those with lamella plugins are "
        f"{', '.join(sorted(known))}.{did_you_mean(name, known)} Likely fix: python -m pip install -e . in its folder"
    )


def _subjects(source: Any, plugins: list[Plugin]) -> tuple[list[Subject], list[str]]:
    """What plugins of one registry give, in their order, and what is wrong with them."""
    entries: list[tuple[Entry, str]] = []
    specimens: list[tuple[Specimen, Plugin]] = []
    faults = []
    for plugin in plugins:
        try:
            for kind in ("layers", "losses", "activations"):
                entries += [(entry, kind) for entry in source.entries(kind, plugin)]
            specimens += [(specimen, plugin) for specimen in source.specimens(plugin)]
        except RegistryError as error:
            faults.append(str(error))
        if plugin.error:
            faults.append(f"{plugin} could not be loaded: {plugin.error}")
    subjects, shown = [], set()
    for entry, kind in entries:
        if kind != "activations":
            own = tuple(specimen for specimen, _ in specimens if type(specimen.subject) is entry.object)
            subjects.append(Subject(entry.name, entry.object, _origin(entry.plugin), own))
            shown.add(entry.object)
        elif not any(_mentions(specimen, entry) for specimen, _ in specimens):
            subjects.append(Subject(entry.name, None, _origin(entry.plugin), ()))
    others = {type(specimen.subject): plugin for specimen, plugin in specimens}
    for cls, plugin in others.items():
        if cls not in shown:
            own = tuple(specimen for specimen, _ in specimens if type(specimen.subject) is cls)
            subjects.append(Subject(cls.__name__, cls, _origin(plugin), own))
    return subjects, faults


def _origin(plugin: Plugin) -> str:
    return plugin.module if isinstance(plugin.source, _Module) else plugin.origin


def _mentions(specimen: Specimen, entry: Entry) -> bool:
    """Whether a layer is configured with an activation, by name or as the object itself."""
    values = specimen.subject.config().values() if isinstance(specimen.subject, Configured) else ()
    return any(value is entry.object or value in (entry.name, entry.qualified) for value in values)


def _unregistered(name: str, layer: str, plugins: list[Plugin], subjects: list[Subject], faults: list[str]) -> Subject:
    """A class that no hook gives and no specimen shows, if its module has it."""
    modules = {plugin.module.partition(":")[0] for plugin in plugins if not plugin.error} | {name}
    for module in sorted(modules, key=len):
        try:
            cls = getattr(importlib.import_module(module), layer, None)
        except ImportError:  # the name of a distribution need not be that of a module
            continue
        if isinstance(cls, type) and issubclass(cls, Layer):
            return Subject(layer, cls, module, ())
    known = [subject.name for subject in subjects]
    expected = f"expected one of {', '.join(sorted(known)) or 'none'}.{did_you_mean(layer, known)}"
    raise RegistryError("\n".join([f"{name!r} has no layer {layer!r}; {expected}", *faults]))
