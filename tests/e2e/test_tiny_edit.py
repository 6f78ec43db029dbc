"""The embedded editing model from the command line: train, resume, and judge against the base model."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from marble_cli.cli.app import app
from marble_cli.config.compose import compose
from marble_cli.data.prompts import load_prompts
from marble_cli.metrics.jsonl import read_rows
from marble_cli.metrics.samples import read_samples

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

    kept = read_samples(run / "samples", 2)
    (before,) = load_prompts(compose(["preset=tiny_edit"]).data, "test")["edit"][kept[0].index].images
    with Image.open(kept[0].condition) as picture:  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(picture), before.pixels(*picture.size).permute(1, 2, 0))
    marble("report", run, "--output", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('<figure class="condition">') == page.count('<div class="compare">') == len(kept) > 0

    marble("eval", run, "--against", "base", "rollout.steps=4", "--output", tmp_path / "judged")
    report = json.loads((tmp_path / "judged" / "report.json").read_text())
    base = {name: result["reference"] for name, result in report["rewards"].items()}
    assert 0 < base["following"] < 1
    assert -45 < base["keeping"] < -5, "worse than the VAE alone, and better than a picture drawn anew"
