"""Packages: what a target names, what its plugins give, and what the laws say of a specimen."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lamella import registry
from lamella.errors import RegistryError, did_you_mean, in_words
from lamella.protocol import Layer
from lamella.protocol.specimen import Specimen
from lamella.registry import FAILURES, Plugin, Registry, canonical
from lamella.testing.check import ConformanceError, check_specimen
from lamella.testing.contents import ModuleEntryPoint, Subject, subjects_of
from lamella.testing.report import Verdict
from lamella.testing.subjects import described

__all__ = ["Package", "Subject", "find_package", "look_here", "plugins_of", "title", "verdicts_of", "words_of"]


@dataclasses.dataclass(frozen=True)
class Package:
    """What a target has found: subjects, and faults of plugins: what can't be loaded, and names that lamella has."""

    target: str
    subjects: tuple[Subject, ...]
    faults: tuple[str, ...]

    def fault_of(self, subject: Subject) -> str:
        """Why a subject can't be examined, or nothing, also where the package's own faults tell it already."""
        return "" if subject.fault in self.faults else subject.fault


def find_package(target: str) -> Package:
    """Return what there is to examine.

    Arguments:
        target: the name of a distribution, a package or a module, registered or not; ``"name:layer"`` for one layer
            of it, by its registered name or its class.

    Raises:
        RegistryError: if there is no such package or layer, or nothing in it to examine.
    """
    name, _, layer = target.partition(":")
    source, plugins = plugins_of(target)
    subjects, faults = subjects_of(source, plugins)
    if layer:
        chosen = [subject for subject in subjects if layer in (subject.name, getattr(subject.cls, "__name__", ""))]
        subjects, faults = chosen or [_unregistered(name, layer, plugins, subjects, faults)], []
    if not subjects and not faults:
        raise RegistryError(f"{name!r} gives nothing by its hooks, so there is nothing to examine")
    return Package(target, tuple(subjects), tuple(faults))


def look_here() -> None:
    """Find modules in the current folder too, as ``python -m`` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def plugins_of(target: str) -> tuple[Any, list[Plugin]]:
    """Return the plugins of a distribution, package or module, after the registry that has them.

    Arguments:
        target: what `find_package` takes. A module that nobody has registered has to have hooks, or the layer.

    Raises:
        RegistryError: if there is no such package, or nothing in it.
    """
    name, _, layer = target.partition(":")
    if name.endswith(".py") or "/" in name or os.sep in name:
        module = os.path.basename(name).removesuffix(".py")
        raise RegistryError(f"{name!r}: expected the name of a package or module, such as {module!r}, in its folder")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise RegistryError(f"{target!r}: expected a package or module, such as 'my_package', or 'my_package:MyLayer'")
    plugins = [plugin for plugin in registry.plugins() if _belongs(plugin, name)]
    if plugins:
        return registry, plugins
    imported = _import(name)
    if not _has_hooks(imported) and not (layer and _layer_of(imported, layer)):
        raise RegistryError(_without_hooks(name, imported))
    source = Registry([ModuleEntryPoint(imported)])
    return source, source.plugins()


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
        return (Verdict("runs", "broken", f"{doing}{in_words(error)}"),)


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
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise RegistryError(f"{name!r} could not be imported: {in_words(error)}") from error
    parent, _, last = name.rpartition(".")
    if parent and hasattr(sys.modules.get(parent), last):
        raise RegistryError(f"{name!r}: no module of that name. Did you mean '{parent}:{last}'?")
    known = {plugin.distribution for plugin in registry.plugins() if plugin.is_known}
    known |= {plugin.module.partition(".")[0] for plugin in registry.plugins() if plugin.module}
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
        return f"{name!r} is a folder without __init__.py, and no package, so it gives nothing"
    inside = f", or name the module that has them, such as {name}.my_layer" if hasattr(module, "__path__") else ""
    return (
        f"{name!r} has no hooks, so it gives nothing. Likely fix: put @lamella.hookimpl above its "
        f"lamella_layers and lamella_specimens{inside}"
    )


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
    known = {subject.name for subject in subjects}
    close = did_you_mean(layer, known)
    expected = f"{close} Expected one of {', '.join(sorted(known)) or 'none'}"
    expected += "" if close else f". {registry.INSTALL_AGAIN}"
    raise RegistryError("\n".join([f"{name!r} has no layer {layer!r}.{expected}", *faults]))


def _layer_of(module: ModuleType, name: str) -> type[Layer] | None:
    found = getattr(module, name, None)
    return found if isinstance(found, type) and issubclass(found, Layer) else None
