"""Every test of redaction starts without learned secrets."""

import os

import pytest

from marble_cli import redaction


@pytest.fixture(autouse=True)
def _unlearned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has learned nothing, and whose environment no test changes for others."""
    monkeypatch.setattr(redaction, "_learned", {})
    monkeypatch.setattr(redaction, "_values", None)
    monkeypatch.setattr(os, "environ", os.environ.copy())
