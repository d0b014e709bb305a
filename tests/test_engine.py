"""The engine: coroutines and sums over the batch, what a context gives, and errors that say where."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from sample_layers import Center

import lamella as lm
from lamella.backends import get_backend
from lamella.engine.gradients import Gradients
from lamella.engine.passes import Batch
from lamella.engine.rounds import Slices
from lamella.graph.plan import Plan
from lamella.graph.slicing import consecutive
from lamella_layers import Dense, Dropout, Embedding


def sliced(model, x, y, sizes, loss="mean_squared_error", threads=1):
    """One step in slices of the given sizes."""
    plan = Plan(model.graph, model.frozen_layers, wants_dx=True, training=True)
    target = loss_of(loss).prepare(model.output_specs[0], y)
    batch = Batch((x,), (target,), (np.full(len(x), 1 / len(x), x.dtype),))
    buffers = [
        Gradients(model.values.parameters.empty_like(), plan.parameters) for _ in range(min(threads, len(sizes)))
    ]
    slices = Slices(plan, get_backend("numpy"), consecutive(sizes), buffers=buffers)
    return slices.step(model.values, batch, [loss_of(loss)], model.seed)


def loss_of(name):
    return lm.losses.MeanSquaredError() if name == "mean_squared_error" else lm.losses.SoftmaxCrossEntropy()


@pytest.mark.smoke
def test_sums_over_the_batch_are_the_same_for_every_slicing():
    model = lm.Sequential([Dense(3), Center(), Dropout(0.5), Dense(2)], input_shape=4, dtype="float64", seed=2)
    x = np.random.default_rng(0).normal(size=(7, 4))
    y = np.random.default_rng(1).normal(size=(7, 2))
    loss, gradients, dx = model.gradients(x, y, loss="mean_squared_error")
    for sizes, threads in product([(7,), (3, 4), (1, 5, 1), (1,) * 7], (1, 2, 3)):
        step = sliced(model, x, y, sizes, threads=threads)
        assert step.loss == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(step.dx[0], dx, rtol=1e-10, atol=1e-14)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(step.gradients[name], gradient, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(
            step.updates["center_1.mean"], 0.5 * (x @ model.parameters["dense_1.kernel"]).mean(0)
        )


def test_updates_are_applied_by_training_alone():
    model = lm.Sequential([Center(), Dense(1)], input_shape=2)
    x, y = np.array([[1.0, 2.0], [3.0, 6.0]]), np.zeros((2, 1))
    model.gradients(x, y, loss="mean_squared_error")
    model.predict(x)
    assert model.state["center_1.mean"].tolist() == [0.0, 0.0]
    model.train_on_batch(x, y, loss="mean_squared_error", optimizer="sgd")
    assert model.state["center_1.mean"].tolist() == [1.0, 2.0]
    model.freeze("center_1").train_on_batch(x, y, loss="mean_squared_error", optimizer="sgd")
    assert model.state["center_1.mean"].tolist() == [1.0, 2.0]


def test_gradients_change_nothing_and_repeat():
    model = lm.Sequential([Dense(8), Dropout(0.5), Dense(2)], input_shape=4)
    x, y = np.ones((3, 4)), np.zeros((3, 2))
    before = {name: value.copy() for name, value in model.parameters.items()}
    first, second = (model.gradients(x, y, loss="mean_squared_error") for _ in range(2))
    assert (first[0], model.step) == (second[0], 0)
    np.testing.assert_array_equal(first[2], second[2])
    for name, value in model.parameters.items():
        np.testing.assert_array_equal(value, before[name])


def test_dropout_differs_by_step_node_and_row_and_is_off_in_inference():
    model = lm.Sequential([Dropout(0.5), Dropout(0.5), Dense(1)], input_shape=64)
    x, y = np.ones((8, 64)), np.zeros((8, 1))

    def mask():
        return model.gradients(x, y, loss="mean_squared_error")[2] != 0

    first = mask()
    assert 0.15 < first.mean() < 0.35
    assert len({row.tobytes() for row in first}) == 8
    model.train_on_batch(x, y, loss="mean_squared_error", optimizer="sgd")
    assert not np.array_equal(mask(), first)
    _, _, dx = model.gradients(x, y, loss="mean_squared_error", training=False)
    assert np.all(dx != 0)


class Faulty(lm.Layer):
    """Breaks the protocol in one named way."""

    def __init__(self, fault):
        self.fault = fault

    def build(self, declare, x):
        declare.parameter("scale", x.shape[1:], "ones")
        declare.state("seen", (), "zeros")
        return x

    def forward_pass(self, ctx, x):
        if self.fault == "raises":
            raise ZeroDivisionError("oops")
        if self.fault == "writes":
            ctx.params.scale[0] = 2.0
        if self.fault == "saves twice":
            ctx.save(x)
        if self.fault == "unknown parameter":
            return x * ctx.params.scal
        if self.fault == "unknown function":
            return ctx.xp.concatenate([x])
        if self.fault == "two outputs":
            return x, x
        if self.fault == "nothing returned":
            return None
        if self.fault == "other shape":
            return x[:, :2]
        if self.fault == "fewer rows":
            return x[:1, :]
        if self.fault == "other dtype":
            return x * np.float64(2.0)
        if self.fault == "list returned":
            return [x]
        if self.fault == "input overwritten":
            x *= 2.0
        if self.fault == "updates wrong shape":
            ctx.update(seen=x)
        if self.fault == "updates nothing known":
            ctx.update(sean=x)
        if self.fault == "draws odd rows":
            ctx.uniform((x.shape[0] + 1, 2))
        ctx.save(x)
        return x * ctx.params.scale

    def backward_pass(self, ctx, dy):
        (x,) = ctx.saved
        if self.fault == "no gradient":
            return dy
        if self.fault == "unknown gradient":
            ctx.grad(scael=dy)
        if self.fault == "draws backward":
            ctx.uniform(dy.shape)
        if self.fault == "updates backward":
            ctx.update(seen=ctx.state.seen)
        wrong = dy if self.fault == "wrong gradient shape" else ctx.xp.sum(dy * x, axis=0)
        ctx.grad(scale=wrong)
        if self.fault == "gradient twice":
            ctx.grad(scale=wrong)
        if self.fault == "no dx":
            return None
        if self.fault == "number as dx":
            return 0.0
        if self.fault == "dx of other dtype":
            return dy * np.float64(2.0)
        if self.fault == "wrong dx":
            return dy[:, :1]
        if self.fault == "two dx":
            return dy, dy
        return dy * ctx.params.scale


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raises", r"faulty_1 \(Faulty\).forward_pass failed on \(2, 3\) float32, rows 0:2: ZeroDivisionError: oops"),
        ("writes", "read-only"),
        ("saves twice", "ctx.save was called twice"),
        ("unknown parameter", "declared scale; no 'scal'. Did you mean 'scale'"),
        ("unknown function", "xp.concatenate is not among the functions .* Use concat."),
        ("two outputs", "returned 2 arrays; build said 1"),
        ("nothing returned", r"build said \(N, 3\) float32 for 2 rows, it returned None; is a return missing"),
        ("other shape", r"build said \(N, 3\) float32 for 2 rows, it returned \(2, 2\) float32"),
        ("fewer rows", r"it returned \(1, 3\) float32"),
        ("other dtype", "it returned .* float64; write scalars as Python floats"),
        ("list returned", "it returned a list"),
        ("updates wrong shape", r"ctx.update\(seen=...\): expected the state's \(\) float32, got \(2, 3\) float32"),
        ("updates nothing known", "declared seen. Did you mean 'seen'"),
        ("draws odd rows", "axis 0 must be the 2 rows of the slice, or a multiple"),
        ("draws backward", "ctx.uniform is for forward_pass in training"),
        ("updates backward", "ctx.update is for forward_pass"),
        ("no gradient", "gave no gradient for parameter 'scale'"),
        ("unknown gradient", "the layer declared scale. Did you mean 'scale'"),
        ("wrong gradient shape", r"expected the parameter's \(3,\) float32, got \(2, 3\) float32"),
        ("gradient twice", r"ctx.grad\(scale=...\) was called twice"),
        ("no dx", r"expected the gradient of input 0, \(2, 3\) float32, got None; is a return missing"),
        ("wrong dx", r"\(2, 3\) float32, got \(2, 1\) float32"),
        ("number as dx", "got a float"),
        ("dx of other dtype", r"expected the gradient of input 0, \(2, 3\) float32, got \(2, 3\) float64"),
        ("two dx", "returned 2 gradients for 1 input; return"),
    ],
)
def test_broken_layers_are_named_and_nothing_is_kept(fault, words):
    model = lm.Sequential([Dense(3), Faulty(fault)], input_shape=3)
    before = {**model.parameters, **model.state}
    with pytest.raises(lm.LayerError, match=words) as caught:
        model.train_on_batch(np.ones((2, 3)), np.zeros((2, 3)), loss="mean_squared_error", optimizer="adam")
    assert "faulty_1 (Faulty)" in str(caught.value)
    assert model.step == 0
    for name, value in {**model.parameters, **model.state}.items():
        np.testing.assert_array_equal(value, before[name])


def test_unequal_yields_and_yields_in_inference_are_named():
    class Uneven(lm.Layer):
        def __init__(self, fault):
            self.fault = fault

        def forward_pass(self, ctx, x):
            if self.fault == "inference" or x.shape[0] > 1:
                yield (x if self.fault == "shape" else ctx.xp.sum(x, axis=0),)
            if self.fault == "no tuple":
                yield x
            if self.fault == "nothing":
                yield (None,)
            if self.fault == "shape" and x.shape[0] == 1:
                yield (ctx.xp.sum(x, axis=0),)
            return x

        def backward_pass(self, ctx, dy):
            return dy

    def run(fault, sizes):
        model = lm.Sequential([Uneven(fault)], input_shape=2, dtype="float64")
        return sliced(model, np.ones((sum(sizes), 2)), np.zeros((sum(sizes), 2)), sizes)

    with pytest.raises(lm.LayerError, match=r"uneven_1 \(Uneven\).forward_pass: 1 of 2 slices yielded"):
        run("number", (1, 2))
    with pytest.raises(lm.LayerError, match="slice 1 yielded shapes .* slice 0"):
        run("shape", (2, 1))
    with pytest.raises(lm.LayerError, match="yielded ndarray; expected a tuple"):
        run("no tuple", (2,))
    with pytest.raises(lm.LayerError, match="yielded a tuple with None; expected arrays or sizes"):
        run("nothing", (2,))
    with pytest.raises(lm.LayerError, match="yielded in inference"):
        lm.Sequential([Uneven("inference")], input_shape=2).predict(np.ones((2, 2)))


def test_totals_belong_to_all_slices():
    class Scaled(lm.Layer):
        def forward_pass(self, ctx, x):
            (total,) = yield (ctx.xp.sum(x, axis=0),)
            total /= 10.0
            return x + total

        def backward_pass(self, ctx, dy):
            return dy

    model = lm.Sequential([Dense(2), Scaled()], input_shape=2)
    for sizes in ((2,), (1, 1)):
        with pytest.raises(lm.LayerError, match="scaled_1 .*read-only"):
            sliced(model, np.ones((2, 2), "float32"), np.zeros((2, 2)), sizes)


@pytest.mark.parametrize("where", ["first", "last"])
def test_updates_in_some_slices_only_are_named(where):
    class Sometimes(lm.Layer):
        def build(self, declare, x):
            declare.state("n", (), "zeros")
            return x

        def forward_pass(self, ctx, x):
            if (x.shape[0] == 1) == (where == "last"):
                ctx.update(n=ctx.state.n + 1.0)
            return x

        def backward_pass(self, ctx, dy):
            return dy

    model = lm.Sequential([Dense(2), Sometimes()], input_shape=2)
    words = "sometimes_1.n: ctx.update was called in slice {} and not in slice {}"
    with pytest.raises(lm.LayerError, match=words.format(*((0, 1) if where == "first" else (1, 0)))):
        sliced(model, np.ones((3, 2), "float32"), np.zeros((3, 2)), (2, 1))


def test_losses_that_return_nothing_are_named():
    class Silent(lm.losses.MeanSquaredError):
        def forward(self, ctx, prediction, target):
            super().forward(ctx, prediction, target)

    model = lm.Sequential([Dense(3)], input_shape=3)
    with pytest.raises(lm.LayerError, match=r"Silent\(\).forward must return one value per row, got None"):
        model.train_on_batch(np.ones((2, 3)), np.zeros((2, 3)), loss=Silent(), optimizer="sgd")


def test_a_layer_without_backward_predicts_but_does_not_train():
    class OneWay(lm.Layer):
        def forward_pass(self, ctx, x):
            return 2.0 * x

    model = lm.Sequential([Dense(3), OneWay()], input_shape=3)
    assert model.predict(np.ones((1, 3))).shape == (1, 3)
    with pytest.raises(lm.LayerError, match=r"one_way_1 \(OneWay\) defines no backward_pass"):
        model.train_on_batch(np.ones((1, 3)), np.ones((1, 3)), loss="mean_squared_error", optimizer="sgd")
    first = lm.Sequential([OneWay(), Dense(3)], input_shape=3)  # nothing below it learns
    first.train_on_batch(np.ones((1, 3)), np.ones((1, 3)), loss="mean_squared_error", optimizer="sgd")


def test_integer_inputs_have_no_gradient():
    class Look(lm.Layer):
        def build(self, declare, x):
            declare.parameter("table", (5, 2), "glorot_uniform", fan_in=5, fan_out=2)
            return x.replace(shape=(*x.shape, 2), dtype=declare.dtype)

        def forward_pass(self, ctx, x):
            ctx.save(x)
            return lm.primitives.take_rows(ctx, ctx.params.table, x)

        def backward_pass(self, ctx, dy):
            (x,) = ctx.saved
            assert ctx.wants_dx == (False,)
            ctx.grad(table=lm.primitives.add_rows(ctx, dy, x, 5))

    x = lm.Input((3,), "int64")
    model = lm.Model(x, Look()(x))
    _, gradients, dx = model.gradients([[0, 1, 1]], np.zeros((1, 3, 2)), loss="mean_squared_error")
    assert dx is None
    assert np.all(gradients["look_1.table"][2:] == 0)
    assert np.all(gradients["look_1.table"][:2] != 0)


def test_activations_are_released_when_nobody_needs_them(monkeypatch):
    alive, most = set(), []

    class Track(lm.Layer):
        def forward_pass(self, ctx, x):
            import weakref

            y = x + 1.0
            alive.add(id(y))
            weakref.finalize(y, alive.discard, id(y))
            most.append(len(alive))
            return y

    lm.Sequential([Track() for _ in range(6)], input_shape=3).predict(np.zeros((2, 3)))
    assert max(most) <= 2


def test_layers_cannot_write_into_what_the_user_handed_in():
    model = lm.Sequential([Faulty("input overwritten")], input_shape=3)
    x = np.ones((2, 3), "float32")
    with pytest.raises(lm.LayerError, match="read-only"):
        model.predict(x)
    assert x.sum() == 6


class Argmax(lm.Layer):
    """Integers out: nothing flows back."""

    def build(self, declare, x):
        return x.replace(shape=("N",), dtype="int64")

    def forward_pass(self, ctx, x):
        return ctx.xp.argmax(x, axis=-1)


def test_outputs_without_a_loss_are_not_trained_on():
    x = lm.Input((4,))
    scores = Dense(3)(x)
    model = lm.Model(x, (scores, Argmax()(scores)))
    data, y = np.random.default_rng(0).normal(size=(9, 4)), np.arange(9) % 3
    options = {"loss": (("softmax_cross_entropy"), None), "metrics": {"dense_1": ["accuracy"]}}
    history = model.fit(data, (y, None), optimizer="adam", epochs=3, progress=False, **options)
    assert history["loss"][-1] < history["loss"][0]
    assert model.evaluate(data, (y, None), **options)["loss"] < history["loss"][0]
    assert model.predict(data)[1].dtype == np.int64
    with pytest.raises(lm.ArgumentError, match="for one output at least"):
        model.gradients(data, (y, None), loss=(None, None))
    with pytest.raises(lm.DataError, match="y of 'dense_1': nothing for SoftmaxCrossEntropy"):
        model.gradients(data, (None, y), loss=("softmax_cross_entropy", None))


ORDERS = []


class Turned(lm.Layer):
    """Gives arrays on with the last axis slowest in memory, and notes how those that it gets lie there."""

    def forward_pass(self, ctx, x):
        ORDERS.append((x.strides[-1], x.itemsize))
        return self._turned(x)

    def backward_pass(self, ctx, dy):
        ORDERS.append((dy.strides[-1], dy.itemsize))
        return self._turned(dy)

    @staticmethod
    def _turned(a):
        return np.array(a, order="F")


def test_layers_get_arrays_with_the_last_axis_fastest_in_memory_whatever_other_layers_and_users_hand_on():
    ORDERS.clear()
    model = lm.Sequential([Turned(), Turned(), Turned()], input_shape=(3, 5))
    x = np.asfortranarray(np.random.default_rng(0).normal(size=(4, 3, 5)).astype("float32"))
    model.gradients(x, x, loss="mean_squared_error")
    model.predict(x)
    assert len(ORDERS) == 9
    assert {stride == size for stride, size in ORDERS} == {True}, ORDERS


def test_predictions_share_no_memory_with_inputs_or_parameters():
    model = lm.Sequential([lm.layer("flatten")], input_shape=(2, 2))
    x = np.ones((3, 2, 2), "float32")
    y = model.predict(x)
    x[:] = 7.0
    assert y.flags.writeable
    np.testing.assert_array_equal(y, np.ones((3, 4)))


def test_numpys_functions_take_what_they_always_took():
    xp = get_backend("numpy").xp
    x = np.ones((2, 3), "float32")
    assert xp.sum(x, 0).shape == (3,)
    assert xp.reshape(xp.sum(x), (1,)).shape == (1,)
    assert xp.max(x, 1).shape == (2,)


def astray(x):
    return np.dot(x, np.ones((9, 9)))  # HERE


class Astray(lm.Layer):
    """NumPy fails in a function that the layer calls, in a pass that sums over the batch or not."""

    def __init__(self, way: str):
        self.way = way

    def forward_pass(self, ctx, x):
        return astray(x) if self.way == "forward" else x

    def backward_pass(self, ctx, dy):
        return astray(dy)


class AstrayInSums(lm.Layer):
    def forward_pass(self, ctx, x):
        if ctx.training:
            yield (len(x),)
        return astray(x)

    def backward_pass(self, ctx, dy):
        return dy


class AstrayLoss(lm.losses.Loss):
    def forward(self, ctx, prediction, target):
        return astray(prediction)


def test_an_error_of_numpy_names_file_and_line():
    line = next(k for k, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "# HERE" in text)
    place = rf"ValueError: shapes .* not aligned.* \({re.escape(__file__)}, line {line}\)"
    for layer, loss in (
        (Astray("forward"), "huber"),
        (Astray("backward"), "huber"),
        (AstrayInSums(), "huber"),
        (Dense(3), AstrayLoss()),
    ):
        model = lm.Sequential([Dense(4), layer], input_shape=4)
        size = model.output_specs[0].shape[1]
        with pytest.raises(lm.LayerError, match=place):
            model.train_on_batch(np.ones((2, 4)), np.ones((2, size)), loss=loss, optimizer="sgd")
    with pytest.raises(lm.LayerError) as caught:  # what a layer of lamella says is enough
        lm.Sequential([Embedding(3, 2)], input_shape=4, input_dtype="int64").predict(np.full((2, 4), 7))
    assert "line" not in str(caught.value)
