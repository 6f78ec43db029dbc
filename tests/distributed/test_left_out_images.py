"""Images left out or drawn again, of several sizes: any number of processes trains as one, also resumed.

They are edited from one picture or two, so that two processes hold images of different numbers.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.metrics.jsonl import read_rows
from marble_cli.policy import source
from marble_cli.rewards.builtin import colorfulness
from tests.distributed import signal_ranks
from tests.distributed.alike import SETTINGS, assert_alike
from tests.distributed.processes import ends, job

# The watched reward agrees with the trained one where it applies, so that the gate closes there alone.
KL = (
    "algorithm.kl_reference=guided",
    "algorithm.kl_guidance=3",
    "algorithm.kl_gate=watched",
    "+eval_rewards.same={plugin: colorfulness, sources: [text, general]}",
)
PROGRAM = Path(signal_ranks.__file__)


def run(config: RunConfig, file: Path, world: int) -> list[dict[str, Any]]:
    """Train by as many processes, of which a single one is this."""
    file.write_text(dump(config))
    if world == 1:
        signal_ranks.main(file)
    else:
        for rank, (_, out, err) in enumerate(ends(job([(PROGRAM, file)] * world))):
            assert out.endswith(f"done {rank}\n"), err
    return read_rows(Path(config.run.dir) / "metrics.jsonl")


@pytest.fixture
def edits_folder(sized_prompts_folder: Path, tmp_path: Path) -> Path:
    """The prompts of several sizes, each with one picture or two; these have shapes of their own."""
    folder = tmp_path / "edits"
    for i, size in enumerate(((24, 24), (16, 40))):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", size, (60 * i + 20, 90, 10)).save(folder / f"{i}.png")
    for file in sized_prompts_folder.glob("*/*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for number, row in enumerate(rows):
            row["image"] = ["0.png", "1.png"][: 1 + number // 2 % 2]
        (folder / file.parent.name).mkdir(exist_ok=True)
        (folder / file.parent.name / file.name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_processes_train_as_one(
    run_config: Callable[..., RunConfig],
    edits_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes take the first two steps, and this one the third from their checkpoint."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(colorfulness, "colorfulness", colorfulness.colorfulness)  # put back afterwards
    monkeypatch.setattr(source, "FAMILIES", dict(source.FAMILIES))
    settings = ("rewards=[colorfulness]", *SETTINGS[2:], "trainer.eval_every=0", "trainer.checkpoint_every=1")

    def config(folder: str, steps: int) -> RunConfig:
        chosen = ("rollout.dead_groups=redraw", "trainer.select.fraction=0.6", *KL)
        sized = f"data.root={edits_folder}"
        more = (*chosen, sized, f"trainer.steps={steps}", f"run.dir={tmp_path / folder}")
        return run_config(*settings, *more)

    alone = run(config("alone", 3), tmp_path / "alone.yaml", 1)
    run(config("two", 2), tmp_path / "two.yaml", 2)
    # A rounded pixel changes the probability of its image, and with it the image's weight in the loss. With
    # pictures, images differ by one level of brightness, of which a pixel is a thousandth.
    assert_alike(run(config("two", 3), tmp_path / "two.yaml", 1), alone, near_loss=5e-4, near_rest=5e-4)
    assert {0 < row["loss/kl_share"] < 1 for row in alone} == {True}
    assert any(row["signal/redrawn_groups"] > 0 for row in alone)
    assert all(row["signal/trained_images"] == round(9 * (1 - row["signal/dead_groups"])) for row in alone)
