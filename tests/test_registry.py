"""The registry: plugins through entry points, imported when asked for, with errors that name both sides."""

import importlib
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest

import lamella as lm
from lamella import registry
from lamella.registry import Registry


class EntryPoint:
    """What importlib.metadata gives for one entry point."""

    def __init__(self, name, plugin, distribution="acme", version="2.1", value=None):
        self.name, self.value, self.plugin, self.loads = name, value or f"{distribution}.{name}", plugin, 0
        self.dist = SimpleNamespace(name=distribution, version=version)

    def load(self):
        self.loads += 1
        if isinstance(self.plugin, BaseException):
            raise self.plugin
        return self.plugin


def plugin(**given):
    """A plugin object with hooks that return the given dicts, by kind."""
    hooks = {f"lamella_{kind}": lm.hookimpl(lambda value=value: value) for kind, value in given.items()}
    return SimpleNamespace(**{name: _plain(hook) for name, hook in hooks.items()})


def _plain(hook):
    @lm.hookimpl
    def call():
        return hook()

    return call


class Dark:
    def __repr__(self):
        raise RuntimeError("dark")


class NoItems(dict):
    def items(self):
        raise RuntimeError("no items")


class Unspeakable(BaseException):
    def __str__(self):
        raise SystemExit


class Mine(lm.Layer):
    pass


class Yours(lm.Layer):
    pass


def test_built_ins_come_by_entry_points():
    assert {"dense", "activation", "conv2d", "max_pooling2d", "flatten", "dropout"} <= set(lm.layers())
    assert lm.layer("dense", units=3) == lm.layer("lamella:dense", units=3)
    assert registry.find("losses", "huber")().delta == 1.0
    assert not [p for p in registry.plugins() if p.error]


def test_plugins_are_imported_when_a_name_is_looked_up_and_once():
    one, other = EntryPoint("a", plugin(layers={"mine": Mine})), EntryPoint("b", plugin(), distribution="other")
    known = Registry([one, other])
    assert [p.name for p in known.plugins()] == ["a", "b"]
    assert (one.loads, other.loads) == (0, 0)
    assert known.find("layers", "acme:mine") is Mine
    assert (one.loads, other.loads) == (1, 0)
    assert known.find("layers", "mine") is Mine
    assert (one.loads, other.loads) == (1, 1)
    (entry,) = known.entries("layers")
    assert (entry.qualified, entry.plugin.version) == ("acme:mine", "2.1")
    assert known.name_of("layers", Yours) is None


def test_a_name_given_twice_needs_its_full_name():
    known = Registry(
        [EntryPoint("a", plugin(layers={"m": Mine})), EntryPoint("b", plugin(layers={"m": Yours}), distribution="zoo")]
    )
    with pytest.raises(lm.RegistryError, match=r"'m' is given by 'acme:m' \(plugin 'a'\) and 'zoo:m' \(plugin 'b'\)"):
        known.find("layers", "m")
    assert known.find("layers", "zoo:m") is Yours


