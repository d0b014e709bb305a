"""The counter generator: the same bits everywhere, uniform, and no two draws alike."""

import itertools
import zlib

import numpy as np
import pytest

from lamella.backends import get_backend
from lamella.backends.counter import TEST_VECTORS, mix, mix_keys, uniform

NP = get_backend("numpy").xp


def chain(keys):
    """The definition in plain Python: lowbias32 after each key."""
    h = 0x9E3779B9
    for key in keys:
        h ^= key
        h = (h ^ h >> 16) * 0x7FEB352D % 2**32
        h = (h ^ h >> 15) * 0x846CA68B % 2**32
        h ^= h >> 16
    return h


def test_vectors():
    assert len(TEST_VECTORS) >= 10
    for keys, value in TEST_VECTORS.items():
        assert chain(keys) == mix_keys(None, keys) == value
    assert zlib.crc32(b"dropout_1") == 0x07A95239  # the layer in the vectors of seven keys


@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_vectors_as_draws(backend):
    backend = get_backend(backend)
    for keys, value in TEST_VECTORS.items():
        if len(keys) == 7 and keys[-1] < 2**12:
            *node, row, element = keys
            drawn = uniform(backend.xp, mix_keys(backend.xp, tuple(node)), 1, row, (1, 2**12))
            assert backend.asnumpy(drawn)[0, element] == (value >> 8) / 2**24


@pytest.mark.parametrize(
    ("rows", "shape"), [(3, (3, 5)), (3, (3, 2, 4, 5)), (3, (3,)), (None, (4, 3, 2)), (None, (7,))]
)
def test_strict_gives_the_same_bits(rows, shape):
    strict = get_backend("strict")
    drawn = uniform(strict.xp, 0xFFFFFFFF, rows, 2**31, shape)
    expected = uniform(NP, 0xFFFFFFFF, rows, 2**31, shape)
    assert (drawn.dtype, expected.dtype) == (strict.xp.float32, np.float32)
    assert drawn.shape == expected.shape == shape
    np.testing.assert_array_equal(strict.asnumpy(drawn), expected)


def test_uniform_in_the_half_open_interval():
    sample = uniform(NP, mix_keys(NP, (0, 0, 1, 2, 0)), 500, 0, (500, 400)).astype("float64")
    assert sample.min() >= 0.0
    assert sample.max() < 1.0
    deviation = 1 / np.sqrt(12 * sample.size)
    assert abs(sample.mean() - 0.5) < 4 * deviation
    assert abs(sample.var() - 1 / 12) < 4 * deviation / np.sqrt(5)
    counts = np.bincount((sample * 64).astype(int).ravel(), minlength=64)
    assert ((counts - sample.size / 64) ** 2).sum() / (sample.size / 64) < 120  # chi squared, 63 degrees: p < 2e-5
    rows = np.corrcoef(sample[:100])
    assert abs(rows - np.eye(100)).max() < 0.3


@pytest.mark.parametrize("shape", [(10,), (10, 6), (10, 3, 4, 5)])
def test_slices_of_the_batch_draw_what_the_whole_draws(shape):
    whole = uniform(NP, 7, 10, 0, shape)
    parts = [uniform(NP, 7, rows, first, (rows, *shape[1:])) for first, rows in ((0, 4), (4, 6))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    elements = whole.reshape(10, -1)
    for row, element in itertools.product((0, 9), (0, -1)):  # element counts in C order, whatever the memory order
        bits = mix(mix(row ^ 7) ^ (element % elements.shape[1]))
        assert elements[row, element] == (bits >> 8) / 2**24


def test_channels_last_in_memory():
    assert uniform(NP, 7, 2, 0, (2, 3, 4, 5)).transpose(0, 2, 3, 1).flags.c_contiguous


def test_no_two_of_2000_steps_share_a_stretch():
    seen = {}
    for step in range(2000):
        words = uniform(NP, mix_keys(NP, (0, 0, step, 0x07A95239, 0)), 2, 0, (2, 16))
        for row, start in itertools.product(range(2), range(14)):
            stretch = words[row, start : start + 3].tobytes()  # 72 bits: by chance once in 1e12 runs
            assert seen.setdefault(stretch, step) == step, f"steps {seen[stretch]} and {step} share draws"
    assert len(seen) == 2000 * 2 * 14
