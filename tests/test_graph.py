"""Graphs: names, shapes, sharing, composites, nested models, and the errors that say what does not fit."""

import copy
import pickle
import sys

import numpy as np
import pytest
from sample_layers import Add

import lamella as lm
from lamella.terminal import plain
from lamella_layers import Activation, BatchNormalization, Conv2D, Dense, Dropout, Flatten, MaxPooling2D, PReLU


class Split(lm.Layer):
    """Two outputs, and dx of both."""

    def build(self, declare, x):
        half = x.shape[-1] // 2
        return x.replace(shape=("N", half)), x.replace(shape=("N", x.shape[-1] - half))

    def forward_pass(self, ctx, x):
        half = x.shape[-1] // 2
        return x[:, :half], x[:, half:]

    def backward_pass(self, ctx, da, db):
        return ctx.xp.concat([da, db], axis=1)


class Shapeless(lm.Layer):
    def build(self, declare, x):
        declare.parameter("bias", x.shape[1], "zeros")

    def forward_pass(self, ctx, x):
        return x


class Twice(lm.Layer):
    """A composite that uses one inner layer twice and one under its own name."""

    def __init__(self, units):
        self.units = units

    def expand(self, x):
        inner = Dense(self.units)
        return Dense(self.units).named("")(inner(inner(x)))


def image_model(**options):
    layers = [Conv2D(4, 3, activation="relu"), MaxPooling2D(), Flatten(), Dropout(0.5), Dense(10)]
    return lm.Sequential(layers, input_shape=(1, 8, 8), **options)


def test_sequential_names_shapes_and_parameters():
    model = image_model()
    assert list(model.layers) == ["conv2d_1", "max_pooling2d_1", "flatten_1", "dropout_1", "dense_1"]
    assert list(model.parameters) == ["conv2d_1.kernel", "conv2d_1.bias", "dense_1.kernel", "dense_1.bias"]
    assert model.parameters["conv2d_1.kernel"].shape == (4, 1, 3, 3)
    assert model.output_specs == (lm.ArraySpec(("N", 10)),)
    assert (model.input_names, model.output_names) == (("input_1",), ("dense_1",))
    assert "-> (N, 10) float32, 410 parameters" in repr(model)


def test_names_given_to_layers_and_nodes():
    x = lm.Input((4,), name="pixels")
    y = Dense(3).named("head")(Dense(4)(x, name="body"))
    model = lm.Model(x, Dense(2)(y))
    assert list(model.layers) == ["body", "head", "dense_1"]
    assert list(model.parameters)[::2] == ["body.kernel", "head.kernel", "dense_1.kernel"]
    assert model.input_names == ("pixels",)


