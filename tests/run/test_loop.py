"""Steps that are skipped, fail or cannot be recorded, and the metrics of those that succeed."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.config.schema import RunConfig
from marble_cli.errors import RewardError, TrainingError
from marble_cli.metrics.jsonl import read_rows
from marble_cli.rewards.worker import RewardWorker
from marble_cli.rollout.collect import Rollout
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.train import train
from marble_cli.step.direction import Descent, Direction
from tests.run.weights import weights

RunConfigMaker = Callable[..., RunConfig]


def test_an_image_that_is_not_finite_costs_no_step(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no score, so it does not move the weights, and the others do."""
    original = Rollout.draw

    def spoilt(self: Rollout, *rest: Any) -> Tensor:
        latents = original(self, *rest)
        latents[0] = torch.nan
        return latents

    monkeypatch.setattr(Rollout, "draw", spoilt)
    words = ["trainer.steps=1", "trainer.eval_every=0", f"run.dir={tmp_path}"]
    config = run_config(*words, *(f"rewards.{name}.max_failed=0.9" for name in run_config().rewards))
    assert train(config, resume="auto") == 0
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert all(row[f"reward/{name}/failed"] > 0 for name in config.rewards)
    assert "skipped" not in row
    assert row["grad_norm"] > 0


def test_non_finite_gradient_leaves_the_weights_unchanged(
    run_config: RunConfigMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    original = Descent.direct

    def spoilt(self: Descent, step: int, *rest: Any) -> Direction:
        direction = original(self, step, *rest)
        scale = torch.nan if step == 2 else 1.0
        return replace(direction, gradient=direction.gradient * scale, warnings=("as at every step",))

    cached = "balance/alpha_cached/colorfulness"

    monkeypatch.setattr(Descent, "direct", spoilt)
    config = run_config(
        f"run.dir={tmp_path}",
        "trainer.steps=3",
        "trainer.checkpoint_every=1",
        "trainer.keep_last=3",
        "balance.refresh_every=1",
    )
    with caplog.at_level(logging.WARNING, "marble"):
        assert train(config, resume="auto") == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row.get("skipped") for row in rows] == [None, 1, None]
    assert "grad_norm" not in rows[1]
    assert [cached in row for row in rows] == [True, False, True], "a skipped refresh caches nothing"
    assert all(row["optimizer/learning_rate"] == config.optimizer.lr for row in rows)
    log = (tmp_path / "log.txt").read_text()
    assert "step 2: the gradient is not finite" in log
    assert log.count("as at every step") == 1
    with safe_open(tmp_path / "skipped" / "step-00000002-rank-0.safetensors", "pt") as batch:
        assert set(batch.keys()) == {
            "x0",
            "images",
            "times",
            "indices",
            "rewards",
            "applicable",
            "optimality",
        }
        assert batch.get_tensor("images").shape == (6, 3, 16, 16)
        assert len(json.loads(batch.metadata()["prompts"])) == 6
    for part in ("lora", "ema", "behaviour", "optimizer"):
        first, second, third = (weights(tmp_path, part, step) for step in (1, 2, 3))
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not all(torch.equal(third[key], second[key]) for key in first)
    infos = [
        json.loads((tmp_path / "checkpoints" / f"step-0000000{n}" / "state.json").read_text()) for n in (1, 2)
    ]
    assert infos[0]["info"] == infos[1]["info"]


