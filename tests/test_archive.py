"""Files: a model comes back as it was, and nothing else comes in."""

import copy
import hashlib
import importlib.metadata
import json
import math
import os
import pickle
import tracemalloc
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lamella as lm
from lamella import registry
from lamella.cli.program import main
from lamella.files import archive
from lamella_layers import Conv2D, Dense, Flatten


class Hold(lm.Layer):
    """A layer around another one."""

    def __init__(self, inner):
        self.inner = inner

    def expand(self, x):
        return self.inner(x)


class Fork(lm.Layer):
    """A composite that gives its input back beside something new."""

    def expand(self, x):
        return x, Dense(3)(x)


class Note(lm.Layer):
    """A layer with an argument of any kind."""

    def __init__(self, value):
        self.value = value

    def forward_pass(self, ctx, x):
        return x


class Renamed(lm.Layer):
    """A layer whose argument was called ``factor`` in version 0."""

    def __init__(self, scale):
        self.scale = scale

    @classmethod
    def migrate(cls, config, version):
        return {"scale": config["factor"]} if version == "0" else config

    def forward_pass(self, ctx, x):
        return x * self.scale


@lm.hookimpl
def lamella_layers():
    return {"hold": Hold, "fork": Fork, "note": Note, "renamed": Renamed}


@pytest.fixture
def registered(monkeypatch):
    """This module as a plugin."""
    module = __import__(__name__)
    point = SimpleNamespace(name="test", value=__name__, dist=SimpleNamespace(name="acme", version="1"))
    point.load = lambda: module
    known = registry.Registry([*importlib.metadata.entry_points(group="lamella"), point])
    for name in ("find", "name_of", "entries"):
        monkeypatch.setattr(registry, name, getattr(known, name))


def through_a_file(model, path):
    model.save(path)
    return lm.load(path)


DUPLICATES = [
    lambda model, path: lm.from_config(model.config()),
    lambda model, path: lm.from_config(json.loads(json.dumps(model.config(), allow_nan=False))),
    lambda model, path: copy.deepcopy(model),
    lambda model, path: pickle.loads(pickle.dumps(model)),
    through_a_file,
]


def trained():
    model = lm.Sequential([Conv2D(3, 3, activation="relu"), Flatten(), Dense(2)], input_shape=(1, 5, 5), seed=2**40)
    x, y = np.random.default_rng(0).normal(size=(8, 1, 5, 5)), np.arange(8) % 2
    model.fit(x, y, loss="softmax_cross_entropy", optimizer="adam", epochs=2, batch_size=4, progress=False)
    return model.freeze("conv2d_1"), x, y


@pytest.mark.smoke
def test_saved_models_come_back_and_train_on_bit_by_bit(tmp_path):
    model, x, y = trained()
    path = tmp_path / "model.lamella"
    model.save(path)
    twin = lm.load(path)
    assert type(twin) is lm.Sequential
    assert twin.config() == model.config()
    assert (twin.step, twin.seed, twin.frozen_layers) == (4, 2**40, {"conv2d_1"})
    np.testing.assert_array_equal(twin.predict(x), model.predict(x))
    for one in (model, twin):
        one.unfreeze().train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="adam")
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, twin.parameters[name])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.lamella"]


def test_files_are_safetensors_with_names_and_no_code(tmp_path):
    model, _, _ = trained()
    model.save(tmp_path / "m")
    arrays = load_file(tmp_path / "m")
    np.testing.assert_array_equal(arrays["parameters/conv2d_1.kernel"], model.parameters["conv2d_1.kernel"])
    assert model.config()["layers"][0]["type"] == "lamella:conv2d"
    json.dumps(model.config())


def identities(model):
    """Every layer that a model holds, in order, as a number that is the same where the object is."""
    numbers = {}

    def walk(thing):
        yield numbers.setdefault(id(thing), len(numbers))
        of_layer = [thing.inner] if isinstance(thing, Hold) else []
        for inner in of_layer if isinstance(thing, lm.Layer) else thing.layers.values():
            yield from walk(inner)

    return [number for layer in model.layers.values() for number in walk(layer)]


def test_another_version_loads_with_a_note_and_may_migrate(registered, tmp_path):
    model = lm.Sequential([Renamed(3.0), Dense(1)], input_shape=2)
    config = model.config()
    described = config["layers"][0]
    assert (described["type"], described["version"]) == ("acme:renamed", "1")
    lm.from_config(config)  # equal versions: no warning, which would be an error here
    described.update(version="0", config={"factor": 3.0})
    with pytest.warns(lm.VersionWarning, match="from_config: written with acme 0; 1 is installed.*acme==0"):
        assert lm.from_config(config).layers["renamed_1"] == Renamed(3.0)
    model.save(tmp_path / "m")
    edited(tmp_path / "m", lambda h, a: h["model"]["layers"][0].update(version="0", config={"factor": 3.0}))
    with pytest.warns(lm.VersionWarning, match="load .*written with acme 0"):
        np.testing.assert_array_equal(lm.load(tmp_path / "m").predict(np.ones((1, 2))), model.predict(np.ones((1, 2))))


