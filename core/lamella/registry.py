"""Names to objects: layers, activations, losses, ... that plugins give, found through entry points.

Built-in families and other distributions come in by the same door. Entry points are read on first use of the
registry; a plugin's module is imported when a name is looked up that it might give: lamella's own first, whose plain
names nobody else can take, and others where lamella has no such name. A plugin that cannot be imported is remembered
with its error and stops only those who ask for a name that nobody else gives.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import itertools
import re
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import pluggy

from lamella import elsewhere, hookspecs
from lamella.errors import ArgumentError, RegistryError, did_you_mean, in_words, shown

__all__ = [
    "FAILURES",
    "INSTALL_AGAIN",
    "SCRIPT",
    "Entry",
    "Kind",
    "LayerTable",
    "Layers",
    "Note",
    "Plugin",
    "Registry",
    "broken",
    "canonical",
    "entries",
    "find",
    "hooks",
    "layers",
    "name_of",
    "noting",
    "plugins",
    "register",
    "shortest_names",
    "snake_case",
    "specimens",
    "where_is",
]

INSTALL_AGAIN = "After a change of its entry points, a package has to be installed again: python -m pip install -e ."
"""What those should know who do not find what their own package gives."""

FAILURES = (Exception, SystemExit, GeneratorExit)
"""What the code of others may raise while it runs. An interruption is none: it is the user's."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One name that a plugin gives."""

    name: str
    object: Any
    plugin: Plugin

    @property
    def qualified(self) -> str:
        """``"distribution:name"``, which is never ambiguous."""
        return f"{self.plugin.distribution}:{self.name}"


@dataclasses.dataclass
class Plugin:
    """One entry point in the group ``lamella``; imported when needed."""

    name: str
    module: str
    distribution: str
    version: str
    source: _EntryPoint = dataclasses.field(repr=False)
    error: str | None = None  # why nothing of it can be had
    faults: list[str] = dataclasses.field(default_factory=list)  # why some of it can't

    @property
    def complaints(self) -> list[str]:
        """A line for all that is wrong with it."""
        lost = [f"{self} could not be loaded: {self.error}"] if self.error else []
        return [*lost, *(f"{self}: {fault}" for fault in self.faults)]

    @property
    def key(self) -> str:
        """``"distribution:entry point"``."""
        return f"{self.distribution}:{self.name}"

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}" if self.is_known else "an unknown distribution"

    @property
    def is_known(self) -> bool:
        """Whether the distribution has a name."""
        return self.distribution != _UNKNOWN

    @property
    def is_own(self) -> bool:
        """Whether it is of lamella itself."""
        return self.distribution == hookspecs.PROJECT

    @property
    def said(self) -> str:
        """What gives a name, in an error that lists several."""
        return "made known by a script" if self.distribution == SCRIPT else f"plugin {self.name!r}"

    def __str__(self) -> str:
        if not self.is_known and self.name == self.module:
            return f"module {self.module}"
        if not self.module:
            return f"entry_points.txt of {self.origin}"
        return f"plugin {self.name!r} of {self.origin} ({self.module})"


class _EntryPoint(Protocol):
    name: str
    value: str

    @property
    def dist(self) -> Any: ...

    def load(self) -> Any: ...


_UNKNOWN = "unknown"
SCRIPT = "script"
"""What stands for the distribution in full names of what `register` made known."""

_NAME = re.compile(r"[a-z][a-z0-9_\-]*")
_T = TypeVar("_T")
_kinds: dict[str, Kind] = {}


