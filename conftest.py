"""Tests and examples leave nothing behind: neither files of examples nor names of `lm.register`."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _folder_of_its_own(request, tmp_path_factory, monkeypatch):
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("example"))


@pytest.fixture(autouse=True)
def _names_of_its_own(monkeypatch):
    """What a test makes known by ``lm.register`` is forgotten after it."""
    from lamella import registry

    installed = registry._INSTALLED
    monkeypatch.setattr(installed, "_script", {kind: dict(known) for kind, known in installed._script.items()})
    monkeypatch.setattr(installed, "_found", {})
