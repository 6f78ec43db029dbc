"""Every test of redaction starts without learned secrets."""

import os

import pytest

from marble_cli import redaction


@pytest.fixture(autouse=True)
def _unlearned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the learned secrets, and restore the environment after every test."""
    monkeypatch.setattr(redaction, "_learned", {})
    monkeypatch.setattr(redaction, "_values", None)
    monkeypatch.setattr(os, "environ", os.environ.copy())