def test_arguments_that_another_version_renamed_are_told(registered, tmp_path):
    lm.Sequential([Hold(Dense(2))], input_shape=2).save(tmp_path / "m")

    def rename(header, arrays):
        (described,) = (one for one in header["model"]["layers"] if one["type"] == "acme:hold")
        described.update(version="0", config={"layer": described["config"]["inner"]})

    edited(tmp_path / "m", rename)
    words = r"load .*Hold\(inner\): there is no argument 'layer'. It was written by acme 0, and 1 .*: .*Hold.migrate"
    with pytest.raises(lm.DataError, match=words):
        lm.load(tmp_path / "m")


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_layers_stay_shared_inside_composites_and_inner_models(duplicate, registered, tmp_path):
    shared, head = Dense(4).named("shared"), Dense(2)
    body = lm.Sequential([Dense(4), shared, Hold(shared)], input_shape=4)
    x = lm.Input((4,))
    y = shared(Hold(shared)(Hold(Hold(body))(body(x))))
    model = lm.Model(x, (head(y), Hold(head)(y)))
    twin = duplicate(model, tmp_path / "m")
    assert twin.config() == model.config()
    assert list(twin.parameters) == list(model.parameters)
    assert len(twin.values.parameters) == len(model.values.parameters) == 20 + 20 + 10
    assert identities(twin) == identities(model) == [0, 1, 2, 3, 2, 4, 5, 0, 1, 2, 3, 2, 6, 2, 2, 7, 8, 7]
    assert [operation.prefix for operation in twin.graph.operations] == [
        operation.prefix for operation in model.graph.operations
    ]


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_composites_that_pass_an_input_on(duplicate, registered, tmp_path):
    x = lm.Input((4,))
    a, b = Fork()(x)
    c, d = Fork()(a)
    model = lm.Model(x, (Dense(2)(c), b, d))
    twin = duplicate(model, tmp_path / "m")
    assert twin.config() == model.config()
    assert twin.output_names == model.output_names
    assert list(twin.parameters) == list(model.parameters)


def test_composites_that_only_pass_on_vanish():
    class Nothing(lm.Layer):
        def expand(self, x):
            return x

    model = lm.Sequential([Nothing(), Dense(2)], input_shape=4)
    assert list(lm.from_config(model.config()).layers) == list(model.layers) == ["dense_1"]


def test_composites_keep_inputs_that_lead_nowhere():
    class First(lm.Layer):
        def expand(self, a, b):
            return Dense(2)(a), Dense(3)(b)

    x, other = lm.Input((4,)), lm.Input((4,))
    model = lm.Model(x, First()(x, Dense(5)(x))[0])
    twin = lm.from_config(model.config())
    assert twin.config() == model.config()
    assert list(twin.parameters) == list(model.parameters) == ["first_1/dense_1.kernel", "first_1/dense_1.bias"]
    with pytest.raises(lm.GraphError, match=r"First\(\) takes <node .*, which is no input of the model"):
        lm.Model(x, First()(x, other)[0]).config()


@pytest.mark.parametrize("duplicate", DUPLICATES)
@pytest.mark.parametrize(
    "value",
    [math.inf, -math.inf, (1, [2.5, [None]]), {1: 2, "a": {(3, 4): -math.inf}}, {"layer": 0}, {}, "\ud800",
     Note(Dense(2)), lm.optimizers.Adam(0.5)],
)  # fmt: skip
def test_arguments_come_back_as_they_were(duplicate, value, registered, tmp_path):
    model = lm.Sequential([Note(value)], input_shape=3)
    twin = duplicate(model, tmp_path / "m")
    assert twin.layers == model.layers
    assert eval(repr(twin.layers["note_1"]), {**vars(lm.optimizers), **globals(), "inf": math.inf}) == Note(value)


def test_nan_arguments_come_back(registered, tmp_path):
    model = lm.Sequential([Note(math.nan)], input_shape=3)
    assert math.isnan(through_a_file(model, tmp_path / "m").layers["note_1"].value)


@pytest.mark.parametrize("value", [b"x", 1j, {1, 2}, len])
def test_arguments_that_are_no_plain_data_live_in_process_only(value, registered, tmp_path):
    model = lm.Sequential([Note(value)], input_shape=3)
    assert lm.from_config(model.config()).layers == model.layers
    with pytest.raises(lm.DataError, match="must be plain data"):
        model.save(tmp_path / "m")


