"""Random configurations and graphs of layers: a model that works, or one clear error."""

from __future__ import annotations

import copy
import json
import os
import random
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from nonsense import in_time, on_purpose, stored

import lamella as lm
import lamella_onnx
from lamella_layers import LSTM, Add, BatchNormalization, Conv2D, Dense, Embedding, Flatten

TRIED = int(os.environ.get("LAMELLA_NONSENSE") or 60)
SEED = int(os.environ.get("LAMELLA_SEED") or random.randrange(1 << 30))
SPECIMENS = [one for one in lm.registry.specimens() if isinstance(one.subject, lm.Layer)]
LAYERS = [one.subject for one in SPECIMENS]

bounded = settings(
    max_examples=TRIED, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)
sizes = st.integers(1, 6)
numbers = st.one_of(st.integers(-3, 9), st.sampled_from([2**31, 2**63, 10**30]), st.floats())  # none takes much memory
words = st.one_of(
    st.text(max_size=4), st.sampled_from(["lamella:dense", "layers", "float64", "T", "N", "relu", "same"])
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def _tells_its_seed():
    print(f"LAMELLA_SEED={SEED}")


def check(error, start=""):
    """See that lamella raised an error on purpose."""
    assert on_purpose(error)
    assert str(error).startswith(start)


def configurations():
    """Configurations of models of every sort: chains, branches, shared and nested ones."""
    x, ids = lm.Input((3, 6, 6)), lm.Input(("T",), "int64", low=0, high=9)
    shared, inner = Dense(2), lm.Sequential([Dense(3), BatchNormalization()], input_shape=4)
    a, b = lm.Input(4, name="a"), lm.Input(4, name="b")
    models = [
        inner,
        lm.Sequential([Conv2D(2, 3, activation="relu"), Flatten(), Dense(2)], input_shape=(3, 6, 6)),
        lm.Model(x, Flatten()(x)),
        lm.Model(ids, LSTM(2)(Embedding(9, 3)(ids))),
        lm.Model((a, b), Add()(shared(a), shared(b))),
        lm.Model(a, Dense(2).frozen()(inner(a))),
    ]
    return [json.loads(json.dumps(model.config())) for model in models]


CONFIGURATIONS = configurations()


def parts(config):
    """All values within a configuration."""
    inner = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    return [config, *(part for one in inner for part in parts(one))]


@st.composite
def damaged(draw):
    """A configuration with a few of its values changed, added or gone."""
    config = copy.deepcopy(draw(st.sampled_from(CONFIGURATIONS)))
    for _ in range(draw(st.integers(1, 3))):
        at = config
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 4)):
                at = at[key]
                continue
            match draw(st.sampled_from(["swap", "change", "drop", "add"])):
                case "swap":  # for a value that stands elsewhere
                    at[key] = copy.deepcopy(draw(st.sampled_from(parts(config))))
                case "change":
                    at[key] = draw(plain)
                case "drop":
                    del at[key]
                case "add" if isinstance(at, dict):
                    at[draw(words)] = draw(plain)
                case "add":
                    at.append(draw(plain))
            break
    return config


@seed(SEED)
@bounded
@given(st.one_of(damaged(), damaged(), plain))
def test_a_configuration_gives_a_model_or_says_what_is_wrong_with_it(config):
    """``LAMELLA_NONSENSE=10000 pytest`` tries more of them; ``LAMELLA_SEED`` repeats a run."""
    before = copy.deepcopy(config)
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore", lm.VersionWarning)
        try:
            model = lm.from_config(config)
        except (lm.DataError, lm.RegistryError) as error:
            check(error, "from_config")
            return
        finally:
            assert repr(config) == repr(before)  # equal, NaN too
        again = lm.from_config(model.config())
    assert again.config() == model.config()
    assert {name: array.shape for name, array in again.parameters.items()} == {
        name: array.shape for name, array in model.parameters.items()
    }


@st.composite
def graphs(draw):
    """The specs of a specimen's inputs, now and then of other sizes, its layer, and steps: which layers are tried next,
    each with which of the nodes that there are, counted from the newest."""
    specimen = draw(st.sampled_from(SPECIMENS))
    other = st.sampled_from([False] * 11 + [True])
    shapes = [tuple(draw(sizes) if draw(other) else n for n in spec.shape[1:]) for spec in specimen.inputs]
    inputs = [(shape, spec.dtype, spec.low, spec.high) for shape, spec in zip(shapes, specimen.inputs, strict=True)]
    places = st.one_of(st.just([0]), st.just([0]), st.lists(st.integers(0, 3), min_size=1, max_size=3))
    tries = st.lists(st.tuples(st.sampled_from(LAYERS), places), min_size=4, max_size=8)
    return inputs, specimen.subject, draw(st.lists(tries, min_size=1, max_size=6))