def test_a_broken_plugin_stops_only_those_who_need_it():
    broken = EntryPoint("bad", ImportError("no module named 'torch'"), distribution="zoo", version="0.3")
    leaving = EntryPoint("leaves", SystemExit(3), distribution="zoo", version="0.3")
    known = Registry([EntryPoint("a", plugin(layers={"mine": Mine})), broken, leaving])
    assert known.find("layers", "mine") is Mine
    words = (
        r"unknown name 'mien'\. Did you mean 'mine'\? Expected one of mine\.\n  plugin 'bad' of zoo 0.3 \(zoo.bad\) "
        "could not be loaded.*ImportError: no module named 'torch'"
    )
    with pytest.raises(lm.RegistryError, match=words):
        known.find("layers", "mien")
    assert broken.loads == 1
    assert [p.error for p in known.plugins()] == [None, "ImportError: no module named 'torch'", "SystemExit: 3"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"layers": [Mine]}, "must return a dict of names to objects, got list"),
        ({"layers": {"Bad Name": Mine}}, "gives the name 'Bad Name', which is left out; expected lower case"),
        ({"layers": {"mine": 3}}, "gives 'mine' = 3, which is left out; expected a subclass of lamella.Layer"),
        (
            {"layers": {3: Mine, "dark": Dark()}},
            r"gives the name 3, .*\n.* gives 'dark' = an object of Dark that cannot be shown, which is",
        ),
        ({"layers": NoItems()}, r"lamella_layers\(\) failed: RuntimeError: no items$"),
        ({"layers": None}, "must return a dict of names to objects, got NoneType"),
        ({"activations": {"a": len}}, "expected a lamella.ActivationFunction"),
        (
            {"losses": {"l": Mine}},
            "lamella_losses\\(\\) gives 'l' = .*; expected a subclass of lamella.losses.Loss",
        ),
        ({"optimizers": {"o": lm.optimizers.SGD()}}, "expected a subclass of lamella.optimizers.Optimizer"),
        ({"schedules": {"s": 0.1}}, "expected a subclass of lamella.schedules.Schedule"),
        ({"metrics": {"m": len}}, "expected a subclass of lamella.metrics.Metric"),
        ({"commands": {"c": len}}, "expected a lamella.cli.Command"),
        ({"initializers": {"i": 1.0}}, "gives 'i' = 1.0, which is left out; expected a function"),
    ],
)
def test_what_is_wrong_in_a_hook_is_told_and_stops_nothing_else(given, words, monkeypatch):
    (kind,) = given
    sound = {"layers": {"fine": Mine}, "losses": {"fine": lm.losses.Huber}, "metrics": {"fine": lm.metrics.Accuracy}}
    wrong = {**sound.get(kind, {}), **given[kind]} if type(given[kind]) is dict else given[kind]
    known = Registry([EntryPoint("a", plugin(**{**sound, kind: wrong})), EntryPoint("b", plugin(layers={}))])
    for name, things in sound.items():
        if name != kind or type(wrong) is dict:
            assert known.find(name, "fine") is things["fine"]
    with pytest.raises(lm.RegistryError, match=f"(?s)unknown name.*plugin 'a' of acme 2.1 .*{words}"):
        known.find(kind, "mine")
    monkeypatch.setattr(registry, "plugins", known.plugins)
    monkeypatch.setattr(registry, "entries", known.entries)
    assert re.search(f"(?s)plugin 'a' of acme 2.1 .*{words}", "\n".join(registry.broken()))
    assert re.search(f"(?s)plugin 'a' of acme 2.1 .*{words}", repr(lm.layers()))


def test_a_name_that_several_give_is_told_once():
    points = [EntryPoint(name, plugin(layers={"mine": Mine}), distribution=name) for name in ("acme", "zoo")]
    with pytest.raises(
        lm.RegistryError,
        match=r"Expected one of mine\. After a change of its entry points, a package has to be .* again: py.* -e \.$",
    ):
        Registry(points).find("layers", "x")


class Equal:
    """Equal to everything."""

    def __eq__(self, other):
        return True

    __hash__ = None

    @staticmethod
    @lm.hookimpl
    def lamella_layers():
        return {"yours": Yours}


class Raising:
    """Of which nothing can be known."""

    def __getattribute__(self, name):
        raise RuntimeError("no")


def test_objects_in_the_place_of_modules_disturb_no_others(monkeypatch):
    monkeypatch.setitem(sys.modules, "acme", Raising())
    monkeypatch.setitem(sys.modules, "acme.b", mock.MagicMock())
    points = [EntryPoint("a", Equal()), EntryPoint("b", plugin(layers={"mine": Mine})), EntryPoint("c", Raising())]
    known = Registry([*points, EntryPoint("d", Unspeakable())])
    assert (known.find("layers", "mine"), known.find("layers", "yours")) == (Mine, Yours)
    assert [one.error for one in known.plugins()] == [
        None,
        None,
        "RuntimeError: no",
        "Unspeakable: (its message can't be had: SystemExit in __str__)",
    ]


def test_names_of_distributions_compare_as_package_indexes_do():
    known = Registry([EntryPoint("a", plugin(layers={"mine": Mine}), distribution="My_Layers")])
    assert known.find("layers", "my-layers:mine") is known.find("layers", "My.Layers:mine") is Mine


def test_a_name_given_twice_by_one_distribution_can_only_be_mended_there():
    known = Registry([EntryPoint("a", plugin(layers={"m": Mine})), EntryPoint("b", plugin(layers={"m": Yours}))])
    with pytest.raises(lm.RegistryError, match="'acme:m' is given by .* that distribution must rename one of them"):
        known.find("layers", "acme:m")