def test_unregistered_layers_are_not_written_and_leave_nothing_behind(tmp_path):
    class Mine(lm.Layer):
        def forward_pass(self, ctx, x):
            return x

    model = lm.Sequential([Mine()], input_shape=3)
    assert lm.from_config(model.config()).predict(np.ones((1, 3))).shape == (1, 3)
    with pytest.raises(lm.DataError, match="registered by an installed plugin"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_loading_weights_with_a_mapping(tmp_path):
    model, _, _ = trained()
    save_file({"w": np.ones((4, 2), "float32"), "b": np.full(2, 3.0, "float32")}, tmp_path / "w")
    head = lm.Sequential([Dense(2)], input_shape=4)
    head.load_weights(tmp_path / "w", {"dense_1.kernel": "w", "dense_1.bias": "b"})
    assert head.predict([[1, 1, 1, 1]]).tolist() == [[7.0, 7.0]]
    model.save(tmp_path / "m")
    fresh = lm.from_config(model.config())
    fresh.load_weights(tmp_path / "m")
    np.testing.assert_array_equal(fresh.parameters["dense_1.kernel"], model.parameters["dense_1.kernel"])
    with pytest.raises(lm.DataError, match=r"no array 'dense_1.kernel'.* mapping=\{'dense_1.\*': None\} leaves"):
        head.load_weights(tmp_path / "w")
    head.load_weights(tmp_path / "w", {"dense_1.*": None, "dense_1.bias": "b"})
    assert head.predict([[1, 1, 1, 1]]).tolist() == [[7.0, 7.0]]
    with pytest.raises(lm.ArgumentError, match="expected a name in the file, or None, got 3"):
        head.load_weights(tmp_path / "w", {"dense_1.bias": 3})
    with pytest.raises(lm.DataError, match=r"mapping names 'head.\*', which the model does not have"):
        head.load_weights(tmp_path / "w", {"head.*": None})
    with pytest.raises(lm.DataError, match=r"shape \(2,\); 'dense_1.kernel' needs \(4, 2\)"):
        head.load_weights(tmp_path / "w", {"dense_1.kernel": "b", "dense_1.bias": "b"})
    with pytest.raises(lm.DataError, match="Did you mean 'dense_1.kernel'"):
        head.load_weights(tmp_path / "w", {"dense_1.kernle": "w"})


@pytest.mark.parametrize("code", ["BF16", "I16", "U16", "F16"])
def test_loading_weights_changes_everything_or_nothing(tmp_path, code):
    head = lm.Sequential([Dense(2)], input_shape=4)
    before = head.parameters["dense_1.kernel"]
    entries = {"dense_1.kernel": ("F32", [4, 2], bytes(32)), "dense_1.bias": (code, [2], bytes(4))}
    header, content = {}, b""
    for name, (dtype, shape, data) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode()
    (tmp_path / "w").write_bytes(len(text).to_bytes(8, "little") + text + content)
    if code == "BF16":
        with pytest.raises(lm.DataError, match=r"'dense_1.bias' is of dtype BF16; 'dense_1.bias' takes BOOL, F16, F32"):
            head.load_weights(tmp_path / "w")
    else:
        head.load_weights(tmp_path / "w")
        before = np.zeros((4, 2))
    np.testing.assert_array_equal(head.parameters["dense_1.kernel"], before)


def edited(path, change):
    """The file with its header changed."""
    arrays, header = load_file(path), None
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["lamella"])
    change(header, arrays)
    write_signed(path, header, arrays)


def write_signed(path, header, arrays):
    """A file with the checksum of what it holds."""
    text = json.dumps(header)
    found = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.name} {'x'.join(map(str, array.shape))}\n".encode() + array.tobytes())
    save_file(arrays, path, metadata={"lamella": text, "lamella.sha256": found.hexdigest()})


def layer(**changes):
    """Change the last layer's description."""
    return lambda h, a: h["model"]["layers"][2].update(changes)


def argument(**changes):
    return lambda h, a: h["model"]["layers"][2]["config"].update(changes)


def model(**changes):
    return lambda h, a: h["model"].update(changes)


def optimizer(**changes):
    return lambda h, a: h["optimizer"]["object"].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, a: h.update(format=99), "format 99; this version reads formats 1 and 2; a newer lamella"),
        (lambda h, a: h.clear(), "not one that lamella wrote"),
        (lambda h, a: h.pop("model"), r"no configuration of a model \(KeyError: 'model'\); expected what model.save"),
        (lambda h, a: h.update(model=[]), "no configuration of a model"),
        (lambda h, a: h.pop("step"), "KeyError: 'step'"),
        (lambda h, a: h.update(step="x"), "step: expected an int of at least 0, got 'x'"),
        (lambda h, a: h.update(step=-5), "step: expected an int of at least 0, got -5"),
        (lambda h, a: h.update(optimizer=3), "no configuration of a model"),
        (lambda h, a: h["optimizer"].update(t=None), "t: expected an int"),
        (optimizer(kind="losses", type="lamella:huber", config={}), "'lamella:huber' is no Optimizer"),
        (optimizer(config={"learning_rate": "x"}), "learning_rate: expected a finite number"),
        (lambda h, a: h["model"].pop("calls"), "KeyError: 'calls'"),
        (layer(kind="laws", type="lamella:onnx", config={"case": 1}), "KeyError: 'laws'"),
        (layer(kind="losses", type="lamella:huber", config={}), "'lamella:huber' is no Layer"),
        (layer(kind="initializers", type="lamella:zeros"), "'lamella:zeros' is no Layer"),
        (layer(type=3), "no configuration of a model"),
        (layer(config=[1]), "no configuration of a model"),
        (layer(name="a/../b"), "expected letters, digits, '_' and '-', got 'a/../b'"),
        (layer(name=[1]), "expected letters, digits, '_' and '-'"),
        (argument(units="x"), "units: expected a positive int, got 'x'"),
        (argument(units=10**9), r"'parameters/dense_1.kernel' has shape \(27, 2\); the model needs \(27, 1000000000\)"),
        (argument(units=2**62), "which no memory holds"),
        (argument(foo=1), "there is no argument 'foo'"),
        (argument(activation={"layer": 2}), "expected a number below 2, got 2"),
        (argument(kernel_initializer=3), "initializer: expected a registered name or a function"),
        (model(frozen=["zzz"]), "no layers .*'zzz'"),
        (model(seed=1.5), "seed: expected"),
        (model(seed=2**64), "seed: expected"),
        (model(dtype="int32"), "no configuration of a model"),
        (model(dtype=[]), "no configuration of a model"),
        (model(outputs=[[0, -1]]), "expected a number below 1, got -1"),
        (lambda h, a: h["model"].update({"class": ["x"]}), "no configuration of a model"),
        (lambda h, a: h["model"]["calls"][0].update(layer=-1), "expected a number below 3, got -1"),
        (lambda h, a: h["model"]["calls"][0].update(layer=True), "expected a number below 3, got True"),
        (lambda h, a: h["model"]["calls"][0].update(name="a.b"), "expected letters, digits"),
        (lambda h, a: h["model"]["inputs"][0].update(name="/"), "expected letters, digits"),
        (lambda h, a: h["model"]["inputs"][0].update(shape="abc"), "shape: expected a tuple of sizes"),
        (lambda h, a: a.pop("parameters/dense_1.bias"), "differ: parameters/dense_1.bias"),
        (lambda h, a: a.update(more=np.ones(3)), "differ: more"),
        (lambda h, a: a.update({"parameters/dense_1.bias": np.ones(3)}), r"has shape \(3,\); the model needs \(2,\)"),
        (lambda h, a: a.update({"parameters/dense_1.bias": np.ones(2)}), "is of dtype F64; the model takes F32"),
        (lambda h, a: a.update({"slots/m": np.ones(3)}), r"'slots/m' has shape \(3,\); the model needs \(86,\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, words):
    trained()[0].save(tmp_path / "m")
    edited(tmp_path / "m", change)
    with pytest.raises(lm.DataError, match=words):
        lm.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "words"),
    [("os:system", "no installed distribution"), ("lamella:sgd", "unknown name"), ("acme:x", "pip install acme")],
)
def test_layers_that_nobody_gives_are_refused(tmp_path, name, words):
    trained()[0].save(tmp_path / "m")
    edited(tmp_path / "m", layer(type=name))
    with pytest.raises(lm.RegistryError, match=words):
        lm.load(tmp_path / "m")


