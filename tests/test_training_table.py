"""The tables of docs/training-step.md say what is exported now: nothing is missing, each row is found anew."""

from __future__ import annotations

import os
import random

import pytest
import training_table
from training_table import HEADINGS, PAGE, line, row, rows_of, subjects

KINDS = [(kind, name) for kind in HEADINGS for name in subjects(kind)]
SEED = int(os.environ.get("LAMELLA_SEED") or random.randrange(1 << 30))
SAMPLE = KINDS if os.environ.get("LAMELLA_TABLE") else random.Random(SEED).sample(KINDS, len(KINDS) // 4)
OLD = "docs/training-step.md is old; run: python tests/training_table.py"


@pytest.mark.parametrize("kind", HEADINGS)
def test_every_registered_name_has_a_row(kind):
    assert list(rows_of(PAGE.read_text(encoding="utf-8"), kind)) == list(subjects(kind)), OLD


@pytest.mark.parametrize("place", range(len(SAMPLE)))
def test_each_row_is_what_is_found_now(place):
    """A quarter of all rows; ``LAMELLA_TABLE=1 pytest`` looks at every one, ``LAMELLA_SEED`` at the same ones again."""
    kind, name = SAMPLE[place]
    print(f"LAMELLA_SEED={SEED}: {name}")
    specimens = subjects(kind)[name]
    assert specimens, "no specimen shows what it can do"
    assert rows_of(PAGE.read_text(encoding="utf-8"), kind)[name] == line(row(kind, name, specimens)), OLD


def test_a_layer_that_can_not_be_trained_is_an_error(monkeypatch):
    """A cell says only what an export has found: there is no way to write "all" by hand."""

    def refuse(*arguments, **options):
        raise RuntimeError("refused")

    monkeypatch.setattr(training_table, "export_training_step", refuse)
    with pytest.raises(RuntimeError, match="refused"):
        row("layers", "Dense", subjects("layers")["Dense"])