def test_seeds_decide_initial_values():
    one, same, other = (image_model(seed=seed).parameters["dense_1.kernel"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_shared_layers_add_gradients_and_appear_once():
    shared = Dense(3)
    a, b = lm.Input((4,)), lm.Input((4,))
    model = lm.Model((a, b), Add()(shared(a), shared(b)), dtype="float64")
    assert list(model.parameters) == ["dense_1.kernel", "dense_1.bias"]
    x = np.random.default_rng(0).normal(size=(2, 5, 4))
    y = np.zeros((5, 3))
    _, gradients, dx = model.gradients((x[0], x[1]), y, loss="mean_squared_error")
    single = lm.Sequential([Dense(3)], input_shape=4, dtype="float64")
    for name in single.parameters:
        single.parameters[name] = model.parameters[name]
    residual = single.predict(x[0]) + single.predict(x[1])
    expected = (x[0] + x[1]).T @ (2 * residual / residual.size)
    np.testing.assert_allclose(gradients["dense_1.kernel"], expected, rtol=1e-12)
    np.testing.assert_allclose(dx[0], dx[1])


def test_shared_composites_share_their_inner_layers():
    twice = Twice(4)
    a, b = lm.Input((4,)), lm.Input((4,))
    model = lm.Model((a, b), Add()(twice(a), twice(b)))
    assert [name for name in model.parameters if "kernel" in name] == ["twice_1/dense_1.kernel", "twice_1.kernel"]
    names = [operation.name for operation in model.graph.operations]
    assert len(set(names)) == len(names) == 7
    x = np.ones((2, 4), "float32")
    np.testing.assert_allclose(model.predict((x, 0 * x)), model.predict((0 * x, x)), rtol=1e-6)


def test_inner_layers_of_an_activation_argument():
    model = lm.Sequential([Dense(3, activation="relu")], input_shape=4)
    assert [operation.name for operation in model.graph.operations] == ["dense_1", "dense_1/activation"]
    assert list(model.parameters) == ["dense_1.kernel", "dense_1.bias"]
    assert list(model.layers) == ["dense_1"]


def test_several_outputs_and_an_output_that_nobody_uses():
    x = lm.Input((5,))
    first, _ = Split()(x)
    model = lm.Model(x, Dense(2)(first), dtype="float64")
    data = np.random.default_rng(1).normal(size=(3, 5))
    _, _, dx = model.gradients(data, np.zeros((3, 2)), loss="mean_squared_error")
    assert np.all(dx[:, :2] != 0)
    assert np.all(dx[:, 2:] == 0)
    both = lm.Model(x, Split()(x))
    assert both.output_names == ("split_1.0", "split_1.1")
    a, b = both.predict(data)
    assert (a.shape, b.shape) == ((3, 2), (3, 3))


def test_models_used_as_layers_bring_their_values():
    body = lm.Sequential([Dense(4, activation="tanh"), Dense(3)], input_shape=4, seed=5).freeze("dense_2")
    x = lm.Input((4,))
    model = lm.Model(x, Dense(2)(body(x)))
    assert list(model.parameters)[:2] == ["sequential_1/dense_1.kernel", "sequential_1/dense_1.bias"]
    np.testing.assert_array_equal(model.parameters["sequential_1/dense_2.kernel"], body.parameters["dense_2.kernel"])
    assert model.frozen_layers == {"sequential_1/dense_2"}
    square = lm.Sequential([Dense(4)], input_shape=4)
    twice = lm.Model(x, square(square(x)))
    assert list(twice.parameters) == ["sequential_1/dense_1.kernel", "sequential_1/dense_1.bias"]


@pytest.mark.parametrize("duplicate", [lambda m: lm.from_config(m.config()), copy.deepcopy, lambda m: m.copy(),
                                       lambda m: pickle.loads(pickle.dumps(m))])  # fmt: skip
def test_copies_keep_structure_and_sharing(duplicate):
    shared, body = Dense(4), lm.Sequential([Dense(4, activation="selu").named("in")], input_shape=4)
    a, b = lm.Input((4,), name="a"), lm.Input((4,))
    y = Add()(shared(a), shared(b))
    model = lm.Model((a, b), (Dense(2, activation="softmax")(body(y)), y), seed=3).freeze("dense_1")
    twin = duplicate(model)
    assert twin.config() == model.config()
    assert list(twin.parameters) == list(model.parameters)
    assert twin.frozen_layers == model.frozen_layers
    for name, value in model.parameters.items():
        if not name.startswith("sequential"):  # an inner model's own values are no part of the configuration
            np.testing.assert_array_equal(twin.parameters[name], value)


def test_to_another_dtype_and_backend():
    model = image_model()
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 8))
    wide, strict = model.copy(dtype="float64"), model.copy(backend="strict")
    assert wide.predict(x).dtype == np.float64
    np.testing.assert_allclose(wide.predict(x), model.predict(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(strict.predict(x), model.predict(x), rtol=1e-4, atol=1e-5)
    assert (model.to("strict").backend, model.to("numpy").backend) == ("strict", "numpy")


def test_freezing_by_pattern():
    model = image_model()
    assert model.freeze("conv2d_*").frozen_layers == {"conv2d_1"}
    x, y = np.ones((2, 1, 8, 8)), np.array([1, 2])
    _, gradients, _ = model.gradients(x, y, loss="softmax_cross_entropy")
    assert set(gradients) == {"dense_1.kernel", "dense_1.bias"}
    before = model.parameters["conv2d_1.kernel"]
    model.train_on_batch(x, y, loss="softmax_cross_entropy", optimizer="adam")
    np.testing.assert_array_equal(model.parameters["conv2d_1.kernel"], before)
    assert not model.unfreeze().frozen_layers
    with pytest.raises(lm.ArgumentError, match=r"no layer is called 'conv_\*'; there are conv2d_1"):
        model.freeze("conv_*")
    for names in ((["conv2d_1", "dense_1"],), ("conv2d_1", "dense_1")):
        with pytest.raises(lm.ArgumentError, match=r"one: model.freeze\('conv2d_1'\).freeze\('dense_1'\)$"):
            model.freeze(*names)
    with pytest.raises(lm.ArgumentError, match=r"unfreeze: pattern: expected a name such as 'conv2d_\*', got 5$"):
        model.unfreeze(5)
    assert not model.frozen_layers


def test_summary_shows_groups_shared_and_frozen_marks_and_totals(capsys):
    shared = Dense(4)
    x = lm.Input((4,))
    model = lm.Model(x, Add()(shared(x), Twice(4)(shared(x)))).freeze("twice_1/dense_1")
    model.summary()
    text = capsys.readouterr().out
    totals = "40 trainable parameters, 20 frozen; 240 bytes"
    marks = (
        "dense_1#2 ",
        "shared with dense_1",
        "frozen",
        "   dense_1 ",
        "   dense_1#2 ",
        "dense_1, twice_1",
        totals,
    )
    for words in ("layer", "output shape", "connected to", *marks):
        assert words in text, words


def test_summary_of_a_model_used_twice_has_one_row_for_each_use(capsys):
    square, x = lm.Sequential([Dense(4, activation="relu")], input_shape=4), lm.Input((4,))
    lm.Model(x, square(square(x))).summary()
    assert capsys.readouterr().out.splitlines()[4:-2] == [
        " input_1 (Input)  (N, 4)",
        " sequential_1",
        "   dense_1        (N, 4)                20  input_1",
        "     activation   (N, 4)                    dense_1",
        " sequential_1#2                                           shared with sequential_1",
        "   dense_1        (N, 4)                    sequential_1  shared",
        "     activation   (N, 4)                    dense_1       shared",
    ]


def test_summary_fits_a_terminal_without_breaking_shapes(capsys, monkeypatch):
    tokens = lm.Input((12,), "int64", name="tokens", low=0, high=9)
    x = lm.layer("embedding", input_dim=9, output_dim=32)(tokens)
    model = lm.Model(tokens, Add()(x, lm.layer("multi_head_attention", num_heads=4, key_dim=8)(x, x, x)))
    monkeypatch.setenv("COLUMNS", "72")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    model.summary()
    text = plain(capsys.readouterr().out)
    assert max(map(len, text.splitlines())) <= 72
    assert text.count("(N, 12, 32)") == 7
    for words in ("tokens (Input) ", "(N, 12) int64", "   query (Dense) ", "query, value, key", "multi_head_"):
        assert words in text, words


def test_parameters_are_numpy_copies_that_can_be_assigned():
    model = lm.Sequential([Dense(3)], input_shape=4)
    kernel = model.parameters["dense_1.kernel"]
    with pytest.raises(ValueError, match="read-only"):
        kernel[0, 0] = 1.0
    model.parameters["dense_1.kernel"] = np.ones((4, 3))
    assert model.parameters["dense_1.kernel"].sum() == 12
    with pytest.raises(lm.DataError, match=r"expected shape \(4, 3\), got \(3, 4\)"):
        model.parameters["dense_1.kernel"] = np.ones((3, 4))
    with pytest.raises(KeyError, match=r"Did you mean 'dense_1.kernel'"):
        model.parameters["dense_1.kernal"]


def node(shape=(4,)):
    return lm.Input(shape)


def headless(method):
    """A layer one of whose methods has forgotten its first argument."""

    def passes(self, ctx, x):
        return x

    def forgets(self, x):
        return x

    methods = dict.fromkeys(("build", "forward_pass", "backward_pass"), passes)
    return type("Headless", (lm.Layer,), methods | {method: forgets})()


class Nothing(lm.Layer):
    def build(self, declare, x):
        return x.replace(shape=("N", 0))

    def forward_pass(self, ctx, x):
        return x[:, :0]

    def backward_pass(self, ctx, dy):
        raise AssertionError


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dense(3)(np.zeros((2, 4))), "called with ndarray; expected nodes .* build a model"),
        (lambda: Add()([node(), node()]), r"pass nodes one by one: layer\(a, b\)"),
        (lambda: Add()(node(), node((5,))), r"called with \(N, 4\) float32 and \(N, 5\) float32: expected two inputs"),
        (lambda: Add()(node()), "1 node: missing .* 'b'; give Add.. as many nodes as its build takes"),
        (lambda: lm.Sequential([Shapeless()], input_shape=4), r"shape: expected a tuple of sizes, got 4; .* \(4,\)"),
        (lambda: Dense(3)(), "called with no nodes"),
        (lambda: Dense(3)(node(), node()), "called with 2 nodes: too many .* as many nodes as its expand takes"),
        (lambda: headless("build")(node()), r"called with 1 node: too many .* def build\(self, declare, x\)"),
        (lambda: headless("forward_pass")(node()), r"Headless.forward_pass, .* def forward_pass\(self, ctx, x\)"),
        (lambda: headless("backward_pass")(node()), r"def backward_pass\(self, ctx, x\)"),
        (lambda: node() + node(), r"lm.layer\('add'\)\(a, b\), and not by operators"),
        (lambda: 2.0 * node(), "and not by operators"),
        (
            lambda: Dense(3, kernel_initializer="he")(node()),
            "Dense.* initializer of 'kernel': .*Did you mean 'he_normal'",
        ),
        (lambda: lm.Input((4,), "int"), "Input: dtype: .* Did you mean 'int64'"),
        (
            lambda: lm.Sequential([Dense(3, kernel_initializer=lambda shape: None)], input_shape=4),
            r"dense_1.kernel: .* failed with TypeError: .* Expected a function \(rng, shape, fan_in, fan_out\) ->",
        ),
        (
            lambda: lm.Sequential([Dense(3, kernel_initializer=lambda *_: "x")], input_shape=4),
            r"dense_1.kernel: .* gave shape \(\), <U1; expected numeric values of shape \(4, 3\)",
        ),
        (
            lambda: lm.Sequential([PReLU(alpha_initializer="he_normal")], input_shape=4),
            r"prelu_1.alpha: he_normal: fan_in and fan_out don't follow from shape \(4,\); use .* 'uniform', 'zeros'",
        ),
        (lambda: Flatten()(node((3, 0))), r"Flatten\(\), called with .*: expected sizes of 1 or more, got \(N, 3, 0\)"),
        (
            lambda: Nothing()(node()),
            r"Nothing\(\), called with \(N, 4\) float32: expected sizes of 1 or more, got \(N, 0\)",
        ),
        (lambda: Dense(3)(node(), name="a/b"), "Dense: name: expected letters, digits"),
        (lambda: lm.Input((4,), name="[x]"), "Input: name: expected letters, digits"),
        (lambda: lm.Input(("N", 4)), "the batch axis 'N' is added in front; leave it out"),
        (lambda: lm.Input((4,), "int64", low=9, high=5), "expected low < high, got low=9 and high=5"),
        (lambda: lm.Sequential([Dense(3).named("")], input_shape=4), "the empty name stands for the composite's own"),
        (lambda: lm.Sequential(Dense(3), input_shape=4), "expected a list of at least one layer"),
        (
            lambda: lm.Model(x := lm.Input((4,), name="a"), Dense(3)(x, name="a")),
            "two nodes .* are called 'a'",
        ),
        (lambda: lm.Sequential([Dense(3, kernel_initializer=np.eye(4))], input_shape=4), "initializer: expected a reg"),
        (lambda: Conv2D(3, 3)(node((8, 8))), r"Conv2D.*called with \(N, 8, 8\) float32: .*channels"),
        (lambda: lm.Model(node(), Dense(3)(lm.Input(4, name="cat"))), "input 'cat'>, which is not among the inputs"),
        (lambda: lm.Model((x := node(), lm.Input(4, name="cat")), Dense(3)(x)), "no output depends on input .* 'cat'>"),
        (lambda: lm.Model(x := node(), (y := Dense(3)(x), y)), "same node stands twice"),
        (lambda: lm.Sequential([Dense(3).named("a"), Dense(3).named("a")], input_shape=4), "two layers .* 'a'"),
        (lambda: lm.Sequential([lm.Layer()], input_shape=4), "defines neither forward_pass nor expand"),
        (lambda: lm.Sequential([Dense], input_shape=4), r"expected a layer, got .* did you mean Dense\(...\)"),
        (lambda: lm.Sequential([], input_shape=4), "at least one layer"),
        (lambda: lm.Sequential([Dense(3)], input_shape=(None,)), "name an axis of unknown size"),
        (lambda: lm.Sequential([Split()], input_shape=4), "has 2 outputs"),
        (lambda: lm.Sequential([Dense(3)], input_shape=4, dtype="float16"), "dtype: expected one of 'float32'"),
        (lambda: lm.Sequential([Dense(3)], input_shape=4, seed=-1), "seed: expected an int of at least 0, got -1"),
        (lambda: lm.Sequential([Dense(3)], input_shape=4, backend="numpi"), "Did you mean 'numpy'"),
        (lambda: lm.Sequential([Dense(3, activation="rellu")], input_shape=4), "Did you mean 'relu'"),
        (lambda: lm.Sequential([Dense(3)], input_shape=4)(node((5,))), r"called with \(N, 5\) float32; expected"),
    ],
)
def test_what_does_not_fit_says_why(make, words):
    with pytest.raises((lm.GraphError, lm.ArgumentError, lm.RegistryError, TypeError), match=words):
        make()


