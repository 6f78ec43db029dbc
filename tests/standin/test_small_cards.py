"""A preset for cards of 24 GB that no GPU has measured takes what the plan says, at its model's true size."""

import json
from pathlib import Path

import pytest

from tests.standin.device import run


def test_a_refresh_takes_the_memory_that_is_planned(tmp_path: Path) -> None:
    """In nf4 with gradient checkpointing; the bench allows as much memory as such a card has."""
    file = tmp_path / "found.json"
    words = ("--presets", "qwen_image_24gb", "--repeats", "1", "--json", str(file), "model.compile=false")
    done = run("-m", "scripts.bench.small_cards", *words)
    assert done.code == 0, done.said
    rows = json.loads(file.read_text())["tables"][0]["rows"]
    refresh = next(row for row in rows if row["part"] == "refresh")
    assert refresh["plan GiB"] == pytest.approx(refresh["peak GiB"], rel=0.1)
