"""Judge targets: what a target is, and on which noise, pictures and settings it is judged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from marble_cli.checkpoint import store
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, ConfigError, StorageError
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.evaluate.report import EvalReport
from marble_cli.evaluate.target import Target, resolve_target
from marble_cli.evaluate.target import run_config as judging_config

RunConfigMaker = Callable[..., RunConfig]


def test_a_target_is_a_checkpoint_a_run_or_the_base_model(run: Path) -> None:
    assert resolve_target("base") == Target("base", None, None)
    latest, first = resolve_target(str(run)), resolve_target(str(run / "checkpoints" / "step-00000001"))
    assert (latest.label, first.label) == ("demo/step-00000002", "demo/step-00000001")
    assert latest.config == first.config == run / "config.yaml"
    assert first.weights is not None
    _, _, ema = store.load(run / "checkpoints" / "step-00000001")
    assert all(torch.equal(first.weights[key], value) for key, value in ema.items())
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        resolve_target(str(run / "nowhere"))


def test_the_judging_config_is_the_runs(run: Path, tmp_path: Path, run_config: RunConfigMaker) -> None:
    base, target = resolve_target("base"), resolve_target(str(run))
    config = judging_config(["trainer.eval_prompts=1"], target)
    assert config == run_config(f"run.dir={run}", "trainer.eval_prompts=1")
    assert judging_config([], base, target) == run_config(f"run.dir={run}")
    assert judging_config([], base).model.path == "tiny"
    moved = Target("moved", target.weights, tmp_path / "run" / "checkpoints" / "step-00000001")
    assert moved.config is None
    with pytest.raises(ConfigError, match=r"trainer\.eval_prompts"):
        judging_config(["trainer.eval_promts=1"], target)


def test_a_policy_against_itself_differs_in_nothing(run: Path) -> None:
    report = evaluate(str(run), [str(run)], [], None)
    assert {r.name for r in report.rewards} == {"colorfulness", "compressibility"}
    assert all((r.difference, r.low, r.high) == (0.0, 0.0, 0.0) for r in report.rewards)
    assert all(r.n == 6 for r in report.rewards)


def test_two_policies_are_judged_on_the_same_noise(run: Path, tmp_path: Path) -> None:
    report = evaluate(str(run), ["base"], ["rewards.colorfulness.sources=[text]"], tmp_path)
    alone = {r.name: r for r in evaluate(str(run), [], [], None).rewards}
    results = {r.name: r for r in report.rewards}
    assert results["compressibility"].mean == pytest.approx(alone["compressibility"].mean)
    assert results["colorfulness"].n == 2
    assert results["colorfulness"].difference != 0.0
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == report.to_json()
    assert written["target"] == "demo/step-00000002"
    assert written["against"] == "base"
    assert written["prompts"] == 6
    assert written["rewards"]["colorfulness"]["interval"] == [
        results["colorfulness"].low,
        results["colorfulness"].high,
    ]
    assert (tmp_path / "images.png").stat().st_size > 1000


def test_a_report_outlives_its_pictures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*rest: Any) -> None:
        raise ValueError("Expected end of text, found '$'")

    monkeypatch.setattr("marble_cli.evaluate.evaluate.image_grid", fail)
    (tmp_path / "images.png").write_bytes(b"of an earlier call")
    report = evaluate(str(run), [], [], tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_json()
    assert not (tmp_path / "images.png").exists()
    assert "images.png could not be drawn: ValueError: Expected end of text" in caplog.text


def test_scores_are_presented_before_a_file_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    presented: list[EvalReport] = []
    with pytest.raises(StorageError, match=r"report\.json"):
        evaluate(str(run), [], [], tmp_path, presented.append)
    assert presented[0].prompts > 0


def test_judging_leaves_the_order_of_targets_without_effect(run: Path) -> None:
    first, second = (str(run / "checkpoints" / f"step-0000000{step}") for step in (1, 2))
    there, back = evaluate(first, [second], [], None), evaluate(second, [first], [], None)
    for one, other in zip(there.rewards, back.rewards, strict=True):
        assert one.difference == pytest.approx(-other.difference)
        assert one.mean == pytest.approx(other.reference)


@pytest.fixture(scope="module")
def undisturbed(run: Path) -> list[float | None]:
    """The means of the run's rewards, judged as it is on few prompts."""
    return few_means(run)


def few_means(run: Path, *overrides: str) -> list[float | None]:
    return [r.mean for r in evaluate(str(run), [], ["evaluation.prompts=1", *overrides], None).rewards]


@pytest.mark.parametrize(
    "keys",
    [
        {"steps": 5},
        {"solver": "euler"},
        {"times": "euler"},
        {"guidance_scale": 3},
        {"steps": 6, "solver": "euler", "times": "solver", "guidance_scale": 1},
    ],
    ids=str,
)
def test_images_are_judged_as_evaluation_draws_them(
    run: Path, undisturbed: list[float | None], keys: dict[str, Any]
) -> None:
    """As if the rollout were set so, in what is set; the run's own rollout differs from it."""
    judged = few_means(run, *(f"evaluation.{key}={value}" for key, value in keys.items()))
    assert judged == few_means(run, *(f"rollout.{key}={value}" for key, value in keys.items()))
    assert judged != undisturbed
    back = [f"evaluation.{key}={value}" for key, value in keys.items()]
    others = ["rollout.steps=9", "rollout.solver=dpm2", "rollout.times=solver", "rollout.guidance_scale=2"]
    others = [other for other in others if other.split("=")[0].split(".")[1] in keys]
    assert few_means(run, *back, *others) == judged