def test_inner_models_are_measured_before_they_are_made(tmp_path):
    body = lm.Sequential([Dense(2)], input_shape=4)
    x = lm.Input((4,))
    outer = lm.Model(x, Dense(2)(body(x)))

    def grow(header, arrays):  # a branch of the inner model that leads to no output
        table = header["model"]["layers"]
        table.insert(1, json.loads(json.dumps(table[0])))
        table[1]["config"]["units"] = 10**12
        table[2]["model"]["calls"].append({"layer": 1, "inputs": [[0, 0]]})
        table[2]["model"]["outputs"].append([2, 0])
        for entry, number in zip(header["model"]["calls"], (2, 3), strict=True):
            entry["layer"] = number

    outer.save(tmp_path / "m")
    assert list(lm.load(tmp_path / "m").parameters) == list(outer.parameters)
    edited(tmp_path / "m", grow)
    with pytest.raises(lm.DataError, match=r"models used as layers have 5\d{12} entries; expected about the file's 16"):
        lm.load(tmp_path / "m")


@pytest.mark.parametrize("config", [None, [], {}, "x", {"layers": 3}, {"layers": [], "inputs": 1}, {"layers": [[]]}])
def test_dicts_that_are_no_models_are_refused(config):
    with pytest.raises(lm.DataError, match=r"from_config: .* expected what model.config\(\) returns"):
        lm.from_config(config)


def test_a_backend_that_is_unknown_is_no_fault_of_the_file(tmp_path):
    model, _, _ = trained()
    model.save(tmp_path / "m")
    for make in (lambda: lm.load(tmp_path / "m", backend="numpi"), lambda: lm.from_config(model.config(), backend="")):
        with pytest.raises(lm.RegistryError, match="backends: unknown name"):
            make()


