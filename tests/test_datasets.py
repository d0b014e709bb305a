"""The data that travels with the package: all of it, unchanged, with its licence."""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np

from lamella.datasets import digits

CHECKSUM = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of images and labels as uint8


def test_digits_are_all_there_and_unchanged():
    images, labels = digits()
    assert (images.shape, images.dtype) == ((1797, 1, 8, 8), np.dtype("float32"))
    assert (labels.shape, labels.dtype) == ((1797,), np.dtype("int64"))
    assert (images.min(), images.max()) == (0, 16)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    content = images.astype("uint8").tobytes() + labels.astype("uint8").tobytes()
    assert hashlib.sha256(content).hexdigest() == CHECKSUM


def test_digits_are_the_callers_own():
    first, second = digits()[0], digits()[0]
    first[...] = -1
    assert second.min() == 0


def test_the_licence_lies_beside_the_data():
    text = resources.files("lamella.datasets").joinpath("digits.LICENSE.md").read_text()
    assert all(words in text for words in ("CC BY 4.0", "10.24432/C50P49", "Alpaydin", "Kaynak"))
