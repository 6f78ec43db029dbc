"""Plugins that tests install for themselves."""

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import tenacity

Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Make objects of `sample_plugins` the only installed rewards: `install(name="Object")`."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def make(**objects: str) -> None:
        entries = {
            name: EntryPoint(name, value if ":" in value else f"sample_plugins:{value}", "marble.rewards")
            for name, value in objects.items()
        }
        monkeypatch.setattr("marble_cli.rewards.registry.installed", lambda: entries)

    return make


@pytest.fixture(autouse=True)
def _retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marble_cli.rewards.worker.BACK_OFF", tenacity.wait_none())