def test_files_that_are_no_models_are_refused(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(lm.DataError, match="no lamella model, or it is damaged"):
        lm.load(path)
    deep = '{"format":' + "[" * 99_999 + "]" * 99_999 + "}"
    for metadata in (None, {"lamella": "{"}, {"lamella": deep}):
        save_file({"x": np.ones(1)}, path, metadata=metadata)
        with pytest.raises(lm.DataError, match="not one that lamella wrote"):
            lm.load(path)
    save_file({"x": np.ones(1)}, path, metadata={"lamella": "[]"})
    with pytest.raises(lm.DataError, match="format None"):
        lm.load(path)
    save_file({"x": np.ones(1)}, path)
    with pytest.raises(lm.DataError, match="not one that lamella wrote"):
        lm.load(path)
    with pytest.raises(FileNotFoundError):
        lm.load(tmp_path / "nothing")


def test_places_that_cannot_be_written_to_are_named(tmp_path):
    model, _, _ = trained()
    with pytest.raises(FileNotFoundError, match="no such folder; make it first: '.*nowhere'"):
        model.save(tmp_path / "nowhere" / "m")
    with pytest.raises(IsADirectoryError, match="give the name of a file"):
        model.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_inside_a_loaded_one_is_a_graph_and_takes_its_values(tmp_path):
    inner = lm.Sequential([Dense(3)], input_shape=4)
    outer = lm.Sequential([inner, Dense(2)], input_shape=4)
    task = {"loss": "mean_squared_error", "optimizer": "sgd"}
    outer.train_on_batch(np.ones((2, 4)), np.zeros((2, 2)), **task)
    outer.save(tmp_path / "m")
    twin = lm.load(tmp_path / "m")
    graph = twin.layers["sequential_1"]
    with pytest.raises(AttributeError, match=r"Graph has no 'predict'; .*copy_values\(outer\)"):
        graph.predict(np.ones((1, 4)))
    x = lm.Input(4)
    alone = lm.Model(x, graph(x))
    assert alone.copy_values(twin) == ()
    hidden = lm.Model(outer.input_nodes, outer.layers["sequential_1"](*outer.input_nodes))
    hidden.copy_values(outer)
    np.testing.assert_array_equal(alone.predict(np.ones((1, 4))), hidden.predict(np.ones((1, 4))))


class Distributions:
    """Packages that can be installed, each with a plugin of its own: lamella's registry, and these."""

    def __init__(self, monkeypatch):
        self.patch = monkeypatch

    def install(self, *packages):
        points = list(importlib.metadata.entry_points(group="lamella"))
        for name, version, gives in packages:
            module = ModuleType(name)
            for kind, things in gives.items():
                hook = lm.hookimpl(lambda things=things: things)
                hook.__name__ = f"lamella_{kind}"
                setattr(module, hook.__name__, hook)
                for thing in things.values():
                    if not isinstance(thing, lm.ActivationFunction):
                        thing.__module__ = name
            point = SimpleNamespace(name="all", value=name, dist=SimpleNamespace(name=name, version=version))
            point.load = lambda module=module: module
            points.append(point)
        known = registry.Registry(points)
        for name in ("find", "name_of", "entries"):
            self.patch.setattr(registry, name, getattr(known, name))
        self.patch.setattr(lm, "register", known.register)


@pytest.fixture
def distributions(monkeypatch):
    return Distributions(monkeypatch)


def mish(scale):
    return lm.ActivationFunction(lambda xp, x: scale * x, lambda xp, x, y, dy: scale * dy)


def test_activations_are_those_that_were_saved(distributions, tmp_path):
    acme, zeta = (
        ("acme", "1.0", {"activations": {"bent": mish(2.0)}}),
        ("zeta", "1.0", {"activations": {"bent": mish(3.0)}}),
    )
    x = np.ones((1, 4), "float32")
    distributions.install(acme)
    model = lm.Sequential([Dense(2, activation="bent")], input_shape=4)
    expected = model.predict(x)
    model.save(tmp_path / "m")
    loaded = lm.load(tmp_path / "m")
    assert loaded.layers == model.layers
    assert loaded.config() == model.config()
    distributions.install(acme, zeta)  # the plain name could be either
    loaded = lm.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict(x), expected)
    loaded.save(tmp_path / "again")
    np.testing.assert_array_equal(lm.load(tmp_path / "again").predict(x), expected)
    distributions.install(zeta)
    with pytest.raises(lm.RegistryError, match="no installed distribution 'acme' has lamella plugins. Install it"):
        lm.load(tmp_path / "m")
    distributions.install(("acme", "2.0", {"activations": {"bent": mish(2.0)}}))
    with pytest.warns(lm.VersionWarning, match=r"written with acme 1.0; 2.0 is installed"):
        lm.load(tmp_path / "m")