def test_broken_reward_stops_the_run_after_a_checkpoint(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"n": 0}
    original = RewardWorker.score

    def failing(self: RewardWorker, batch: Any, sources: Any, drawn: Any) -> Any:
        if self.name == "colorfulness":
            calls["n"] += 1
            if calls["n"] > 5:  # the first trial, and two steps of two batches
                raise RewardError("reward colorfulness returned text")
        return original(self, batch, sources, drawn)

    monkeypatch.setattr(RewardWorker, "score", failing)
    config = run_config(f"run.dir={tmp_path}", "trainer.steps=9", "trainer.checkpoint_every=9")
    with pytest.raises(RewardError, match="returned text"):
        train(config, resume="auto")
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000002"
    monkeypatch.setattr(RewardWorker, "score", original)
    assert train(run_config(f"run.dir={tmp_path}", "trainer.steps=3"), resume="auto") == 0
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_metrics_have_the_documented_keys(run_config: RunConfigMaker, tmp_path: Path) -> None:
    """Other programs read these keys; removing or renaming one is a decision."""
    config = run_config(
        f"run.dir={tmp_path}", "trainer.steps=2", "trainer.eval_every=2", "balance.refresh_every=2"
    )
    train(config, resume="auto")
    rows = read_rows(tmp_path / "metrics.jsonl")
    each = {f"reward/{name}/{figure}" for name in config.rewards for figure in ("mean", "std", "applicable")}
    always = each | {
        "step",
        "phase",
        "loss/policy",
        "loss/kl",
        "signal/dead_groups",
        "signal/trained_images",
        "policy/deviation",
        "loss/kl_coef",
        "grad_norm",
        "balance/refresh",
        "behaviour/eta",
        "optimizer/learning_rate",
    }
    always |= {f"time/{part}" for part in ("rollout", "reward", "train", "step")} | {
        "throughput/images_per_second"
    }
    of_rewards = {
        "reward/{}/failed",
        "advantage/{}/std",
        "advantage/{}/effective_samples",
        "reward/{}/flat_groups",
    }
    of_rewards |= {"balance/alpha/{}", "balance/weight/{}"}
    always |= {key.format(name) for key in of_rewards for name in config.rewards}
    figures = ("grad_norm", "cosine", "alpha_cached")
    refresh = {f"balance/{figure}/{name}" for figure in figures for name in config.rewards}
    refresh |= {
        "balance/gap",
        "balance/solve_seconds",
        "balance/fallbacks",
        "balance/conflict_share",
        "balance/failed",
    }
    refresh |= {"balance/pairwise_cosine/colorfulness/compressibility"}
    judged = each | {f"reward/{name}/failed" for name in config.rewards} | {"step", "phase"}
    judged |= {
        f"reward/{name}/{change}"
        for name in config.rewards
        for change in ("change", "change_low", "change_high", "change_p", "gain")
    }
    judged |= {f"eval/{metric}" for metric in ("composite", "joint_improvement", "joint_decline")}
    assert [set(row) for row in rows] == [judged | {"eval/start"}, always | refresh, always, judged]
    assert (
        rows[1]["time/step"] >= sum(rows[1][f"time/{part}"] for part in ("rollout", "reward", "train")) - 1e-6
    )


def test_unrecorded_step_is_not_checkpointed(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("trainer.steps=3", "trainer.checkpoint_every=1", f"run.dir={tmp_path}")
    record = RunRecorder.record

    def full_disk(self: RunRecorder, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 2:
            raise OSError("No space left on device")
        record(self, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "record", full_disk)
        with pytest.raises(OSError, match="No space"):
            train(run_config(*settings), resume="auto")
    assert [path.name for path in store.steps(tmp_path)] == ["step-00000001"]
    assert train(run_config(*settings), resume="auto") == 0
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_too_many_skipped_steps_stop_the_run(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Descent.direct

    def direct(self: Descent, step: int, *rest: Any) -> Direction:
        direction = original(self, step, *rest)
        return replace(direction, gradient=direction.gradient / 0.0) if step in (1, 3, 4, 5) else direction

    monkeypatch.setattr(Descent, "direct", direct)
    config = run_config(f"run.dir={tmp_path}", "trainer.steps=9", "trainer.max_skipped=2")
    with pytest.raises(TrainingError, match=r"of 3 steps in a row were not finite.*trainer\.max_skipped=2"):
        train(config, resume="auto")
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000004"
    assert len(list((tmp_path / "skipped").iterdir())) == 4
