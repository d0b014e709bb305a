"""The text of Python's help() for text_transformer.py, and how many bits a letter of it costs by simpler means.

The text comes with Python itself: 370 000 letters in 3.11.
"""

from collections import Counter
from pydoc_data.topics import topics

import numpy as np


def load():
    """Return the letters to learn from, and the first tenth, to test on. Of equal paragraphs only the first is kept."""
    paragraphs = (part.strip("\n") for name in sorted(topics) for part in topics[name].split("\n\n"))
    text = "\n\n".join({" ".join(part.split()): part for part in paragraphs}.values())
    return text[len(text) // 10 :], text[: len(text) // 10]


def bits_by_counts(learn, test, past):
    """Return what a letter of the test costs by counts of what came after the ``past`` letters before it, mixed with
    counts after fewer, after Witten and Bell: of the test itself nothing is counted."""
    chances = np.full(len(test), 1 / len(set(learn + test)))
    for length in range(past + 1):
        counts = Counter(learn[k : k + length + 1] for k in range(len(learn) - length))
        followers = Counter(gram[:-1] for gram in counts)
        totals = Counter()
        for gram, count in counts.items():
            totals[gram[:-1]] += count
        text = learn[len(learn) - length :] + test
        for k in range(len(test)):
            gram = text[k : k + length + 1]
            if kinds := followers[gram[:-1]]:
                chances[k] = (counts[gram] + kinds * chances[k]) / (totals[gram[:-1]] + kinds)
    return -np.log2(chances).mean()


def bits_by_file(compress, learn, test):
    """Return by how many bits a letter of the test makes a compressed file longer that holds the rest already."""
    return 8 * (len(compress((learn + test).encode())) - len(compress(learn.encode()))) / len(test)
