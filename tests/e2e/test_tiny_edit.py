"""The embedded editing model from the command line: train, resume, and judge against the base model."""

import json
from pathlib import Path

from marble_cli.cli.app import app
from marble_cli.metrics.jsonl import read_rows

SMALL = (
    "rollout.groups=2",
    "rollout.group_size=3",
    "rollout.steps=2",
    "rollout.batch_size=6",
    "trainer.micro_batch_size=6",
    "trainer.times_per_image=1",
    "trainer.eval_prompts=6",
    "trainer.eval_every=2",
    "logging.wandb.mode=disabled",
)


def marble(*words: object) -> None:
    assert not app(list(map(str, words)), standalone_mode=False)


def test_two_rewards_of_an_edit_are_trained_and_judged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    marble("train", "preset=tiny_edit", *SMALL, "trainer.steps=1", f"run.dir={run}")
    marble("train", "preset=tiny_edit", *SMALL, "trainer.steps=2", f"run.dir={run}")
    rows = read_rows(run / "metrics.jsonl")
    steps = [row for row in rows if row["phase"] == "train"]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row[f"reward/{name}/applicable"] == 6 for row in steps for name in ("following", "keeping"))

    marble("eval", run, "--against", "base", "rollout.steps=4", "--output", tmp_path / "judged")
    report = json.loads((tmp_path / "judged" / "report.json").read_text())
    base = {name: result["reference"] for name, result in report["rewards"].items()}
    assert 0 < base["following"] < 1
    assert -45 < base["keeping"] < -5, "worse than the VAE alone, and better than a picture drawn anew"
