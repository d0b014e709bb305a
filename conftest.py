"""Examples in docstrings write their files into a folder of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _folder_of_its_own(request, tmp_path_factory, monkeypatch):
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("example"))