@pytest.mark.filterwarnings("ignore::lamella.MistakeWarning")  # such as a softmax over one value
@seed(SEED)
@bounded
@given(graphs())
def test_layers_on_nodes_give_a_model_that_predicts_or_say_why_not(graph):
    """``LAMELLA_NONSENSE=10000 pytest`` tries more of them; ``LAMELLA_SEED`` repeats a run."""
    inputs, first, steps = graph
    nodes = [lm.Input(shape, dtype, low=low, high=high) for shape, dtype, low, high in inputs]
    needs = {id(node): [node] for node in nodes}  # the inputs that each node depends on
    with in_time(), np.errstate(all="ignore"):
        for tries in [[(first, range(len(nodes)))], *steps]:
            for layer, places in tries:
                chosen = [nodes[-1 - place % len(nodes)] for place in places]
                if layer is first:
                    chosen.reverse()
                try:
                    made = layer(*chosen)
                except lm.GraphError as error:
                    check(error)
                    continue
                made = made if isinstance(made, tuple) else (made,)
                used = [one for node in chosen for one in needs[id(node)]]
                needs |= {id(node): list(dict.fromkeys(used)) for node in made}
                nodes += made
                break
        try:
            model = lm.Model(needs[id(nodes[-1])], nodes[-1])
        except lm.GraphError as error:
            check(error)
            return
        arrays = stored(model.input_specs)
        try:
            predicted = model.predict(tuple(arrays) if len(arrays) > 1 else arrays[0])
        except lm.LayerError as error:  # what only the data shows, such as a sequence that is too long
            check(error.__cause__)
            return
        except lm.DataError as error:
            check(error)
            return
    (spec,) = model.output_specs
    assert predicted.dtype == spec.dtype
    assert predicted.shape == tuple(2 if size == "N" else 3 if isinstance(size, str) else size for size in spec.shape)
    assert lm.from_config(model.config()).config() == model.config()
    comes_back(model, arrays)


def comes_back(model, arrays):
    """See that a model is the same from its file, and in onnxruntime where it can be exported."""
    given = tuple(arrays) if len(arrays) > 1 else arrays[0]
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        model.save(f"{folder}/m")
        loaded = lm.load(f"{folder}/m")
        assert loaded.config() == model.config()
        np.testing.assert_array_equal(loaded.predict(given), model.predict(given))
        if random.Random(repr(model.config())).random() > 0.2:  # takes its time
            return
        try:
            lamella_onnx.export(model, f"{folder}/m.onnx")
        except lm.LamellaError as error:  # what float32 or the operators of ONNX can't hold
            check(error)
            return
        assert lamella_onnx.verify(f"{folder}/m.onnx").agrees


@st.composite
def bytes_of_files(draw):
    """A saved model with a few of its bytes changed, cut out, doubled or cut off."""
    content = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 3))):
        at, size = draw(st.integers(0, max(0, len(content) - 1))), draw(st.integers(1, 40))
        match draw(st.sampled_from(["flip", "write", "drop", "double", "end"])):
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "write":
                content[at : at + size] = draw(st.binary(max_size=size))
            case "drop":
                del content[at : at + size]
            case "double":
                content[at:at] = content[at : at + size]
            case "end":
                del content[at:]
    return bytes(content)


def files():
    """Models as files, of both formats."""
    folder = Path(__file__).parent / "files"
    return [(folder / f"format_{form}.lamella").read_bytes() for form in (1, 2)]


FILES = files()


@seed(SEED)
@bounded
@given(bytes_of_files())
def test_a_damaged_file_gives_one_error(content):
    """A file of format 1, which has no checksum, may give a model; ``LAMELLA_NONSENSE=10000`` tries more of them."""
    with tempfile.TemporaryDirectory() as folder, in_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, "m")
        path.write_bytes(content)
        for read in (lm.load, lm.inspect):
            try:
                read(path)
            except (lm.DataError, lm.RegistryError) as error:
                check(error, f"{'load' if read is lm.load else 'inspect'} {path}")
            else:
                assert content in FILES or b'\\"format\\": 1' in content