def test_what_is_not_needed_to_predict_need_not_be_there(distributions, tmp_path):
    def small(rng, shape, fan_in, fan_out):
        return np.full(shape, 0.25)

    class Slow(lm.optimizers.SGD):
        pass

    acme = "acme", "1.0", {"initializers": {"small": small}, "optimizers": {"slow": Slow}}
    distributions.install(acme)
    model = lm.Sequential([Dense(2, kernel_initializer="small")], input_shape=4)
    x, y = np.ones((1, 4), "float32"), np.ones((1, 2), "float32")
    model.train_on_batch(x, y, loss="mean_squared_error", optimizer="slow")
    model.save(tmp_path / "m")
    distributions.install()
    with pytest.warns(lm.MistakeWarning, match="the optimizer is left out, and training would start anew.*acme"):
        loaded = lm.load(tmp_path / "m")
    assert loaded.optimizer_state is None
    assert lm.load(tmp_path / "m", optimizer=False).step == 1  # without a warning
    for twin in (loaded, loaded.copy(), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        np.testing.assert_array_equal(twin.predict(x), model.predict(x))
    loaded.save(tmp_path / "again")
    with pytest.raises(lm.RegistryError, match="pip install acme"):
        lm.from_config(loaded.config())
    distributions.install(acme)
    again = lm.load(tmp_path / "again")
    assert again.layers == model.layers
    assert lm.from_config(again.config()).predict(x).tolist() == [[1.0, 1.0]]


def test_an_initializer_with_settings_is_not_needed_either(distributions, tmp_path):
    class Small(lm.initializers.Initializer):
        def __init__(self, value=0.25):
            self.value = value

        def draw(self, rng, shape, fan_in, fan_out):
            return np.full(shape, self.value)

    acme = "acme", "1.0", {"initializers": {"small": Small}}
    distributions.install(acme)
    layers = [Dense(2, kernel_initializer=Small(0.5), bias_initializer="small"), lm.layer("lstm", units=2)]
    layers[1] = lm.layer("lstm", units=2, bias_initializer=Small(0.125))
    model = lm.Sequential(layers, input_shape=(3, 4))
    model.save(tmp_path / "m")
    assert "acme" in lm.inspect(tmp_path / "m").distributions
    distributions.install()
    loaded = lm.load(tmp_path / "m")
    x = np.ones((1, 3, 4), "float32")
    for twin in (loaded, loaded.copy(), copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        np.testing.assert_array_equal(twin.predict(x), model.predict(x))
    assert "acme:small" in repr(loaded.layers["dense_1"])
    loaded.save(tmp_path / "again")
    with pytest.raises(lm.RegistryError, match="pip install acme"):
        lm.from_config(loaded.config())
    distributions.install(acme)
    again = lm.from_config(lm.load(tmp_path / "again").config())
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(again.parameters[name], array)


def test_classes_of_a_script(distributions, tmp_path):
    distributions.install()

    @lm.register("tripled")
    class Tripled(lm.Layer):
        def __init__(self, power=1):
            self.power = power

        def forward_pass(self, ctx, x):
            return 3.0**self.power * x

        def backward_pass(self, ctx, dy):
            return 3.0**self.power * dy

    swish = lm.register("swish_3")(mish(3.0))
    lm.register("halves")(lambda rng, shape, fan_in, fan_out: np.full(shape, 0.5))
    layers = [Tripled(2), Dense(2, activation="swish_3", kernel_initializer="halves"), lm.layer("tripled")]
    model = lm.Sequential(layers, input_shape=2)
    x = np.ones((1, 2))
    assert model.predict(x).tolist() == [[81.0, 81.0]]
    model.save(tmp_path / "m")
    assert lm.load(tmp_path / "m").layers == model.layers
    assert model.config()["layers"][0]["type"] == "script:tripled"
    distributions.install()  # another process
    with pytest.raises(lm.RegistryError, match=r"made known by a script, with @lm.register\('tripled'\)"):
        lm.load(tmp_path / "m")
    given = {"tripled": Tripled, "script:swish_3": swish}
    loaded = lm.load(tmp_path / "m", layers=given)
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    with pytest.raises(lm.DataError, match=r"in a script by @lm.register\('tripled'\) above it"):
        loaded.save(tmp_path / "again")
    with pytest.raises(lm.ArgumentError, match="layers: the file has no 'trippled'. Did you mean 'script:tripled'"):
        lm.load(tmp_path / "m", layers={**given, "trippled": Tripled})
    with pytest.raises(lm.DataError, match="layers: 'tripled': expected a subclass of lamella.Layer, got 3"):
        lm.load(tmp_path / "m", layers={**given, "tripled": 3})


def test_a_name_that_went_to_another_activation_since_is_not_written(distributions, tmp_path):
    distributions.install()
    triple = lm.register("times")(lm.ActivationFunction(lambda xp, x: 3.0 * x, lambda xp, x, y, dy: 3.0 * dy))
    model = lm.Sequential([Dense(2, activation="times")], input_shape=2)
    x = np.ones((1, 2))
    expected = model.predict(x)
    model.save(tmp_path / "m")
    lm.register("times")(lm.ActivationFunction(lambda xp, x: 5.0 * x, lambda xp, x, y, dy: 5.0 * dy))
    for twin in (model.copy(), copy.deepcopy(model)):
        np.testing.assert_array_equal(twin.predict(x), expected)
    before = (tmp_path / "m").read_bytes()
    with pytest.raises(lm.DataError, match="have a name: in a script by lm.register"):
        model.save(tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before
    lm.register("three_times")(triple)
    model.save(tmp_path / "m")
    np.testing.assert_array_equal(lm.load(tmp_path / "m").predict(x), expected)


@pytest.mark.parametrize(
    ("name", "thing", "words"),
    [
        ("dense", Note, "'dense' is lamella's own name among layers"),
        ("Dense", Note, "expected lower case, digits and '_', got 'Dense'"),
        (None, Note, "expected lower case"),
        ("mine", 3, "expected the class of a layer, loss, optimizer, schedule or metric"),
        ("mine", int, "expected the class of a layer"),
    ],
)
def test_what_cannot_be_registered(distributions, name, thing, words):
    distributions.install()
    with pytest.raises(lm.ArgumentError, match=words):
        lm.register(name)(thing)


@pytest.mark.parametrize("form", [1, 2])
def test_files_of_every_format_load_for_ever(form):
    folder = Path(__file__).parent / "files"
    model, held = lm.load(folder / f"format_{form}.lamella"), np.load(folder / f"format_{form}.npz")
    np.testing.assert_allclose(model.predict(held["x"]), held["predicted"], rtol=1e-4, atol=1e-5)
    assert model.step == 3
    assert model.frozen_layers == {"conv2d_1"}
    task = {"loss": "softmax_cross_entropy", "optimizer": lm.optimizers.Adam(lm.schedules.Cosine(0.01, 100))}
    losses = [model.train_on_batch(held["x"], np.arange(6) % 3, **task) for _ in range(2)]
    np.testing.assert_allclose(losses, held["losses"], rtol=1e-4)


def test_every_flipped_bit_is_found(tmp_path):
    """In header and tensors, in the checksum and in the names of what safetensors says about it."""
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    model, _, _ = trained()
    model.save(tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    spaces = 8 + int.from_bytes(whole[:8], "little")
    padding = range(len(whole[:spaces].rstrip()), spaces)  # says nothing
    places = {*rng.integers(0, len(whole), 200).tolist(), *range(8, 40), len(whole) - 1} - {*padding}
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "m").write_bytes(damaged)
        for read in (lm.load, model.copy().load_weights):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    read(tmp_path / "m")
            except (lm.DataError, lm.RegistryError):
                continue
            raise AssertionError(f"byte {place} of {len(whole)}, {read.__name__}: no word")


def test_truncated_files_are_found(tmp_path):
    model, _, _ = trained()
    model.save(tmp_path / "m")
    whole = (tmp_path / "m").read_bytes()
    for size in {0, 7, 8, 9, *range(20, len(whole), 61), len(whole) - 1}:
        (tmp_path / "m").write_bytes(whole[:size])
        with pytest.raises(lm.DataError, match="is no lamella model, or it is damaged"):
            lm.load(tmp_path / "m")


def test_values_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path):
    model, _, _ = trained()
    model.save(tmp_path / "m")
    before = (tmp_path / "m").read_bytes()
    edited(tmp_path / "m", lambda h, a: a["slots/m"].__setitem__(3, np.nan))
    with pytest.raises(lm.DataError, match="'slots/m': expected finite numbers, got 1 value of NaN"):
        lm.load(tmp_path / "m")
    (tmp_path / "m").write_bytes(before)
    edited(tmp_path / "m", lambda h, a: a["parameters/dense_1.bias"].fill(np.inf))
    twin = model.copy()
    for read in (lm.load, twin.load_weights):
        with pytest.raises(lm.DataError, match="'parameters/dense_1.bias': expected finite numbers, got 2 values"):
            read(tmp_path / "m")
    np.testing.assert_array_equal(twin.parameters["dense_1.bias"], model.parameters["dense_1.bias"])
    save_file({"dense_1.kernel": np.full((4, 3), 1e300), "dense_1.bias": np.zeros(3)}, tmp_path / "w")
    with pytest.raises(lm.DataError, match="beyond the range of float32"):
        lm.Sequential([Dense(3)], input_shape=4).load_weights(tmp_path / "w")
    save_file({"dense_1.bias": np.zeros(3), "parameters/dense_1.bias": np.ones(3)}, tmp_path / "w")
    with pytest.raises(lm.DataError, match="are two arrays of one name"):
        lm.Sequential([Dense(3)], input_shape=4).load_weights(tmp_path / "w", {"*.kernel": None})


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder"), ("/dev/null", "a device")):
        with pytest.raises((lm.DataError, IsADirectoryError), match=f"expected a file, got {kind}|Is a directory"):
            lm.load(path)
    with pytest.raises(OSError, match="File name too long"):
        lm.load(tmp_path / ("n" * 300))


def mutated(value, rng, junk):
    """Plain data with one entry, somewhere, replaced, left out, or doubled."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        copied = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.15:
            del copied[key]
        elif isinstance(value, list) and rng.random() < 0.15:
            copied.insert(key, value[key])
        else:
            copied[key] = mutated(value[key], rng, junk)
        return copied
    return junk[int(rng.integers(len(junk)))]


def test_whatever_a_header_says_there_is_a_word_or_a_model(tmp_path):
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    trained()[0].save(tmp_path / "m")
    size = int.from_bytes((tmp_path / "m").read_bytes()[:8], "little")
    text = json.loads((tmp_path / "m").read_bytes()[8 : 8 + size])["__metadata__"]["lamella"]
    arrays, header = load_file(tmp_path / "m"), json.loads(text)
    junk = [None, True, -1, 0, 1.5, 2**70, "", "x", "lamella:dense", "os:system", [], {}, [[0, 0]], {"layer": 0}]
    junk += [{"word": "lamella:relu", "kind": "activations", "version": None}, {"float": "nan"}, {"dict": [[1, 2]]}]
    refused = 0
    for _ in range(200):
        write_signed(tmp_path / "m", mutated(header, rng, junk), arrays)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                loaded = lm.load(tmp_path / "m")
                loaded.predict(np.ones((1, *loaded.input_specs[0].shape[1:])))
            except lm.LamellaError:
                refused += 1
        assert main(["inspect", str(tmp_path / "m")]) in (0, 2)
    assert refused > 100


def test_inspect_tells_what_a_file_holds(tmp_path, capsys):
    model, _, _ = trained()
    model.save(tmp_path / "m")
    found = lm.inspect(tmp_path / "m")
    assert (found.format, found.kind, found.dtype, found.step) == (2, "Sequential", "float32", model.step)
    assert [line.type for line in found.layers] == ["lamella:conv2d", "lamella:flatten", "lamella:dense"]
    assert found.parameters == sum(array.size for array in model.parameters.values())
    assert found.distributions == {"lamella": lm.__version__}
    assert found.arrays["parameters/dense_1.bias"] == model.parameters["dense_1.bias"].shape
    assert main(["inspect", str(tmp_path / "m")]) == 0
    told = capsys.readouterr().out
    for words in (
        "Sequential on (N, ",
        "conv2d",
        "activation=",
        "format 2",
        f"trained for {model.step} step",
        "needs lamella",
    ):
        assert words in told
    (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes()[:-1])
    assert main(["inspect", str(tmp_path / "m")]) == 2
    assert "damaged" in capsys.readouterr().err


def test_inspect_needs_no_plugin(distributions, tmp_path, capsys):
    distributions.install(("acme", "1.0", {"activations": {"bent": mish(2.0)}}))
    lm.Sequential([Dense(2, activation="bent")], input_shape=4).save(tmp_path / "m")
    distributions.install()
    assert lm.inspect(tmp_path / "m").distributions == {"lamella": lm.__version__, "acme": "1.0"}
    assert main(["inspect", str(tmp_path / "m")]) == 0
    assert "needs lamella 0.1.0, acme 1.0 (not installed)" in capsys.readouterr().out.replace(lm.__version__, "0.1.0")


def test_an_array_that_a_header_names_many_times_is_read_once(tmp_path):
    path, times = tmp_path / "run", 3000
    model = lm.Sequential([Dense(3)], input_shape=4)
    model.fit(np.zeros((4, 4)), np.zeros((4, 3)), loss="mean_squared_error", optimizer="sgd", checkpoint=path)

    def change(header, arrays):
        arrays["more/0"] = np.zeros(250_000, "float32")
        header["training"]["dict"].append(["many", [{"tensor": "more/0"}] * times])

    edited(path, change)
    tracemalloc.start()
    lm.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("held", [{"dict": [[1]]}, {"dict": [[["a"], 1]]}, {"float": "many"}])
def test_a_best_value_that_cannot_be_read_is_told(tmp_path, held):
    model = lm.Sequential([Dense(3)], input_shape=4)
    model.save(tmp_path / "best")
    edited(tmp_path / "best", lambda header, arrays: header.update(best=held))
    with pytest.raises(lm.DataError, match="load .*best: this is no configuration"):
        model.fit(
            np.zeros((4, 4)),
            np.zeros((4, 3)),
            loss="mean_squared_error",
            optimizer="sgd",
            callbacks=[lm.callbacks.Checkpoint(tmp_path / "best", monitor="loss", save_best_only=True)],
        )


def test_slots_may_overflow(tmp_path):
    """The step of a parameter is 0 then; a training that does so can be saved."""
    model = lm.Sequential([Dense(1)], input_shape=2)
    x = np.full((2, 2), 1e25, "float32")
    model.train_on_batch(x, np.zeros((2, 1)), loss="mean_absolute_error", optimizer=lm.optimizers.RMSprop(0.01))
    assert np.isinf(model.optimizer_state.slots["v"]).any()
    model.save(tmp_path / "m")
    assert np.isinf(lm.load(tmp_path / "m").optimizer_state.slots["v"]).any()


def test_a_file_that_is_cut_off_while_it_is_read_is_what_it_was(tmp_path, monkeypatch):
    model, _, _ = trained()
    model.save(tmp_path / "m")
    real = archive._header

    def cut(where, file):
        os.truncate(tmp_path / "m", 10)
        return real(where, file)

    monkeypatch.setattr(archive, "_header", cut)
    loaded = lm.load(tmp_path / "m")
    for name, array in model.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], array)


def test_names_given_to_load_are_strings(tmp_path):
    trained()[0].save(tmp_path / "m")
    with pytest.raises(lm.ArgumentError, match="load: layers: expected names as keys, got 3"):
        lm.load(tmp_path / "m", layers={3: Dense})


def test_a_class_that_was_registered_again_is_told(distributions, tmp_path):
    distributions.install()

    def cell():
        @lm.register("twice")
        class Twice(lm.Layer):
            def forward_pass(self, ctx, x):
                return 2.0 * x

        return Twice

    model = lm.Sequential([cell()()], input_shape=2)
    cell()
    with pytest.raises(lm.DataError, match="Twice was registered, and another class of its name has been since"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_missing_array_tells_the_mapping_that_leaves_out_all_that_are_missing(tmp_path):
    layers = [Dense(4).named("body"), Dense(3).named("neck"), Dense(3).named("head")]
    model = lm.Sequential(layers, input_shape=4)
    held = {"head.kernel": np.ones((3, 3), "float32"), "head.bias": np.ones(3, "float32")}
    save_file({**held, "neck.bias": held["head.bias"]}, tmp_path / "w")
    with pytest.raises(lm.DataError, match="no array 'body.kernel'") as told:
        model.load_weights(tmp_path / "w")
    assert "Did you mean" not in str(told.value)  # the head's arrays have their places, and other shapes
    mapping = {"body.*": None, "neck.kernel": None}
    assert f"Likely fix: mapping={mapping} leaves these as they are" in str(told.value)
    model.load_weights(tmp_path / "w", mapping)
    assert model.parameters["head.bias"].tolist() == [1.0, 1.0, 1.0]
    save_file({**held, "bodykernel": np.ones((4, 4), "float32")}, tmp_path / "w")
    with pytest.raises(lm.DataError, match="Did you mean 'bodykernel'"):
        model.load_weights(tmp_path / "w")
