"""Every test of redaction leaves the environment as it was."""

import os

import pytest


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the environment after every test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