def raising():
    raise OSError("no such table")


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (lambda: None, "TypeError: must return a list of lamella.testing.Specimen, got NoneType; is a return missing"),
        (lambda: [Mine], "TypeError: must return a list of lamella.testing.Specimen, got a list with the class Mine"),
        (lambda: (yield), "must return a list of .*, got generator; is a yield where a return is due"),
        (lambda: lm.testing.Specimen(Mine(), lm.ArraySpec(("N", 1))), "got Specimen; put it into a list"),
        (lambda: sys.exit(0), "SystemExit: 0"),
        (raising, "OSError: no such table"),
    ],
)
def test_wrong_specimens_stop_only_those_who_ask_for_them(hook, words):
    wrong = plugin(layers={"mine": Mine})
    wrong.lamella_specimens = lm.hookimpl(lambda: hook())
    known = Registry([EntryPoint("a", wrong), EntryPoint("b", plugin(layers={"yours": Yours}), distribution="zoo")])
    assert known.find("layers", "mine") is Mine
    assert known.specimens(known.plugins()[1]) == []
    for plugins in ((), known.plugins()[:1]):
        with pytest.raises(
            lm.RegistryError, match=rf"plugin 'a' of acme 2.1 \(acme.a\): lamella_specimens\(\): .*{words}"
        ):
            known.specimens(*plugins)


@pytest.mark.parametrize(
    ("name", "function", "words"),
    [
        ("lamella_layer", lambda: {"mine": Mine}, "there is no hook lamella_layer. Did you mean 'lamella_layers'"),
        ("lamella_layers", lambda registry: {}, r"lamella_layers\(registry\): a hook takes no arguments$"),
        ("lamella_layers", lambda: (yield), "got generator; is a yield where a return is due"),
        ("lamella_layers", raising, "OSError: no such table"),
    ],
)
def test_hooks_that_do_not_fit_are_reported(name, function, words):
    wrong = SimpleNamespace(**{name: lm.hookimpl(function)})
    with pytest.raises(lm.RegistryError, match=f"(?s)plugin 'a' of acme 2.1 .*{words}"):
        Registry([EntryPoint("a", wrong)]).find("layers", "mine")


def test_the_table_of_layers_tells_where_each_comes_from(monkeypatch):
    known = Registry(
        [
            EntryPoint("a", plugin(layers={"m": Mine, "mine": Mine})),
            EntryPoint("b", plugin(layers={"m": Yours}), distribution="zoo", version="0.3"),
            EntryPoint("c", ImportError("no torch"), distribution="zoo", version="0.3"),
        ]
    )
    for name in ("entries", "plugins"):
        monkeypatch.setattr(registry, name, getattr(known, name))
    table = lm.layers()
    assert table == {"acme:m": Mine, "zoo:m": Yours, "mine": Mine}
    assert repr(table).splitlines() == [
        "acme:m  Mine   acme 2.1",
        "zoo:m   Yours  zoo 0.3",
        "mine    Mine   acme 2.1",
        "plugin 'c' of zoo 0.3 (zoo.c) could not be loaded: ImportError: no torch",
    ]


def test_a_plugin_without_hooks_says_so():
    known = Registry([EntryPoint("a", SimpleNamespace(layers=lambda: {"mine": Mine}))])
    with pytest.raises(lm.RegistryError, match=r"acme.a has no hooks; is @lamella.hookimpl missing"):
        known.find("layers", "mine")
    marked = lm.hookimpl(lambda: {"mine": Mine})
    forgotten = SimpleNamespace(lamella_layers=lambda: {"mine": Mine}, lamella_losses=marked)
    with pytest.raises(lm.RegistryError, match=r"lamella_layers is not marked as a hook; put @lamella.hookimpl above"):
        Registry([EntryPoint("a", forgotten)]).find("layers", "mine")


def test_unknown_names_and_distributions_get_hints():
    with pytest.raises(
        lm.RegistryError, match=r"layers: unknown name 'dens'\. Did you mean 'dense'\? Expected one of "
    ):
        lm.layer("dens", units=3)
    with pytest.raises(lm.RegistryError, match=r"no installed distribution 'lamela'.*Did you mean 'lamella'\?"):
        lm.layer("lamela:dense", units=3)
    with pytest.raises(lm.RegistryError, match="not even lamella's own; install it"):
        Registry([]).find("layers", "dense")


