"""No law finds anything wrong with a built-in layer or loss, whatever its configuration."""

import os
import random

import numpy as np
import pytest
from random_layers import GENERATORS, configuration

from lamella import registry
from lamella.testing import check_specimen


def test_every_built_in_layer_and_loss_has_random_configurations():
    entries = [entry for kind in ("layers", "losses") for entry in registry.entries(kind)]
    assert set(GENERATORS) == {entry.object for entry in entries if entry.plugin.is_own}


@pytest.mark.filterwarnings(  # sizes of 1 are drawn often
    "ignore:.* runs (along an axis of size 1|over one key):lamella.errors.MistakeWarning"
)
def test_nothing_built_in_is_blamed_in_any_valid_configuration():
    """``LAMELLA_CONFIGURATIONS=1000 pytest`` tries more of them, each class in turn.

    ``LAMELLA_SEED`` repeats a run: the same configurations in the same order.
    """
    seed = int(os.environ.get("LAMELLA_SEED") or random.randrange(1 << 30))
    print(f"LAMELLA_SEED={seed}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(list(GENERATORS))
    for k in range(int(os.environ.get("LAMELLA_CONFIGURATIONS", "24"))):
        specimen = configuration(rng, order[k % len(order)])
        print(f"check_specimen({specimen.subject!r}, {', '.join(map(repr, specimen.inputs))}, seed={k})")
        check_specimen(specimen, seed=k)