def test_a_layer_with_state_stands_at_one_node():
    class Counter(lm.Layer):
        def build(self, declare, x):
            declare.state("count", (), "zeros")
            return x

        def forward_pass(self, ctx, x):
            return x

    counter, x = Counter(), node()
    with pytest.raises(lm.GraphError, match="has state .* may stand at one node only"):
        lm.Model(x, counter(counter(x)))


def test_activation_objects_need_no_registration():
    square = lm.ActivationFunction(lambda xp, x: x * x, lambda xp, x, y, dy: 2.0 * x * dy)
    model = lm.Sequential([Activation(square)], input_shape=3)
    assert model.predict([[1.0, 2.0, 3.0]]).tolist() == [[1.0, 4.0, 9.0]]


def test_layers_shared_with_an_inner_model_keep_its_values():
    shared = Dense(4)
    a, z = lm.Input((4,)), lm.Input((4,))
    inner = lm.Model(a, Twice(4)(shared(a)), seed=7).freeze("twice_1")
    model = lm.Model(z, inner(shared(z)))
    assert len([name for name in model.parameters if name.endswith("kernel")]) == 3
    np.testing.assert_array_equal(model.parameters["dense_1.kernel"], inner.parameters["dense_1.kernel"])
    outer = "model_1/twice_1/dense_1"
    np.testing.assert_array_equal(model.parameters[f"{outer}.kernel"], inner.parameters["twice_1/dense_1.kernel"])
    assert outer in model.frozen_layers or "model_1/twice_1" in model.frozen_layers


