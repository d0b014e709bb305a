"""What plugins give, each with the specimens that show it to the laws."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from lamella import hookspecs, registry
from lamella.errors import RegistryError
from lamella.protocol import ArraySpec
from lamella.protocol.configured import Configured
from lamella.protocol.specimen import Specimen
from lamella.registry import FAILURES, Entry, Plugin
from lamella.testing.laws import laws_of
from lamella.testing.laws.metrics import takes
from lamella.testing.subjects import kind_of

__all__ = ["KINDS", "ModuleEntryPoint", "Subject", "subjects_of"]

KINDS = (
    *("layers", "losses", "activations", "optimizers", "metrics", "schedules", "initializers"),
    *("backends", "commands", "laws", "others"),
)
"""What is examined, or named as not examined; others are what no hook gives."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """One thing that a package gives: a layer, say, or an optimizer.

    Attributes:
        name: under which it is registered; of what is not registered, the name of its class.
        kind: what the hook for it gives, as in ``"layers"``.
        cls: its class; of activations and initializers, which are objects, None.
        origin: distribution and version, or the module.
        specimens: what shows it.
        lost: why the specimens of its plugin can't be had, or nothing.
    """

    name: str
    kind: str
    cls: type | None
    origin: str
    specimens: tuple[Specimen, ...]
    lost: str = ""

    @property
    def fault(self) -> str:
        """Why it can't be examined, if its plugin owes a specimen of it; else nothing."""
        if self.specimens or self.kind not in OWED:
            return ""
        return self.lost or (
            f"{self.name!r} has no specimen, so nothing can be examined. Likely fix: return one from the hook "
            f"lamella_specimens beside it, such as {OWED[self.kind]}"
        )

    @property
    def not_examined(self) -> str:
        """Why no law says anything of it, where that is no fault; else nothing."""
        if self.specimens or self.kind in OWED:
            return ""
        if self.kind == "backends":
            return "layers are examined on every backend that calls them"
        if not laws_of(self.kind):
            return f"there are no laws for {self.kind}"
        needs, specimen = SHOWN_BY[self.kind]
        specimen = specimen.format(getattr(self.cls, "__name__", self.name))
        return f"it needs {needs}; show it by a specimen, such as {specimen}"


OWED = {
    "layers": "Specimen(MyLayer(3), (lm.ArraySpec(('N', 4)),))",
    "losses": "Specimen(MyLoss(), (lm.ArraySpec(('N', 4)), lm.ArraySpec(('N', 4)))), of prediction and target",
    "activations": "Specimen(my_activation, (lm.ArraySpec(('N', 4)),)), or one of a layer that applies it",
}
"""The kinds of which a plugin owes specimens, with an example of one."""


SHOWN_BY = {
    "optimizers": ("arguments", "Specimen({}(...), ())"),
    "metrics": ("arguments, or data of a form of its own", "Specimen({}(...), (prediction, target))"),
}
"""The kinds that are examined without a specimen where possible: what they lack where not, and the specimen for it."""


FORMS = (
    (ArraySpec(("N", 5)), ArraySpec(("N",), "int64", low=0, high=5)),  # classes
    (ArraySpec(("N", 5)), ArraySpec(("N", 5))),  # values
    (ArraySpec(("N", 1)), ArraySpec(("N", 1), "int64", low=0, high=2)),  # yes-no decisions
)
"""What metrics without specimens are tried on: predictions and targets."""


class ModuleEntryPoint:
    """An entry point for a module that no distribution names."""

    dist = None

    def __init__(self, module: ModuleType) -> None:
        self.name = self.value = module.__name__
        self.module = module

    def load(self) -> ModuleType:
        return self.module


def subjects_of(source: Any, plugins: list[Plugin]) -> tuple[list[Subject], list[str]]:
    """What plugins of one registry give, in their order, and what is wrong with them."""
    entries: list[tuple[Entry, str]] = []
    specimens: list[tuple[Specimen, Plugin]] = []
    faults = []
    lost = {}
    for plugin in plugins:
        for kind in KINDS[:-1]:
            entries += [(entry, kind) for entry in source.entries(kind, plugin)]
        try:
            specimens += [(specimen, plugin) for specimen in source.specimens(plugin)]
        except RegistryError as error:
            lost[plugin.key] = str(error)
            faults.append(str(error))
        faults += plugin.complaints
        faults += _taken(source, plugin)
    subjects: list[Subject] = []
    known: list[Any] = []
    for entry, kind in entries:
        own = tuple(specimen for specimen, _ in specimens if _shows(specimen, entry.object))
        cls = entry.object if isinstance(entry.object, type) else None
        names = [other for other, of in entries if of == kind and other.object is entry.object]
        if kind == "activations" and not own and any(_mentions(one, other) for one, _ in specimens for other in names):
            continue  # the layer shows it, by this name or another
        if kind != "initializers" and source.name_of(kind, entry.object) not in (None, entry):
            continue  # an alias of another name
        own = (own or tuple(_made_for(kind, entry.object))) if laws_of(kind) else ()
        subjects.append(Subject(entry.name, kind, cls, _origin(entry.plugin), own, lost.get(entry.plugin.key, "")))
        known.append(entry.object)
    others = [pair for pair in specimens if not any(_shows(pair[0], one) for one in known)]
    for cls, plugin in {type(specimen.subject): plugin for specimen, plugin in others}.items():
        own = tuple(specimen for specimen, _ in others if type(specimen.subject) is cls)
        kind = kind_of(own[0].subject) or "others"
        subjects.append(Subject(cls.__name__, kind, cls, _origin(plugin), own if laws_of(kind) else ()))
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
    return plugin.module if isinstance(plugin.source, ModuleEntryPoint) else plugin.origin


def _mentions(specimen: Specimen, entry: Entry) -> bool:
    """Whether a layer is configured with an activation, by name or as the object itself."""
    values = specimen.subject.config().values() if isinstance(specimen.subject, Configured) else ()
    names = (entry.name, entry.qualified)
    return any(value is entry.object or (isinstance(value, str) and value in names) for value in values)
