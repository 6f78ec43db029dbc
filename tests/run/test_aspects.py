"""A run on two aspects of one plugin and a conditional reward: metrics, resume, evaluation, explain, report."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from marble_cli.config.schema import RunConfig
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.explain.analysis import explain
from marble_cli.metrics.history import read_history
from marble_cli.metrics.jsonl import read_rows
from marble_cli.report.reading import read_runs
from marble_cli.run.train import train
from tests.run.runs import SETTINGS, assert_same_run

RunConfigMaker = Callable[..., RunConfig]

REWARDS = (
    "+rewards.views={plugin: views, aspects: {red: {weight: 2.0}, contrast: {}}}",
    'rewards.colorfulness.only_if="views.red > 100"',
    '+eval_rewards.seen={plugin: compressibility, only_if: "views.contrast > 1"}',
    "balance.priorities.views.red=2",
    "trainer.best=reward/views.red/mean",
)
NAMES = ("colorfulness", "compressibility", "views.red", "views.contrast")


class Views:
    """How red and how contrasting a picture is."""

    aspects = ("red", "contrast")
    calls: list[int] = []  # noqa: RUF012 - filled by the instance

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self.calls.append(len(images))
        return {"red": images[:, 0].float().mean((1, 2)), "contrast": images.float().std((1, 2, 3))}


@pytest.fixture
def views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Install the reward `views`; return the batch sizes of its calls."""
    folder = tmp_path / "site" / "views-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: views\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[marble.rewards]\nviews = {__name__}:Views\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(Views, "calls", [])
    return Views.calls


def test_a_run_on_aspects(views: list[int], run_config: RunConfigMaker, tmp_path: Path) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert train(run_config("trainer.steps=4", *SETTINGS, *REWARDS, f"run.dir={whole}"), resume="auto") == 0
    # Two images of each of three sources first, two prompts at three evaluations, six images in batches of 4.
    assert sum(views) == 6 + 3 * 6 + 4 * 6
    assert len(views) == 1 + len(views[1:]) and max(views) <= 6
    for steps in ("trainer.steps=2", "trainer.steps=4"):
        assert train(run_config(steps, *SETTINGS, *REWARDS, f"run.dir={parted}"), resume="auto") == 0
    assert_same_run(parted, whole)

    history = read_history(whole)
    assert history.rewards == NAMES
    for row in history.train:
        assert row["reward/views.red/applicable"] == 6
        assert row["reward/colorfulness/applicable"] < 6
        assert "balance/alpha/views.contrast" in row or not row["balance/refresh"]
    evaluations = [row for row in read_rows(whole / "metrics.jsonl") if row["phase"] == "eval"]
    assert all("reward/views.red/mean" in row for row in evaluations)
    assert [reward.name for reward in explain(history).rewards] == list(NAMES)
    (run,) = read_runs([whole])
    assert (run.trained, run.watched) == (NAMES, ("seen",))

    report = evaluate(str(whole), ["base"], ["model.device=cpu"], None)
    assert [reward.name for reward in report.rewards] == [*NAMES, "seen"]
    assert report.comparisons[0].rewards[2].difference is not None
    assert torch.tensor(views).max() <= 6