class Kind:
    """One kind of things that plugins give: what it must be, and how it is found. Declared where its class lives.

    Arguments:
        name: of the kind; plugins give it by the hook ``lamella_<name>``.
        called: the full name under which users know the class, for messages.
        base: the class whose subclasses are given.
        of: the class whose instances are given. Without one of these two, functions are given.
        functions: whether functions are given beside subclasses.
    """

    def __init__(
        self,
        name: str,
        called: str = "",
        *,
        base: type | None = None,
        of: type | None = None,
        functions: bool = False,
    ) -> None:
        self.name, self.called, self.base, self.of, self.functions = name, called, base, of, functions
        _kinds[name] = self

    def find(self, name: str) -> Any:
        """Return what plugins give by a name, plain or ``"distribution:name"``."""
        return find(self.name, name)

    def entries(self) -> list[Entry]:
        """Return everything that plugins give, in alphabetical order of names."""
        return entries(self.name)

    def entry_of(self, thing: Any) -> Entry | None:
        """Return the entry under which a thing is registered, looking only at plugins of its own package."""
        return name_of(self.name, thing)

    def fault(self, thing: Any) -> str:
        """Return what was expected in place of a thing that is not of this kind, else an empty string."""
        if self.base is not None:
            fits = issubclass(thing, self.base) if isinstance(thing, type) else self.functions and callable(thing)
            return "" if fits else f"{'a function or ' if self.functions else ''}a subclass of {self.called}"
        if self.of is not None:
            return "" if isinstance(thing, self.of) else f"a {self.called}"
        return "" if callable(thing) else "a function"

    def gives(self, value: Any) -> bool:
        """Whether a value is an instance of a class of this kind."""
        return self.base is not None and isinstance(value, self.base)

    def resolve(self, value: Any, *, classes: bool = True) -> Any:
        """Return an instance of the base class, from an instance, a name, or a subclass that needs no arguments.

        No classes go into configuration, which files keep as it was given.
        """
        assert self.base is not None
        if isinstance(value, type) and issubclass(value, self.base) and not classes:
            own, name = self.base.__name__, value.__name__
            raise ArgumentError(
                f"{own.lower()}: expected a name or an object, got the class {name}; did you mean {name}(...)?"
            )
        if isinstance(value, str):
            value = find(self.name, value)
        if isinstance(value, type) and issubclass(value, self.base) and value is not self.base:
            value = value()
        if not isinstance(value, self.base) or type(value) is self.base:
            word = self.base.__name__
            article = "an" if word[0] in "AEIOU" else "a"
            is_base = value is self.base or type(value) is self.base
            hint = f"; {word} is the class that all of them extend" if is_base else ""
            raise ArgumentError(f"{word.lower()}: expected a name or {article} {word}, got {shown(value)}{hint}")
        return value


class Note(NamedTuple):
    """What was looked up by a name, and what was found."""

    kind: str
    name: str
    entry: Entry


_notes: contextvars.ContextVar[list[Note] | None] = contextvars.ContextVar("notes", default=None)


@contextlib.contextmanager
def noting() -> Iterator[list[Note]]:
    """Collect what is looked up by name meanwhile, in whatever is called."""
    around, own = _notes.get(), list[Note]()
    token = _notes.set(own)
    try:
        yield own
    finally:
        _notes.reset(token)
        if around is not None:
            around.extend(own)


def canonical(distribution: str) -> str:
    """The name of a distribution as package indexes compare names: ``My_Layers`` is ``my-layers``.

    >>> canonical("My_Layers")
    'my-layers'
    """
    return re.sub(r"[-_.]+", "-", distribution).lower()