def test_one_composite_serves_models_of_different_sizes():
    class Widen(lm.Layer):
        def expand(self, x):
            return Dense(2 * x.shape[-1])(x)

    widen = Widen()
    assert lm.Sequential([widen], input_shape=4).output_specs[0].shape == ("N", 8)
    assert lm.Sequential([widen], input_shape=7).output_specs[0].shape == ("N", 14)
    a, b = lm.Input((4,)), lm.Input((7,))
    with pytest.raises(lm.GraphError, match=r"Widen\(\) is shared, but expands to Dense\(14\) here and to Dense\(8\)"):
        lm.Model((a, b), (widen(a), widen(b)))


def test_names_of_inputs_and_outputs_never_meet():
    a = lm.Input((4,), name="dense_1")
    b, c = Split()(a)
    model = lm.Model(a, (Dense(2)(b), b, c))
    assert model.input_names == ("dense_1",)
    assert model.output_names == ("dense_2", "split_1.0", "split_1.1")


def test_numpy_numbers_and_dtypes_are_taken_as_plain_ones():
    model = lm.Sequential([Dense(np.int64(3))], input_shape=(np.int64(4),), dtype=np.float64, seed=np.int64(3))
    assert (model.dtype, model.seed, type(model.seed)) == ("float64", 3, int)
    assert lm.Input((np.int32(2),), np.int64).spec == lm.ArraySpec(("N", 2), "int64")
    assert lm.from_config(model.config()).config() == model.config()


