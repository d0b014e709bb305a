"""The long description of the distribution: the README, but for links that lead nowhere on a package index."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Description(MetadataHookInterface):
    """A metadata hook of hatchling, which finds this file by its name."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": without_neighbours(text)}


def without_neighbours(text: str) -> str:
    """Put the words of pictures, and the paths of pages, where a page refers to files that lie beside it.

    >>> without_neighbours("[Train](docs/train.md), [above](#a), [DOI](https://doi.org/10), ![Digits](docs/digits.png)")
    'Train (`docs/train.md`), [above](#a), [DOI](https://doi.org/10), *Digits*'
    """
    text = re.sub(r"!\[([^]]+)\]\((?!https?:)[^)]+\)", r"*\1*", text)
    return re.sub(r"\[([^]]+)\]\((?!https?:|#)([^)]+)\)", r"\1 (`\2`)", text)
