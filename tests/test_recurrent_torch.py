"""Recurrent layers and PyTorch: forward and every gradient, in float64, over random configurations."""

import random

import numpy as np
import pytest

import lamella as lm
from lamella_layers import GRU, LSTM, RNN, Bidirectional

torch = pytest.importorskip("torch")

LAYERS = {
    "tanh": (RNN, torch.nn.RNN, [0]),
    "relu": (
        lambda *a, **k: RNN(*a, activation="relu", **k),
        lambda *a, **k: torch.nn.RNN(*a, nonlinearity="relu", **k),
        [0],
    ),
    "lstm": (LSTM, torch.nn.LSTM, [0, 1, 2, 3]),
    "gru": (GRU, torch.nn.GRU, [1, 0, 2]),
}  # ours, theirs, and the place of our gates among theirs


def ours(array, order):
    """PyTorch's (gates * units, ...) in our order of gates, and transposed."""
    parts = np.split(array, len(order))
    return np.concatenate([parts[k] for k in order]).T


@pytest.mark.parametrize("seed", range(24))
def test_forward_and_gradients_are_those_of_pytorch(seed):
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    kind = list(LAYERS)[seed % 4]
    make, theirs, order = LAYERS[kind]
    rows, steps, features, units = (draw.randint(1, 6) for _ in range(4))
    both, packed, given, sequences = (draw.random() < 0.5 for _ in range(4))
    options = {"return_sequences": sequences, "return_state": True}
    layer = Bidirectional(make(units, **options)) if both else make(units, **options)
    count = (2 if kind == "lstm" else 1) * (2 if both else 1)
    network = theirs(features, units, batch_first=True, bidirectional=both, dtype=torch.float64)

    nodes = [lm.Input((steps, features)), *([lm.Input((), dtype="int64")] if packed else [])]
    nodes += [lm.Input((units,)) for _ in range(count if given else 0)]
    model = lm.Model(nodes, layer(*nodes), dtype="float64")
    x, lengths = rng.normal(size=(rows, steps, features)), rng.integers(1, steps + 1, rows)
    states = rng.normal(size=(count, rows, units))

    def known(get):
        """PyTorch's arrays under our names."""
        arrays = {}
        for name in model.parameters:
            suffix = "_reverse" if "/backward." in name else ""
            w, r, b, b2 = (
                get(getattr(network, f"{part}_l0{suffix}")) for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            local = name.rpartition(".")[2]
            value = {"kernel": w, "recurrent_kernel": r, "bias": b if kind == "gru" else b + b2, "recurrent_bias": b2}
            arrays[name] = ours(value[local], order)
        return arrays

    for name, value in known(lambda p: p.detach().numpy()).items():
        model.parameters[name] = value

    tx = torch.tensor(x, requires_grad=True)
    # ours: forward's states, then backward's; theirs: each state's (directions, rows, units)
    grouped = np.stack([states[k :: 2 if kind == "lstm" else 1] for k in range(2 if kind == "lstm" else 1)])
    begin = [torch.tensor(s, requires_grad=True) for s in grouped]
    hx = (tuple(begin) if kind == "lstm" else begin[0]) if given else None
    fed = tx
    if packed:
        fed = torch.nn.utils.rnn.pack_padded_sequence(tx, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    out, last = network(fed, hx)
    if packed:
        out, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=steps)
    last = last if kind == "lstm" else (last,)
    ends = [state[d] for d in range(2 if both else 1) for state in last]
    y = out if sequences else torch.cat([last[0][d] for d in range(2 if both else 1)], dim=-1)
    expected = [y, *ends]
    results = model.predict((x, *([lengths] if packed else []), *(states if given else [])))
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=0, atol=1e-12)

    targets = [rng.normal(size=tuple(want.shape)) for want in expected]
    loss = sum(torch.nn.functional.mse_loss(a, torch.tensor(b)) for a, b in zip(expected, targets, strict=True))
    loss.backward()
    value, gradients, dx = model.gradients(
        (x, *([lengths] if packed else []), *(states if given else [])),
        tuple(targets),
        loss=("mean_squared_error",) * len(targets),
    )
    assert value == pytest.approx(loss.item())
    wanted = known(lambda p: p.grad.numpy())
    if kind != "gru":  # one bias, where PyTorch has two with one gradient
        wanted = {name: value / 2 if name.endswith(".bias") else value for name, value in wanted.items()}
    for name, value in gradients.items():
        np.testing.assert_allclose(value, wanted[name], rtol=0, atol=1e-12, err_msg=name)
    dx = dx if isinstance(dx, tuple) else (dx,)
    np.testing.assert_allclose(dx[0], tx.grad.numpy(), rtol=0, atol=1e-12)
    if given:
        dstates = np.stack(dx[-count:])
        for k, state in enumerate(begin):
            np.testing.assert_allclose(dstates[k :: len(begin)], state.grad.numpy(), rtol=0, atol=1e-12)