def tower_and_head():
    """A model that was called like a layer, and the trained model around it."""
    a = lm.Input((4,), name="a")
    tower = lm.Sequential([Dense(6, activation="tanh"), BatchNormalization(), Dense(3)], input_shape=4, seed=3)
    model = lm.Model(a, Dense(2).named("head")(tower(a)))
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    task = {"loss": "mean_squared_error", "optimizer": "adam"}
    model.fit(x, np.ones((16, 2)), **task, epochs=2)
    return a, tower, model, x


def test_what_is_frozen_stays_frozen_when_values_are_copied():
    trained = lm.Sequential([Dense(4), Dense(7)], input_shape=3, seed=1)
    twin = lm.Sequential([Dense(4).frozen(), Dense(7)], input_shape=3)
    assert twin.copy_values(trained) == ()
    assert twin.frozen_layers == {"dense_1"}
    assert twin.copy_values(trained.freeze("dense_2")) == ()
    assert twin.frozen_layers == {"dense_1", "dense_2"}
    assert trained.unfreeze().copy().frozen_layers == set()


def test_trained_parts_can_be_taken_out_of_a_model(tmp_path):
    a, tower, model, x = tower_and_head()
    (node,) = model.output_nodes[0].call.inputs  # what the head is called with
    features = lm.Model(a, node)
    with pytest.warns(lm.MistakeWarning, match=r"inner.copy_values\(outer\)"):
        untrained = tower.predict(x)
    with pytest.warns(lm.MistakeWarning, match="was called like a layer"):
        tower.save(tmp_path / "m")
    assert features.copy_values(model) == tower.copy_values(model) == ()
    np.testing.assert_array_equal(tower.predict(x), features.predict(x))
    assert not np.allclose(tower.predict(x), untrained)
    np.testing.assert_array_equal(
        tower.state["batch_normalization_1.mean"], features.state["sequential_1/batch_normalization_1.mean"]
    )
    head = lm.Sequential([model.layers["head"]], input_shape=3)
    assert head.copy_values(model) == ()
    np.testing.assert_allclose(head.predict(features.predict(x)), model.predict(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(KeyError, match=r"there are sequential_1, head. Did you mean 'head'"):
        model.layers["heads"]


def test_a_new_head_keeps_its_own_values():
    a, tower, model, _ = tower_and_head()
    model.freeze("sequential_1")
    other = lm.Model(a, Dense(2).named("head")(tower(a)), seed=5)  # a new layer of the old one's name and shapes
    before = other.parameters["head.kernel"]
    assert other.copy_values(model) == ("head",)
    np.testing.assert_array_equal(other.parameters["head.kernel"], before)
    np.testing.assert_array_equal(
        other.parameters["sequential_1/dense_1.kernel"], model.parameters["sequential_1/dense_1.kernel"]
    )
    assert other.frozen_layers == model.frozen_layers
    twin = lm.Sequential([Dense(6), BatchNormalization(), Dense(5)], input_shape=4)  # no common object: by name
    assert twin.copy_values(tower) == ("dense_2",)
    stranger = lm.Sequential([Dense(7)], input_shape=4)
    with pytest.raises(lm.DataError, match=r"copy_values: none of the layers dense_1 is in the other model.*head"):
        stranger.copy_values(model)


def test_the_outermost_model_is_the_one_that_was_trained():
    a, _, model, _ = tower_and_head()
    around = lm.Model(a, Dense(1)(model(a)))  # tower stands in it too, with values of its own
    np.testing.assert_array_equal(
        around.parameters["model_1/sequential_1/dense_1.kernel"], model.parameters["sequential_1/dense_1.kernel"]
    )


def test_one_head_of_an_inner_model_can_be_used_alone():
    a, z = lm.Input((4,)), lm.Input((4,))
    body = Dense(4)(a)
    heads = lm.Model(a, (Dense(2)(body), Dense(3)(body)), seed=4).freeze("dense_3")
    first, _ = heads(z)
    model = lm.Model(z, first)
    assert len(model.parameters) == 4
    assert not model.frozen_layers
    np.testing.assert_array_equal(model.parameters["model_1/dense_2.kernel"], heads.parameters["dense_2.kernel"])


def test_a_composite_may_make_a_model_for_itself():
    class Body(lm.Layer):
        def expand(self, x):
            return lm.Sequential([Dense(3, activation="relu"), Dense(2)], input_shape=x.shape[1:])(x)

    model = lm.Sequential([Body(), Dense(1)], input_shape=4)
    assert [n for n in model.parameters if n.endswith("kernel")] == [
        "body_1/sequential_1/dense_1.kernel",
        "body_1/sequential_1/dense_2.kernel",
        "dense_1.kernel",
    ]
    twin = pickle.loads(pickle.dumps(lm.Sequential([Dense(2)], input_shape=3, backend="strict")))
    assert twin.backend == "strict"


class Highway(lm.Layer):
    """The sum goes wrong where the input has not as many features as there are units."""

    def __init__(self, units: int):
        self.units = units

    def expand(self, x):
        if x.shape[-1] == 1:
            raise lm.GraphError("expected more than one feature")
        return Add()(Dense(self.units)(x), x)


def test_errors_of_expand_name_the_layer_and_what_it_was_called_with():
    for size, words in (
        (
            4,
            r"^Highway\(3\), called with \(N, 4\) float32: Add\(\), called with \(N, 3\) float32 and \(N, 4\)",
        ),
        (1, r"^Highway\(3\), called with \(N, 1\) float32: expected more than one feature$"),
    ):
        with pytest.raises(lm.GraphError, match=words):
            lm.Sequential([Highway(3)], input_shape=size)
    with pytest.raises(lm.GraphError, match=r"^Highway 'road', called with"):
        Highway(3)(lm.Input(4), name="road")
    inner = lm.Sequential([Highway(4)], input_shape=4)
    with pytest.raises(lm.GraphError, match=r"^<Sequential .*> was called with \(N, 5\) float32; expected"):
        inner(lm.Input(5))
