"""Random numbers from a counter: a pure function of seed, step, node, call, row and element.

There is no generator to carry along. A layer's draw is a chain of seven keys: low and high word of the seed, step,
crc32 of the layer's name, call number, row, element. Every key goes through `mix` on its own, ``h = mix(h ^ key)``,
never added to another, so that neighbouring steps or seeds share nothing. NumPy, CuPy, ONNX graphs and JavaScript
give the same bits: 32-bit unsigned multiplication, exclusive or, shifts. `TEST_VECTORS` pins them.

The mixing function is "lowbias32" from Chris Wellons, https://nullprogram.com/blog/2018/07/31/.
"""

from __future__ import annotations

from typing import Any

__all__ = ["TEST_VECTORS", "mix", "mix_keys", "uniform"]

_START = 0x9E3779B9  # keeps a chain of zero keys away from mix(0) = 0
_WORD = 0xFFFFFFFF

# keys of a chain -> h after the last of them; those of seven keys are draws of a layer called "dropout_1"
TEST_VECTORS: dict[tuple[int, ...], int] = {
    (0,): 0x01FCE552,
    (1,): 0xA4F7896C,
    (0xFFFFFFFF,): 0x35E1E3A1,
    (0, 0): 0xAE6F80F1,
    (0, 1): 0xA07C7A97,
    (1, 0): 0x8E374FE0,
    (1, 2, 3): 0xA6FDE042,
    (42, 0, 1000, 0x07A95239, 0, 0, 0): 0xC142EABC,
    (42, 0, 1000, 0x07A95239, 0, 127, 4095): 0x6C32229D,
    (0xDEADBEEF, 0xCAFEBABE, 0xFFFFFFFF, 0x07A95239, 3, 0x7FFFFFFF, 0x80000000): 0xE11B81EC,
}


def mix(h: Any) -> Any:
    """Scramble 32 bits, one to one. Takes a Python int below 2**32 or an array of uint32."""
    h = h ^ (h >> 16)
    h = _wrap(h * 0x7FEB352D)
    h = h ^ (h >> 15)
    h = _wrap(h * 0x846CA68B)
    return h ^ (h >> 16)


def _wrap(h: Any) -> Any:
    return h & _WORD if isinstance(h, int) else h  # arrays of uint32 wrap by themselves


def mix_keys(xp: Any, keys: tuple[Any, ...]) -> Any:
    """Chain keys into one. Keys are Python ints or, in a traced graph, uint32 arrays of one element.

    >>> hex(mix_keys(None, (1, 2, 3)))
    '0xa6fde042'
    """
    h: Any = _START
    for key in keys:
        h = mix(h ^ (key & _WORD if isinstance(key, int) else key))
    return h


def uniform(xp: Any, key: Any, rows: Any, first_row: int, shape: tuple[Any, ...]) -> Any:
    """Draw float32 values in [0, 1): the top 24 bits of ``mix(mix(key ^ row) ^ element)``.

    With ``rows=None`` there is no row, and ``element`` counts through the whole shape. For four axes the result has
    its channels last in memory, as the values that a layer multiplies it with.
    """
    if rows is None:
        inner, h = shape, key
    else:
        inner = shape[1:]
        row = xp.astype(xp.arange(rows), xp.uint32) + first_row
        h = xp.reshape(mix(row ^ key), (shape[0], *(1 for _ in inner)))
    bits = mix(_elements(xp, inner) ^ h)
    return xp.astype(bits >> 8, xp.float32) * 2.0**-24


def _elements(xp: Any, shape: tuple[int, ...]) -> Any:
    """0, 1, 2, ... in C order of a shape; a shape of three axes has its first axis last in memory."""
    size = 1
    for axis in shape:
        size *= axis
    if len(shape) != 3:
        return xp.reshape(xp.astype(xp.arange(size), xp.uint32), shape)
    channels, pixels = shape[0], shape[1] * shape[2]
    pixel = xp.reshape(xp.astype(xp.arange(pixels), xp.uint32), (*shape[1:], 1))
    channel = xp.astype(xp.arange(channels), xp.uint32) * pixels
    return xp.permute_dims(pixel + channel, (2, 0, 1))