@functools.lru_cache(maxsize=256)
def snake_case(name: str) -> str:
    """Return the default registry name of a class.

    >>> snake_case("MaxPooling2D"), snake_case("RMSNormalization"), snake_case("F1Score")
    ('max_pooling2d', 'rms_normalization', 'f1_score')
    """
    name = re.sub(r"(?<=[^_])(?=[A-Z][a-z0-9])", "_", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


class Registry:
    """The plugins of one set of entry points, by default those of all installed distributions."""

    def __init__(self, entry_points: Iterable[_EntryPoint] | None = None) -> None:
        self._source = entry_points
        self._plugins: list[Plugin] | None = None
        self._entries: dict[str, dict[str, dict[str, Entry]]] = {}  # plugin key -> kind -> name -> entry
        self._script: dict[str, dict[str, Entry]] = {}  # kind -> name -> what `register` made known
        self._lock = threading.RLock()
        self._found: dict[tuple[str, str], Entry] = {}  # what was looked up by kind and name
        self._given: dict[str, Any] = {}  # plugin key -> what its entry point names
        self._under_way: set[str] = set()  # keys of plugins whose import has begun and not ended
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def plugins(self) -> list[Plugin]:
        """Every plugin, imported or not."""
        if self._plugins is None:
            found = _installed() if self._source is None else list(map(_plugin, self._source))
            self._plugins = sorted(found, key=lambda plugin: (plugin.distribution, plugin.name))
        return self._plugins

    def entries(self, kind: str, plugin: Plugin | None = None) -> list[Entry]:
        """Everything of one kind, such as ``"layers"``, in alphabetical order of names; of one plugin, or of all."""
        asked = self.plugins() if plugin is None else [plugin]
        self._import(asked)
        found = [entry for one in asked for entry in self._entry_list(one, kind)]
        if plugin is None:
            found += self._script.get(kind, {}).values()
        return sorted(found, key=lambda entry: (entry.name, entry.plugin.distribution))

    def find(self, kind: str, name: str) -> Any:
        """Return the object of a name, plain or ``"distribution:name"``; a plain name of lamella's own is lamella's."""
        if not isinstance(name, str):
            raise ArgumentError(f"{kind}: expected a registered name, got {shown(name)}")
        known = self._found.get((kind, name))
        if known is None:
            known = self._look_up(kind, name)
            if not self._under_way:  # else a plugin that gives the name, too, may come
                self._found[kind, name] = known
        notes = _notes.get()
        if notes is not None:
            notes.append(Note(kind, name, known))
        return known.object

    def register(self, name: str) -> Callable[[_T], _T]:
        """Make a class known in this process by a name, for scripts and notebooks that are no installed package.

        ``@lm.register("name")`` stands above a class of a layer, loss, optimizer, schedule or metric; an
        `ActivationFunction`, or an initializer, goes in as ``lm.register("name")(function)``. Files say that it came
        from a script: who loads one has to register the class before, or hands it to ``lm.load(path, layers=...)``.
        What is registered again under a name takes its place.

        Raises:
            ArgumentError: something that no plugin could give, or a name of lamella itself.

        >>> import lamella as lm
        >>> @lm.register("doubled")
        ... class Doubled(lm.Layer):
        ...     def forward_pass(self, ctx, x):
        ...         return 2.0 * x
        ...     def backward_pass(self, ctx, dy):
        ...         return 2.0 * dy
        >>> lm.layer("doubled")
        Doubled()
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ArgumentError(f"register: name: expected lower case, digits and '_', got {shown(name)}")

        def known(thing: _T) -> _T:
            kinds = [_kinds[kind] for kind in hookspecs.KINDS if _kinds[kind].base or _kinds[kind].of]
            kind = next((kind.name for kind in kinds if not kind.fault(thing)), "")
            if not kind:
                raise ArgumentError(
                    f"register: expected the class of a layer, loss, optimizer, schedule or metric, an "
                    f"ActivationFunction or an initializer, got {shown(thing)}"
                )
            own = [plugin for plugin in self.plugins() if plugin.is_own]
            self._import(own)
            if any(entry.name == name for one in own for entry in self._entry_list(one, kind)):
                raise ArgumentError(f"register: {name!r} is lamella's own name among {kind}; choose another")
            plugin = Plugin(SCRIPT, getattr(thing, "__module__", ""), SCRIPT, "", _NoEntryPoint())
            self._script.setdefault(kind, {})[name] = Entry(name, thing, plugin)
            self._found.clear()
            return thing

        return known

    def _look_up(self, kind: str, name: str) -> Entry:
        distribution, _, plain = name.rpartition(":")
        distribution = canonical(distribution)
        script = [self._script[kind][plain]] if plain in self._script.get(kind, {}) else []
        if distribution == SCRIPT:
            if script:
                return script[0]
            raise RegistryError(
                f"{kind}: {name!r} was made known by a script, with @lm.register({plain!r}), which has not run in this "
                f"process. Run it before, or hand it over: lm.load(path, layers={{{plain!r}: it}})"
            )
        if not self.plugins():
            raise RegistryError(
                f"{kind}: {name!r} can't be looked up, since no entry points in the group 'lamella' were found, not "
                "even lamella's own; install it (pip install -e . in a source tree)"
            )
        asked = [plugin for plugin in self.plugins() if distribution in ("", plugin.distribution)]
        if not asked:
            installed = {plugin.distribution for plugin in self.plugins()}
            family = any(distribution.startswith(f"{one}-") for one in installed)  # lamella-x is no typing error
            hint = "" if family else did_you_mean(distribution, installed)
            raise RegistryError(
                f"{name!r}: no installed distribution {distribution!r} has lamella plugins. Install it, for example "
                f"with pip install {distribution}; installed are {', '.join(sorted(installed))}.{hint}"
            )
        own = [plugin for plugin in asked if plugin.is_own]
        near = [plugin for plugin in own if plugin.name in (kind, plain)]  # where lamella itself most likely has it
        for some in (near, own, [plugin for plugin in asked if not plugin.is_own]):
            self._import(some)
            matches = [entry for one in some for entry in self._entry_list(one, kind) if entry.name == plain]
            if not distribution and not (some and some[0].is_own):
                matches += script
            if len(matches) == 1:
                return matches[0]
            if matches:
                given = " and ".join(f"{entry.qualified!r} ({entry.plugin.said})" for entry in matches)
                if len({entry.qualified for entry in matches}) == len(matches):
                    fix = "say which one you mean by its full name"
                else:
                    fix = "that distribution must rename one of them"
                raise RegistryError(f"{kind}: {name!r} is given by {given}; {fix}")
        known = {entry.name for one in asked for entry in self._entry_list(one, kind)}
        known |= set() if distribution else self._script.get(kind, {}).keys()
        close = did_you_mean(plain, known)
        raise RegistryError(
            f"{kind}: unknown name {name!r}.{close} Expected one of {', '.join(sorted(known)) or 'none'}."
            f"{'' if close else f' {INSTALL_AGAIN}'}{''.join(self._silent(asked, kind))}"
        )

    def _silent(self, plugins: Iterable[Plugin], kind: str) -> list[str]:
        """A line for each plugin that might give a name and could not be asked."""
        told = []
        for plugin in plugins:
            if plugin.error:
                told.append(f"\n  {plugin} could not be loaded, and may give it: {plugin.error}")
            elif plugin.key not in self._entries:
                told.append(
                    f"\n  {plugin} is being imported just now, and may give it. Likely fix: look names up in "
                    "functions, not while a module is imported"
                )
            told += [f"\n  {plugin}: {fault}" for fault in plugin.faults if fault.startswith(f"lamella_{kind}()")]
        return told

    def name_of(self, kind: str, thing: Any) -> Entry | None:
        """Return the entry under which an object is registered, looking only at plugins of its own package."""
        for entry in self._script.get(kind, {}).values():
            if entry.object is thing:
                return entry
        module = getattr(thing, "__module__", None) or type(thing).__module__
        package = module.partition(".")[0]
        near = [plugin for plugin in self.plugins() if plugin.module.partition(".")[0] == package]
        self._import(near)
        for plugin in near:
            for entry in self._entry_list(plugin, kind):
                if entry.object is thing:
                    return entry
        return None

    def specimens(self, plugin: Plugin | None = None) -> list[Any]:
        """The specimens of one plugin, or of all that can be loaded."""
        asked = self.plugins() if plugin is None else [plugin]
        self._import(asked)
        return [specimen for one in asked if not one.error for specimen in self._specimens_of(one)]

    def _specimens_of(self, plugin: Plugin) -> list[Any]:
        kind = _kinds["specimens"]
        if plugin.key not in self._entries:  # it is being imported
            return []
        try:
            given = self._call(self._manager.get_plugin(plugin.key), "lamella_specimens", [])
            if not isinstance(given, list | tuple):
                hint = "" if kind.fault(given) else "; put it into a list"
                raise TypeError(f"must return a list of {kind.called}, got {_described(given)}{hint}")
            for one in given:
                if kind.fault(one):
                    raise TypeError(f"must return a list of {kind.called}, got a list with {_described(one)}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise RegistryError(f"{plugin}: lamella_specimens(): {in_words(error)}") from error
        return list(given)

    def _entry_list(self, plugin: Plugin, kind: str) -> list[Entry]:
        return list(self._entries.get(plugin.key, {}).get(kind, {}).values())

    def _import(self, plugins: Iterable[Plugin]) -> None:
        """Import plugins and take what they give, all that is right.

        A plugin that looks up names while it is imported finds those of others: it is itself left out until later.
        """
        waiting = [plugin for plugin in plugins if plugin.key not in self._entries and not plugin.error]
        if not waiting:  # nor is there anything to wait for, such as a thread that imports what looks up names
            return
        with self._lock:
            for plugin in waiting:
                if plugin.key in self._entries or plugin.key in self._under_way or plugin.error:
                    continue
                self._under_way.add(plugin.key)
                try:
                    self._import_one(plugin)
                finally:
                    self._under_way.remove(plugin.key)

    def _import_one(self, plugin: Plugin) -> None:
        if _is_being_imported(plugin.module.partition(":")[0]):
            return  # by somebody who looks names up meanwhile, and is told so; it can be asked later
        try:
            given = plugin.source.load()
            if not (found := hooks(given)):
                raise TypeError(
                    f"{plugin.module} has no hooks; is @lamella.hookimpl missing, or does the entry point name a class "
                    "where it should name the module?"
                )
            if other := next((key for key, known in self._given.items() if known is given), None):
                raise ValueError(f"entry point {other!r} names {plugin.module} already; remove one of the two")
            module = types.ModuleType(plugin.key)  # what was given may be any object, and equal any other
            vars(module).update((name, getattr(given, name)) for name in found)
            self._manager.register(module, plugin.key)
            self._given[plugin.key] = given
            self._entries[plugin.key] = {kind: self._collect(plugin, module, kind) for kind in hookspecs.KINDS}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # reported where it is needed
            plugin.error = in_words(error)
            if not re.fullmatch(r"\w[\w.]*(\s*:\s*\w[\w.]*)?", plugin.module):  # Python's own words tell nothing
                plugin.error = f"{plugin.module!r} is not the name of a module, such as 'my_package.my_layers'"

    def _call(self, module: Any, hook: str, default: Any) -> Any:
        """What a plugin's own hook returns; the default where it has none."""
        caller = getattr(self._manager.hook, hook)
        results = [
            implementation.function() for implementation in caller.get_hookimpls() if implementation.plugin is module
        ]
        return results[0] if results else default

    def _collect(self, plugin: Plugin, module: Any, kind: str) -> dict[str, Entry]:
        """What a plugin gives of one kind; what is wrong is left out, and noted."""
        hook, found = f"lamella_{kind}()", {}
        try:
            given = self._call(module, f"lamella_{kind}", {})
            if not isinstance(given, dict):
                raise TypeError(f"must return a dict of names to objects, got {_described(given)}")
            for name, thing in list(given.items()):
                if not isinstance(name, str) or not _NAME.fullmatch(name):
                    plugin.faults.append(
                        f"{hook} gives the name {shown(name)}, which is left out; expected lower case, digits and '_'"
                    )
                elif expected := _kinds[kind].fault(thing):
                    plugin.faults.append(
                        f"{hook} gives {name!r} = {shown(thing)}, which is left out; expected {expected}"
                    )
                else:
                    found[name] = Entry(name, thing, plugin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # of somebody's hook; the plugin's other hooks stay
            plugin.faults.append(f"{hook} failed: {in_words(error)}")
        return found


def _plugin(point: _EntryPoint) -> Plugin:
    return Plugin(point.name, point.value.partition("[")[0].strip(), *_distribution(point), point)


def _installed() -> list[Plugin]:
    """The plugins of all installed distributions; a file of entry points that can't be read stands for its own."""
    import importlib.metadata  # brings the email package; `import lamella` does without

    try:
        return list(map(_plugin, importlib.metadata.entry_points(group=hookspecs.PROJECT)))
    except Exception:  # of one of them; look at each by itself
        pass
    found: dict[str, list[Plugin]] = {}  # of each distribution those that come first on the path
    for place, distribution in enumerate(importlib.metadata.distributions()):
        source = SimpleNamespace(name="", value="", dist=distribution)
        name, version = _distribution(source)
        if name in found:
            continue
        try:
            some = list(map(_plugin, distribution.entry_points.select(group=hookspecs.PROJECT)))
        except Exception as error:
            some = [Plugin("", "", name, version, source, error=in_words(error))]
        found[f"{name} {place}" if name == _UNKNOWN else name] = some
    return [plugin for some in found.values() for plugin in some]


class _NoEntryPoint:
    """In place of the entry point of what a script made known."""

    name = value = SCRIPT
    dist = None

    def load(self) -> Any:
        return None


def _distribution(point: _EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that an entry point stands in."""
    try:
        return canonical(point.dist.name), str(point.dist.version)
    except Exception:  # none, or one without METADATA, as an interrupted uninstall leaves it
        return _UNKNOWN, "0"


def _is_being_imported(module: str) -> bool:
    """Whether this thread is in the midst of importing a module, or a package around it."""
    modules = map(sys.modules.get, itertools.accumulate(module.split("."), "{}.{}".format))
    plain = [one for one in modules if issubclass(type(one), types.ModuleType)]  # others took the place of a module
    specs = [object.__getattribute__(one, "__dict__").get("__spec__") for one in plain]
    return any(getattr(spec, "_initializing", False) is True for spec in specs)


def hooks(module: Any) -> list[str]:
    """Return the names of a plugin's hooks.

    Raises:
        TypeError: for a function with the name of a hook that pluggy would overlook, for a hook that does not exist,
            and for one that asks for arguments.
    """
    known = [name for name in vars(hookspecs) if name.startswith("lamella_")]
    found = []
    for name in sorted({*dir(module), *getattr(module, "__dict__", ())}):  # a module's own __dir__ may leave hooks out
        if not name.startswith("lamella_"):
            continue
        function = getattr(module, name)
        if not callable(function) or isinstance(function, type):
            continue
        marked = hasattr(function, f"{hookspecs.PROJECT}_impl")
        if name in known and not marked:
            raise TypeError(f"{name} is not marked as a hook; put @lamella.hookimpl above it")
        if name not in known and marked:
            raise TypeError(f"there is no hook {name}.{did_you_mean(name, known)}")
        if marked:
            asked = [one.name for one in inspect.signature(function).parameters.values() if one.default is one.empty]
            if asked:
                raise TypeError(f"{name}({', '.join(asked)}): a hook takes no arguments")
            found.append(name)
    return found


def _described(value: Any) -> str:
    """What a hook gave, for an error message."""
    hints = {"generator": "; is a yield where a return is due?", "NoneType": "; is a return missing?"}
    name = type(value).__name__
    return f"the class {value.__name__}" if isinstance(value, type) else f"{name}{hints.get(name, '')}"


def shortest_names(found: Iterable[Entry]) -> dict[str, Entry]:
    """Entries of one kind by the shortest name that finds them: in full where lamella, or several others, have it."""
    found = list(found)
    own = [entry.name for entry in found if entry.plugin.is_own]
    others = [entry.name for entry in found if not entry.plugin.is_own]
    return {
        entry.name if (own if entry.plugin.is_own else own + others).count(entry.name) == 1 else entry.qualified: entry
        for entry in found
    }


_INSTALLED = Registry()
plugins = _INSTALLED.plugins
entries = _INSTALLED.entries
find = _INSTALLED.find
name_of = _INSTALLED.name_of
register = _INSTALLED.register
specimens = _INSTALLED.specimens


def broken() -> list[str]:
    """Return a line for all that is wrong with plugins: what could not be loaded, and what they give in vain."""
    return [line for plugin in plugins() for line in plugin.complaints]


class LayerTable(dict[str, Any]):
    """Layer classes by name; prints as a table that says where each comes from."""

    def __init__(self, found: Iterable[Entry], broken: Iterable[Plugin] = ()) -> None:
        self.entries = shortest_names(found)
        self.broken = list(broken)
        super().__init__({name: entry.object for name, entry in self.entries.items()})

    def __repr__(self) -> str:
        rows = [(name, entry.object.__name__, entry.plugin.origin) for name, entry in self.entries.items()]
        widths = [max((len(row[k]) for row in rows), default=0) for k in range(2)]
        lines = [f"{name:<{widths[0]}}  {cls:<{widths[1]}}  {origin}" for name, cls, origin in rows]
        return "\n".join([*lines, *(line for plugin in self.broken for line in plugin.complaints)])


class Layers:
    """What `lamella.layers` is: called, the table of all layers. It has none as attributes, and says where they are."""

    def __call__(self) -> LayerTable:
        """Return every registered layer class by name; in full where lamella, or several others, have one of that name.

        What it returns is a dict, and prints as a table with the distribution and version of each layer.

        >>> import lamella as lm
        >>> lm.layers()["flatten"].__name__
        'Flatten'
        """
        return LayerTable(entries("layers"), [plugin for plugin in plugins() if plugin.complaints])

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            known = where_is(name)
            error = elsewhere.missing("lamella.layers", name, known or "; layers are in lamella_layers")
            if isinstance(error, ImportError):
                raise error
            raise AttributeError(f"lm.layers() is the table of all layers, and has no {name!r}{known}")


layers = Layers()
sys.modules["lamella.layers"] = layers  # type: ignore[assignment]  # it answers `from lamella.layers import Dense`


def where_is(name: str) -> str:
    """Return where the class of a layer is to be imported from, to end an error with, or an empty string.

    >>> where_is("Dense"), where_is("Linear")
    ('; from lamella_layers import Dense', '; what stands for it is Dense(units) of lamella_layers')
    """
    known = layers().values() if name[:1].isupper() else ()
    if name in elsewhere.LAYERS:
        fix = elsewhere.instead(elsewhere.LAYERS, name)
        is_class = elsewhere.LAYERS[name].partition("(")[0] in [cls.__name__ for cls in known]
        return fix.replace(")", ") of lamella_layers", 1) if is_class else fix
    classes = [cls for cls in known if cls.__name__.lower() == name.lower()]
    return "".join(f"; from {cls.__module__.partition('.')[0]} import {cls.__name__}" for cls in classes)
