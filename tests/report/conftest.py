"""Run folders made by hand, as a run leaves them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from marble_cli.config.compose import compose, dump
from marble_cli.metrics.samples import Sample, keep_samples
from marble_cli.report.page import report
from tests.report.page import Page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&amp; {{ 7 * 7 }}"
REWARDS = ("colorfulness", "compressibility")
Maker = Callable[..., Path]


def evaluation(
    step: int, *, interval: bool = True, rewards: tuple[str, ...] = (*REWARDS, "seen")
) -> dict[str, Any]:
    """Make a row of an evaluation: the first reward rises, the second is undecided, others fall."""
    row: dict[str, Any] = {
        "step": step,
        "phase": "eval",
        "eval/joint_improvement": 0.25,
        "eval/joint_decline": 0.5,
    }
    for place, name in enumerate(rewards):
        rise = step * (1.0, 0.0, -1.0)[min(place, 2)]
        row |= {f"reward/{name}/mean": 5 + rise, f"reward/{name}/std": 2.0, f"reward/{name}/applicable": 9}
        if interval:
            ends = {"change": rise, "change_low": rise - 0.5, "change_high": rise + 0.5}
            row |= {f"reward/{name}/{end}": value if step else 0.0 for end, value in ends.items()}
    return row


def training(step: int, rewards: tuple[str, ...] = REWARDS) -> dict[str, Any]:
    """Make a row of a training step that refreshes the balance."""
    row: dict[str, Any] = {
        "step": step, "phase": "train", "balance/refresh": 1, "balance/gap": 0.0, "balance/fallbacks": 0,
        "time/rollout": 3.0, "time/reward": 1.0, "time/train": 4.0, "time/step": 8.0,
        "throughput/images_per_second": 0.75, "grad_norm": 1.0,
    }  # fmt: skip
    for place, name in enumerate(rewards):
        row |= {
            f"reward/{name}/mean": 5 + 0.1 * step, f"reward/{name}/std": 2.0, f"reward/{name}/applicable": 4,
            f"reward/{name}/failed": 0, f"balance/alpha/{name}": 1 / len(rewards),
            f"balance/cosine/{name}": 0.5 - place, f"balance/grad_norm/{name}": 1.0,
        }  # fmt: skip
        row |= {f"balance/pairwise_cosine/{other}/{name}": -0.5 for other in rewards[:place]}
    return row


def keep_pictures(folder: Path, step: int, scores: list[dict[str, float]], *, first: bool) -> None:
    """Keep one small picture per mapping of scores; its prompt ends with markup."""
    image = np.full((8, 8, 3), 10 * step, dtype=np.uint8)
    samples = [Sample(i, f"prompt {i} {EVIL}", "general", row, image) for i, row in enumerate(scores)]
    keep_samples(folder / "samples", step, samples, first=first)


def write_run(
    parent: Path, name: str, rows: list[dict[str, Any]], *overrides: str, log: str | None = None
) -> Path:
    """Write rows, a configuration with overrides and a log into a run's folder; return the folder."""
    folder = parent / name
    folder.mkdir()
    settings = ("rewards=[colorfulness,compressibility]", "+eval_rewards.seen={plugin: colorfulness}")
    config = compose([*settings, "trainer.steps=2", f"run.dir={folder}", *overrides])
    (folder / "config.yaml").write_text(dump(config))
    if rows:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if log is not None:
        (folder / "log.txt").write_text(log)
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Maker:
    """`write_run` into the test's folder."""
    return partial(write_run, tmp_path)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps and two evaluations, resumed once, with pictures and an evaluation."""
    log = (
        "2026-01-02 03:04:05,678 INFO marble 0.1.0, after step 0\n"
        "2026-01-02 03:04:06,678 INFO reward compressibility, retry 1 of 2: TimeoutError: no answer\n"
        f"2026-01-02 03:04:07,678 WARNING reward compressibility failed on 3 images: {EVIL}\n"
        "2026-01-02 03:05:05,678 ERROR RewardError: it is gone\n"
        "Traceback\n"
        "2026-01-02 03:06:05,678 INFO marble 0.1.0, after step 1\n"
    )
    steps = [training(1) | {"reward/compressibility/failed": 3}, training(2) | {"skipped": 1}]
    folder = write_run(
        tmp_path_factory.mktemp("runs"), "first", [evaluation(0), *steps, evaluation(2)], log=log
    )
    keep_pictures(folder, 0, [{"colorfulness": 1.0, "seen": 1.0}, {"colorfulness": 4.0}], first=True)
    keep_pictures(folder, 2, [{"colorfulness": 5.0, "seen": 0.0}, {"colorfulness": 3.0}], first=False)
    tree = {
        "target": "first/step-00000002", "against": "base", "prompts": 40,
        "rewards": {
            "colorfulness": {
                "n": 40, "failed": 0, "mean": 6.5, "reference": 5.0, "difference": 1.5, "interval": [1.0, 2.0]
            },
        },
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(tree))
    return folder


@pytest.fixture(scope="session")
def page(run: Path) -> Page:
    """The report of that run."""
    return Page(report([run]))
