"""Recurrent layers against loops written out, and what is said of time: its end, its order, and the way back."""

import numpy as np
import onnxruntime
import pytest

import lamella as lm
import lamella_onnx
from lamella.graph.slicing import slice_rows
from lamella_layers import GRU, LSTM, RNN, Activation, Bidirectional, Dense

NUMPY = lm.backends.get_backend("numpy")
F, U, T = 3, 4, 6


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn_cell(x, states, w, activation=np.tanh):
    (h,) = states
    return (activation(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"]),)


def lstm_cell(x, states, w):
    h, c = states
    i, f, g, o = np.split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_cell(x, states, w):
    (h,) = states
    az, ar, ah = np.split(x @ w["kernel"] + w["bias"], 3)
    pz, pr, ph = np.split(h @ w["recurrent_kernel"] + w["recurrent_bias"], 3)
    z = sigmoid(az + pz)
    return (z * h + (1 - z) * np.tanh(ah + sigmoid(ar + pr) * ph),)


def walked(cell, x, length, states, weights, reverse):
    """One sequence, step by step: outputs in the order of time, 0 after its end, and the last states."""
    ys = np.zeros((len(x), len(states[0])))
    for t in range(min(length, len(x)))[:: -1 if reverse else 1]:
        states = cell(x[t], states, weights)
        ys[t] = states[0]
    return ys, states


CELLS = {
    "rnn": (lambda **k: RNN(U, **k), rnn_cell, 1),
    "relu": (lambda **k: RNN(U, activation="relu", **k), lambda *a: rnn_cell(*a, lambda x: np.maximum(x, 0)), 1),
    "sigmoid": (lambda **k: RNN(U, activation="sigmoid", **k), lambda *a: rnn_cell(*a, sigmoid), 1),
    "lstm": (lambda **k: LSTM(U, **k), lstm_cell, 2),
    "gru": (lambda **k: GRU(U, **k), gru_cell, 1),
}


def model_of(layer, *, lengths=False, states=0, steps=T, rng=None):
    """A model of a layer alone in float64, its parameters drawn from ``rng``."""
    nodes = [lm.Input((steps, F))]
    nodes += [lm.Input((), dtype="int64", low=0)] if lengths else []
    nodes += [lm.Input((U,)) for _ in range(states)]
    model = lm.Model(nodes, layer(*nodes), dtype="float64")
    if rng is not None:
        for name, value in model.parameters.items():
            model.parameters[name] = rng.normal(size=value.shape)
    return model


def weights_of(model, layer=""):
    return {name.rpartition(".")[2]: value for name, value in model.parameters.items() if layer in name}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_every_step_follows_the_formula_and_sequences_end_where_they_say(kind, reverse):
    make, cell, count = CELLS[kind]
    rng = np.random.default_rng(len(kind))
    x, lengths = rng.normal(size=(5, T, F)), np.array([6, 1, 3, 0, T + 3])
    states = [rng.normal(size=(5, U)) for _ in range(count)]
    model = model_of(make(return_state=True, reverse=reverse), lengths=True, states=count, rng=rng)
    y, *last = model.predict((x, lengths, *states))
    for n in range(5):
        ys, after = walked(cell, x[n], lengths[n], [s[n] for s in states], weights_of(model), reverse)
        np.testing.assert_allclose(y[n], ys, rtol=0, atol=1e-12)
        np.testing.assert_allclose([s[n] for s in last], after, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_all_lengths_whole_and_states_zero_are_what_is_left_out(kind):
    make, _, count = CELLS[kind]
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, T, F))
    full = model_of(make(return_state=True, return_sequences=False), lengths=True, states=count, rng=rng)
    bare = model_of(make(return_sequences=False), states=0)
    for (_, value), name in zip(full.parameters.items(), bare.parameters, strict=True):
        bare.parameters[name] = value
    y, *last = full.predict((x, np.full(2, T), *[np.zeros((2, U))] * count))
    np.testing.assert_allclose(bare.predict(x), y)
    np.testing.assert_allclose(last[0], y)  # without return_sequences, y is the last h


def test_the_gradient_of_an_early_step_holds_what_later_steps_make_of_it():
    rng = np.random.default_rng(2)
    model, x = model_of(RNN(U, return_sequences=False)), rng.normal(size=(2, T, F))
    target = np.zeros((2, U))
    _, _, dx = model.gradients(x, target, loss="mean_squared_error")
    for n, t, f in [(0, 0, 0), (1, 2, 1), (1, T - 1, 2)]:
        around = []
        for shift in (1e-6, -1e-6):
            moved = x.copy()
            moved[n, t, f] += shift
            around.append(np.mean(model.predict(moved) ** 2))
        assert dx[n, t, f] == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-6, abs=1e-9)
    assert np.abs(dx[:, 0]).min() > 1e-5


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("reverse", [False, True])
def test_truncation_cuts_the_gradient_between_chunks_and_nothing_else(kind, reverse):
    """A layer over all of time equals one that is called chunk by chunk, given the states as plain numbers."""
    make, _, count = CELLS[kind]
    rng = np.random.default_rng(3)
    k, options = 4, {"return_sequences": True, "reverse": reverse}
    whole = model_of(make(truncate=k, **options), states=count, rng=rng)
    piece = model_of(make(return_state=True, **options), states=count, steps="T")
    for (_, value), name in zip(whole.parameters.items(), piece.parameters, strict=True):
        piece.parameters[name] = value
    x, target = rng.normal(size=(3, T, F)), rng.normal(size=(3, T, U))
    states = begin = [rng.normal(size=(3, U)) for _ in range(count)]
    _, gradients, (dx, *dstates) = whole.gradients((x, *begin), target, loss="mean_squared_error")
    totals, dxs, firsts = dict.fromkeys(gradients, 0.0), np.zeros_like(x), []
    for start in range(0, T, k):
        steps = slice(T - min(T, start + k), T - start) if reverse else slice(start, min(T, start + k))
        outputs = piece.predict((x[:, steps], *states))
        share = x[:, steps].shape[1] / T  # of the mean over all steps
        losses = ("mean_squared_error", *[None] * count)
        _, own, (dxs[:, steps], *first) = piece.gradients(
            (x[:, steps], *states), (target[:, steps], *[None] * count), loss=losses
        )
        dxs[:, steps] *= share
        firsts.append([share * d for d in first])
        totals = {name: totals[name] + share * value for name, value in zip(totals, own.values(), strict=True)}
        states = outputs[1:]
    for name, value in gradients.items():
        np.testing.assert_allclose(value, totals[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dx, dxs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dstates, firsts[0], rtol=1e-9, atol=1e-12)


def test_truncation_counts_from_the_first_step_that_a_sequence_has():
    rng = np.random.default_rng(4)
    long = model_of(GRU(U, reverse=True, truncate=2, return_sequences=False), lengths=True, states=1, rng=rng)
    x, h = rng.normal(size=(1, T, F)), rng.normal(size=(1, U))
    given, target = np.array([3]), np.zeros((1, U))
    short = model_of(GRU(U, reverse=True, truncate=2, return_sequences=False), states=1, steps="T")
    for (_, value), name in zip(long.parameters.items(), short.parameters, strict=True):
        short.parameters[name] = value
    _, _, (dx, _, dh) = long.gradients((x, given, h), target, loss="mean_squared_error")
    _, _, (dx_short, dh_short) = short.gradients((x[:, :3], h), target, loss="mean_squared_error")
    np.testing.assert_allclose(dx[:, :3], dx_short, rtol=1e-9)
    np.testing.assert_allclose(dh, dh_short, rtol=1e-9)
    assert not dx[:, 3:].any()


def test_weights_start_as_in_keras():
    model = lm.Sequential([LSTM(8, return_sequences=False)], input_shape=("T", 5))
    w = weights_of(model)
    np.testing.assert_array_equal(w["bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 8))
    np.testing.assert_allclose(w["recurrent_kernel"] @ w["recurrent_kernel"].T, np.eye(8), atol=1e-6)
    assert np.abs(w["kernel"]).max() <= np.sqrt(6 / (5 + 32))
    assert {name: array.shape for name, array in w.items()} == {
        "kernel": (5, 32), "recurrent_kernel": (8, 32), "bias": (32,)
    }  # fmt: skip


MERGED = {
    "concat": lambda a, b: np.concatenate([a, b], -1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) / 2,
    None: lambda a, b: (a, b),
}


@pytest.mark.parametrize("mode", MERGED)
def test_bidirectional_is_two_layers_merged(mode):
    rng = np.random.default_rng(5)
    layer = LSTM(U, return_state=True)
    model = model_of(Bidirectional(layer, merge_mode=mode), lengths=True, states=4, rng=rng)
    x, lengths, states = rng.normal(size=(2, T, F)), np.array([4, 6]), rng.normal(size=(4, 2, U))
    merged = model.predict((x, lengths, *states))
    results = []
    for name, reverse, own in (("forward", False, states[:2]), ("backward", True, states[2:])):
        single = model_of(layer.replace(reverse=reverse), lengths=True, states=2)
        for full, value in model.parameters.items():
            if f"/{name}." in full:
                single.parameters[full.replace(f"bidirectional_1/{name}", "lstm_1")] = value
        results.append(single.predict((x, lengths, *own)))
    (a, *last), (b, *others) = results
    expected = MERGED[mode](a, b)
    expected = expected if mode is None else (expected,)
    for got, want in zip(merged, (*expected, *last, *others), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)


def test_a_frozen_layer_is_frozen_in_both_directions():
    model = lm.Sequential([Bidirectional(RNN(2, return_sequences=False).frozen()), Dense(1)], input_shape=(T, F))
    _, gradients, _ = model.gradients(np.ones((2, T, F)), np.ones((2, 1)), loss="mean_squared_error")
    assert list(gradients) == ["dense_1.kernel", "dense_1.bias"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_lengths_of_0_and_beyond_the_end_mean_the_same_in_onnx(kind, reverse, dtype, tmp_path):
    make, _, count = CELLS[kind]
    nodes = [lm.Input(("T", F)), lm.Input((), dtype="int32"), *(lm.Input((U,)) for _ in range(count))]
    model = lm.Model(nodes, make(return_state=True, reverse=reverse, truncate=2)(*nodes), dtype=dtype)
    lamella_onnx.export(model, tmp_path / "model.onnx")
    rng = np.random.default_rng(8)
    lengths = np.array([3, 0, T + 1, 2**31 - 1, -1, T], "int32")
    given = (rng.normal(size=(6, T, F)), lengths, *(rng.normal(size=(6, U)) for _ in range(count)))
    given = tuple(x if x.dtype == "int32" else x.astype(dtype) for x in given)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    got = session.run(None, dict(zip(model.input_names, given, strict=True)))
    for a, b in zip(got, model.predict(given), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    whole = (given[0], np.array([3, 0, T, T, 0, T], "int32"), *given[2:])
    targets = [np.zeros((6, T, U)), *[np.zeros((6, U))] * count]
    a, b = (model.gradients(x, targets, loss="mean_squared_error")[2] for x in (given, whole))
    np.testing.assert_array_equal(a[0], b[0])  # truncation in reverse counts from the end


def test_exports_run_on_any_batch_and_any_time(tmp_path):
    x, lengths = lm.Input(("T", F), name="x"), lm.Input((), dtype="int64", name="lengths", low=1, high=5)
    y = Bidirectional(LSTM(U))(x, lengths)
    model = lm.Model((x, lengths), GRU(U, reverse=True, return_sequences=False)(y, lengths))
    lamella_onnx.export(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [given.shape for given in session.get_inputs()] == [["N", "T", F], ["N"]]
    rng = np.random.default_rng(6)
    for rows, steps in ((1, 1), (3, 9)):
        feeds = {
            "x": rng.normal(size=(rows, steps, F)).astype("float32"), "lengths": rng.integers(1, steps + 1, rows)
        }  # fmt: skip
        model_input = (feeds["x"], np.minimum(feeds["lengths"], 4))
        (got,) = session.run(None, feeds | {"lengths": model_input[1]})
        np.testing.assert_allclose(got, model.predict(model_input), atol=1e-5)


def test_scan_kernel_agrees_with_its_reference():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(5, 2, 3))

    def body(states, xs, scale):
        h = scale * states[0] + xs[0]
        return (h,), (h, xs[0][:, 0])

    for reverse in (False, True):
        given = (NUMPY.xp, body, (x[0],), (x,))
        got, want = (run(*given, consts=(0.5,), reverse=reverse) for run in (lm.scan, lm.scan.reference))
        for a, b in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="no steps"):
        lm.scan(NUMPY.xp, body, (x[0],), (x[:0],))


def test_a_recurrent_layer_learns_what_came_first():
    rng = np.random.default_rng(8)
    x = rng.choice([-1.0, 1.0], (256, 12, 1)).astype("float32")
    y = (x[:, 0] > 0).astype("float32")
    model = lm.Sequential([LSTM(16, return_sequences=False), Dense(1)], input_shape=(12, 1), seed=1)
    model.fit(x, y, loss="binary_cross_entropy", optimizer=lm.optimizers.Adam(0.02), epochs=30, progress=False)
    assert model.evaluate(x, y, loss="binary_cross_entropy", metrics="accuracy")["accuracy"] > 0.95


def test_arguments_are_checked():
    with pytest.raises(lm.ArgumentError, match="units: expected a positive int, got 0"):
        GRU(0)
    with pytest.raises(lm.ArgumentError, match="truncate: expected a positive int"):
        LSTM(2, truncate=0)
    with pytest.raises(lm.ArgumentError, match="activation: expected one of 'tanh', 'relu', 'sigmoid', got 'elu'"):
        RNN(2, activation="elu")
    with pytest.raises(lm.ArgumentError, match="layer: expected an RNN, LSTM or GRU, got Activation"):
        Bidirectional(Activation("relu"))
    with pytest.raises(lm.ArgumentError, match="merge_mode: expected one of"):
        Bidirectional(RNN(2), merge_mode="max")


def test_a_graph_that_walks_over_time_has_one_slice_for_each_thread(monkeypatch):
    monkeypatch.setattr("lamella.graph.slicing.INLINE_WORK", 0)
    monkeypatch.setattr("lamella.graph.slicing.SLICE_BYTES", 1)
    for layer in (
        RNN(4, return_sequences=False),
        Bidirectional(GRU(4, return_sequences=False)),
        LSTM(4, return_sequences=False),
    ):
        model = lm.Sequential([layer, Dense(3)], input_shape=(T, F))
        assert slice_rows(model.graph, 64, 2) == [32, 32]
