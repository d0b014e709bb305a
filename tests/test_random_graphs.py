"""Random configurations and graphs of layers: a model that works, or one clear error."""

from __future__ import annotations

import copy
import json
import os
import random
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from nonsense import in_time, on_purpose, stored

import lamella as lm
from lamella_layers import LSTM, Add, BatchNormalization, Conv2D, Dense, Embedding, Flatten

TRIED = int(os.environ.get("LAMELLA_NONSENSE") or 60)
SEED = int(os.environ.get("LAMELLA_SEED") or random.randrange(1 << 30))
LAYERS = [one.subject for one in lm.registry.specimens() if isinstance(one.subject, lm.Layer)]

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
            match draw(st.sampled_from(["change", "change", "drop", "add"])):
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
    """Inputs, and steps: which layer is called with which of the nodes that there are."""
    inputs = draw(st.lists(st.tuples(shapes(), st.sampled_from([None, None, "int64", "bool"])), min_size=1, max_size=3))
    pick = st.tuples(st.sampled_from(LAYERS), st.lists(st.integers(0, 50), min_size=1, max_size=3))
    return inputs, draw(st.lists(pick, max_size=8))


def shapes():
    return st.lists(st.one_of(sizes, sizes, st.just("T")), max_size=4).map(tuple)


@seed(SEED)
@bounded
@given(graphs())
def test_layers_on_nodes_give_a_model_that_predicts_or_say_why_not(graph):
    """``LAMELLA_NONSENSE=10000 pytest`` tries more of them; ``LAMELLA_SEED`` repeats a run."""
    given_inputs, steps = graph
    inputs = [lm.Input(shape, dtype) for shape, dtype in given_inputs]
    nodes = list(inputs)
    with in_time(), np.errstate(all="ignore"):
        for layer, places in steps:
            try:
                made = layer(*(nodes[place % len(nodes)] for place in places))
            except lm.GraphError as error:
                check(error)
                continue
            nodes += made if isinstance(made, tuple) else (made,)
        try:
            model = lm.Model(inputs, nodes[-1])
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
    assert predicted.shape == tuple({"N": 2, "T": 3}.get(size, size) for size in spec.shape)
    assert lm.from_config(model.config()).config() == model.config()
