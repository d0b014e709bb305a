"""Attention, embeddings and normalizations against PyTorch in float64, forward and all gradients, where it is found."""

import numpy as np
import pytest

import lamella as lm
from lamella.testing import Specimen
from lamella.testing.case import Case
from lamella_layers import (
    Embedding,
    GroupNormalization,
    LayerNormalization,
    MultiHeadAttention,
    RMSNormalization,
    ScaledDotProductAttention,
)

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional


def step(layer, inputs, rng):
    """Output, incoming gradient, gradients of inputs and of parameters, and the parameters, by their last names."""
    kinds = {"f": "float32", "i": "int64", "b": "bool"}
    specs = [lm.ArraySpec(("N", *a.shape[1:]), kinds[a.dtype.kind]) for a in inputs]
    case = Case(Specimen(layer, tuple(specs)))
    (y,) = case.infer("float64", inputs)
    dy = rng.normal(size=y.shape)
    result = case.step("float64", tuple(inputs), (dy,))
    parameters = case.model("float64").parameters
    gradients = {name.partition("_1")[2]: g for name, g in result.gradients.items()}
    return y, dy, result.dx, gradients, {name.partition("_1")[2]: np.array(p) for name, p in parameters.items()}


def tensors(*arrays):
    return [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]


def agree(given, expected):
    for a, b in zip(given, expected, strict=True):
        np.testing.assert_allclose(a, b.detach().numpy(), rtol=1e-9, atol=1e-10)


@pytest.fixture(params=range(20))
def rng(request):
    """A generator for one of several random configurations."""
    seed = int(np.random.default_rng().integers(1 << 30))
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def test_normalizations(rng):
    rank, epsilon = int(rng.integers(2, 5)), float(rng.choice([1e-3, 1e-5]))
    shape, last = tuple(map(int, rng.integers(2, 7, rank))), int(rng.integers(1, rank))
    axes, axis, groups = tuple(range(-last, 0)), int(rng.integers(1, rank)), int(rng.integers(1, 4))
    spread = [*shape]
    spread[2 if rank == 3 else 1] *= groups
    if rank == 2:
        spread[1] *= 2  # one number alone is refused by PyTorch

    def along_axis(x, gamma, beta):
        return F.layer_norm(x.movedim(axis, -1), (shape[axis],), gamma, beta, epsilon).movedim(-1, axis)

    def groupwise(x, gamma, beta):
        x = x.movedim(-1, 1) if rank == 3 else x
        y = F.group_norm(x, groups, gamma, beta, epsilon)
        return y.movedim(1, -1) if rank == 3 else y

    for layer, size, theirs in (
        (LayerNormalization(axes, epsilon), shape, lambda x, g, b: F.layer_norm(x, shape[-last:], g, b, epsilon)),
        (LayerNormalization(axis, epsilon), shape, along_axis),
        (RMSNormalization(axes, epsilon), shape, lambda x, g: F.rms_norm(x, shape[-last:], g, epsilon)),
        (GroupNormalization(groups, epsilon), spread, groupwise),
    ):
        x = 3.0 * rng.normal(size=size) + 10.0 * rng.normal()
        y, dy, dx, gradients, parameters = step(layer, [x], rng)
        given = tensors(x, *(parameters[f".{name}"] for name in ("gamma", "beta")[: len(parameters)]))
        expected = theirs(*given)
        expected.backward(torch.tensor(dy))
        agree([y, *dx, *(gradients[f".{n}"] for n in ("gamma", "beta")[: len(given) - 1])],
              [expected, *(a.grad for a in given)])  # fmt: skip


def test_scaled_dot_product_attention(rng):
    n, t, s, heads, f, v = map(int, rng.integers(1, 6, 6))
    arrays = [rng.normal(size=size) for size in ((n, t, heads * f), (n, s, heads * v), (n, s, heads * f))]
    causal, size = bool(rng.integers(2)), [None, (n, t, s), (n, 1, s), (n, s)][rng.integers(4)]
    masks = [] if size is None else [rng.integers(0, 3, size) > 0]
    y, dy, dx, *_ = step(ScaledDotProductAttention(heads, causal=causal), [*arrays, *masks], rng)
    allowed = torch.ones(t, s, dtype=torch.bool).tril() if causal else torch.ones(t, s, dtype=torch.bool)
    for mask in masks:
        allowed = allowed & torch.tensor(mask[:, None, None, :] if mask.ndim == 2 else mask[:, None])
    query, value, key = given = tensors(*arrays)
    parts = (a.unflatten(2, (heads, -1)).transpose(1, 2) for a in (query, key, value))
    expected = F.scaled_dot_product_attention(*parts, attn_mask=allowed).transpose(1, 2).flatten(2)
    expected.backward(torch.tensor(dy))
    agree([y, *dx[:3]], [expected, *(a.grad for a in given)])


def test_multi_head_attention(rng):
    n, t, s, heads, f, of_key, of_value = map(int, rng.integers(1, 6, 7))
    width = heads * f
    theirs = torch.nn.MultiheadAttention(
        width, heads, kdim=of_key, vdim=of_value, batch_first=True, dtype=torch.float64
    )
    query, value, key = (rng.normal(size=(n, *z)) for z in ((t, width), (s, of_value), (s, of_key)))
    y, dy, dx, gradients, parameters = step(MultiHeadAttention(heads, f), [query, value, key], rng)
    names = ("/query", "/key", "/value")
    packed = theirs.in_proj_weight is not None  # where all sizes are equal
    weights = [theirs.in_proj_weight] if packed else [theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight]
    own = [*weights, theirs.in_proj_bias, theirs.out_proj.weight, theirs.out_proj.bias]

    def as_theirs(p):
        kernels = [p[f"{name}.kernel"].T for name in names]
        kernels = [np.concatenate(kernels)] if packed else kernels
        bias = np.concatenate([p[f"{name}.bias"] for name in names])
        return [*kernels, bias, p["/output.kernel"].T, p["/output.bias"]]

    with torch.no_grad():
        for tensor, array in zip(own, as_theirs(parameters), strict=True):
            tensor.copy_(torch.tensor(array))
    query, key, value = given = tensors(query, key, value)
    expected, _ = theirs(query, key, value)
    expected.backward(torch.tensor(dy))
    agree([y, dx[0], dx[2], dx[1]], [expected, *(a.grad for a in given)])
    agree(as_theirs(gradients), [tensor.grad for tensor in own])


def test_embedding(rng):
    n, t, size, width = map(int, rng.integers(1, 9, 4))
    words = rng.integers(0, size, (n, t)) % min(size, 10)
    layer = Embedding(max(size, 10), width)  # a spec without limits draws up to 9
    y, dy, _, gradients, parameters = step(layer, [words], rng)
    (table,) = tensors(parameters[".embeddings"])
    expected = F.embedding(torch.tensor(words), table)
    expected.backward(torch.tensor(dy))
    agree([y, gradients[".embeddings"]], [expected, table.grad])
