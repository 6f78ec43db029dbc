"""Presets for small cards are measured, here with small pipelines in the place of the published models."""

import json
from collections.abc import Callable
from pathlib import Path

from scripts.bench import small_cards
from tests.policy.conftest import tiny_folder
from tests.policy.families.pipelines import TINY

__all__ = ["tiny_folder"]

SETTINGS = (
    "model.precision=fp32",
    "model.device=cpu",
    "model.lora.target_modules=[to_q]",
    "optimizer=adamw",
    "rollout.batch_size=3",
    "trainer.micro_batch_size=2",
)


def test_presets_are_measured_beside_the_plan(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    tiny, figures = TINY["flux_dev"], tmp_path / "figures.json"
    overrides = (
        f"model.path={tiny_folder('flux_dev')}",
        f"model.resolution={tiny.resolution}",
        f"model.max_sequence_length={tiny.max_sequence_length}",
        *tiny.overrides,
        *SETTINGS,
    )
    presets = ("flux_24gb", "flux_24gb_offload")
    small_cards.main(["--presets", *presets, "--repeats", "1", "--json", str(figures), "--", *overrides])
    rows = json.loads(figures.read_text())["tables"][0]["rows"]
    assert [(row["preset"], row["images"]) for row in rows] == [(p, n) for p in presets for n in (3, 2, 2)]
    for row in rows:
        assert row["seconds"] == row["per image"] * row["images"] > 0
        assert row["peak GiB"] > 0
    assert [row["plan GiB"] is None for row in rows] == [True, True, False] * 2
    # Of the same model, the offloaded preset plans to keep less on the card.
    assert rows[5]["plan GiB"] < rows[2]["plan GiB"]
