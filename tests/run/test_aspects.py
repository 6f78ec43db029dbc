"""A run on two aspects of one plugin and a conditional reward, with what reads it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from marble_cli.config.schema import RunConfig
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.explain.analysis import explain
from marble_cli.metrics.history import read_history
from marble_cli.report.reading import read_runs
from marble_cli.run.train import train
from tests.run.runs import SETTINGS

RunConfigMaker = Callable[..., RunConfig]

REWARDS = (
    "+rewards.views={plugin: views, aspects: {red: {weight: 2.0}, contrast: {role: guard}}}",
    'rewards.colorfulness.only_if="views.red > 100"',
    '+eval_rewards.seen={plugin: compressibility, only_if: "views.contrast > 1"}',
    "balance.priorities.views.red=2",
    "trainer.best=reward/views.red/mean",
    "trainer.eval_prompts=2",
    "rollout.batch_size=4",
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


def test_a_run_on_aspects(
    views: list[int], run_config: RunConfigMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for steps in (2, 3):
        config = run_config(f"trainer.steps={steps}", *SETTINGS, *REWARDS, f"run.dir={tmp_path / 'run'}")
        assert train(config, resume="auto") == 0
    assert "anew" not in caplog.text  # the balance and the base scores continue
    # One call per batch: two images of each of three sources before each start, six images of each of three
    # evaluations, and six images of each step in batches of four.
    assert views == [6, 4, 2, 4, 2, 4, 2, 4, 2, 6, 4, 2, 4, 2]

    history = read_history(tmp_path / "run")
    assert history.rewards == NAMES
    for row in history.train:
        assert row["reward/views.red/applicable"] == 6
        assert row["reward/colorfulness/applicable"] < 6
    assert all("balance/alpha/views.red" in row for row in history.refreshes)
    assert list(history.guards) == ["views.contrast"]
    assert all("reward/views.red/mean" in row for row in history.held_out)
    assert [reward.name for reward in explain(history).rewards] == list(NAMES)
    (run,) = read_runs([tmp_path / "run"])
    assert (run.trained, run.watched) == (NAMES, ("seen",))

    report = evaluate(str(tmp_path / "run"), ["base"], ["model.device=cpu", "evaluation.prompts=1"], None)
    assert [reward.name for reward in report.rewards] == [*NAMES, "seen"]
    assert report.comparisons[0].rewards[2].difference is not None