def test_families_load_when_first_used():
    code = """
import sys, lamella as lm
before = "lamella_layers" in sys.modules
lm.layer("dense", units=1)
print(before, "lamella_layers" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "True"]


def test_plain_names_of_lamellas_own_are_lamellas_and_no_other_plugin_is_imported_for_them():
    own = EntryPoint("own", plugin(layers={"m": Mine}), distribution="Lamella")
    other = EntryPoint("a", plugin(layers={"m": Yours, "n": Yours}))
    known = Registry([other, own])
    assert known.find("layers", "m") is Mine
    assert (own.loads, other.loads) == (1, 0)
    assert known.find("layers", "acme:m") is known.find("layers", "n") is Yours
    assert list(registry.shortest_names(known.entries("layers"))) == ["acme:m", "m", "n"]


def test_a_distribution_without_metadata_has_no_name(tmp_path, monkeypatch):
    """As an interrupted uninstall leaves it."""
    folder = tmp_path / "acme-1.0.dist-info"
    folder.mkdir()
    (folder / "entry_points.txt").write_text("[lamella]\nlost = lost_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    known = Registry()
    assert known.find("losses", "huber")
    assert "plugin 'lost' of an unknown distribution (lost_module)" in [str(plugin) for plugin in known.plugins()]


LOOKS = """
import lamella as lm
import registry_of_tests

DEFAULT = registry_of_tests.known.find("layers", "mine")

class Later(lm.Layer):
    pass

@lm.hookimpl
def lamella_layers():
    return {"later": registry_of_tests.known.find("layers", "mine") and Later}

try:
    registry_of_tests.known.find("layers", "later")
except lm.RegistryError as error:
    told = str(error)

@lm.hookimpl
def lamella_specimens():
    return [lm.testing.Specimen(Later(), lm.ArraySpec(("N", 3)))]
"""
HOOKS = """
import lamella as lm
from looks_up import Later

@lm.hookimpl
def lamella_layers():
    return {"later": Later}
"""


@pytest.fixture
def looking_up(tmp_path, monkeypatch):
    """A registry with a module or package that looks up a name while it is imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def known(value):
        point = EntryPoint("later", None, distribution="zoo", value=value)
        point.load = lambda: importlib.import_module(value)
        found = Registry([point, EntryPoint("a", plugin(layers={"mine": Mine}))])
        monkeypatch.setitem(sys.modules, "registry_of_tests", SimpleNamespace(known=found))
        return found

    yield known
    for name in ("looks_up", "looks_up.hooks"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("first", ["import", "look-up"])
def test_a_plugin_may_look_up_names_of_others_while_it_is_imported(first, looking_up, tmp_path):
    (tmp_path / "looks_up.py").write_text(LOOKS)
    known = looking_up("looks_up")
    if first == "import":
        importlib.import_module("looks_up")
    found = known.find("layers", "later")
    module = sys.modules["looks_up"]
    assert (found, module.DEFAULT, len(known.specimens())) == (module.Later, Mine, 1)
    assert "plugin 'later' of zoo 2.1 (looks_up) is being imported just now, and may give it" in module.told


def test_a_package_may_look_up_names_before_its_modules_can_be_imported(looking_up, tmp_path):
    (tmp_path / "looks_up").mkdir()
    (tmp_path / "looks_up" / "__init__.py").write_text(LOOKS[: LOOKS.index("@lm.hookimpl")])
    (tmp_path / "looks_up" / "hooks.py").write_text(HOOKS)
    known = looking_up("looks_up.hooks")
    package = importlib.import_module("looks_up")
    assert known.find("layers", "later") is package.Later


def test_entry_points_that_name_nothing_or_one_thing_twice_say_so():
    one = plugin(layers={"mine": Mine})
    unreadable = EntryPoint("c", AttributeError("'NoneType' object has no attribute 'group'"), value="1-2 3!")
    known = Registry([EntryPoint("a", one), EntryPoint("b", one), unreadable, EntryPoint("d", GeneratorExit())])
    assert known.find("layers", "mine") is Mine
    assert [plugin.error for plugin in known.plugins()] == [
        None,
        "ValueError: entry point 'acme:a' names acme.b already; remove one of the two",
        "'1-2 3!' is not the name of a module, such as 'my_package.my_layers'",
        "GeneratorExit: ",
    ]


@pytest.mark.parametrize("order", ["first", "second"])
def test_what_a_test_registers_is_gone_in_the_next(order):
    """Whichever of the two runs first, alone or after all others."""
    assert "left_behind" not in lm.layers()
    with pytest.raises(lm.RegistryError):
        lm.layer("left_behind")
    lm.register("left_behind")(Mine)
    assert isinstance(lm.layer("left_behind"), Mine)
    assert [entry.name for entry in registry.entries("layers") if entry.plugin.distribution == registry.SCRIPT] == [
        "left_behind"
    ]
