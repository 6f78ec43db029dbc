"""One step updates the weights, their average and the behaviour policy on the right data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from marble_cli.config.enums import TrainingTimes
from marble_cli.config.schema import RunConfig
from marble_cli.metrics.jsonl import read_rows
from marble_cli.policy.load import load_policy
from marble_cli.run.train import train
from marble_cli.step.batches import TrainingSet
from marble_cli.step.direction import Descent, Direction
from tests.run.weights import weights

RunConfigMaker = Callable[..., RunConfig]


def plain(state: dict[str, Tensor]) -> list[Tensor]:
    """Return the tensors in the order of their names, which differ only in prefixes among files."""
    return [state[key] for key in sorted(state)]


@pytest.fixture
def directions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TrainingSet, Direction]]:
    """Record the data and the direction of every step."""
    seen: list[tuple[TrainingSet, Direction]] = []
    original = Descent.direct

    def direct(self: Descent, step: int, signal: Any, data: TrainingSet, *rest: Any) -> Direction:
        direction = original(self, step, signal, data, *rest)
        seen.append((data, direction))
        return direction

    monkeypatch.setattr(Descent, "direct", direct)
    return seen


def test_update_clips_and_moves_weights_average_and_behaviour(
    run_config: RunConfigMaker, tmp_path: Path, directions: list[tuple[TrainingSet, Direction]]
) -> None:
    config = run_config(
        f"run.dir={tmp_path}",
        "trainer.steps=1",
        "optimizer.lr=0.01",
        "optimizer.clip_norm=0.01",
        "optimizer.epsilon=0.1",
        "trainer.ema.decay=0.7",
        "algorithm.behaviour.rate=0.25",
        "optimizer.weight_decay=0.5",
    )
    assert train(config, resume="auto") == 0
    start = load_policy(config.model, config.trainer.seed)
    parameters = start.parameters("trained")
    gradient = directions[0][1].gradient
    norm = gradient.norm().item()
    assert norm > 0.01
    clipped = (gradient * (0.01 / norm)).split([p.numel() for p in parameters.values()])
    expected = [
        # One step of AdamW from zero moments: the corrected moments are g and g^2.
        (p * (1 - 0.01 * 0.5) - 0.01 * g.view_as(p) / (g.view_as(p).abs() + 0.1)).detach()
        for p, g in zip(parameters.values(), clipped, strict=True)
    ]
    names = sorted(parameters)
    by_name = dict(zip(parameters, expected, strict=True))
    trained = [by_name[name] for name in names]
    begin = [parameters[name].detach() for name in names]
    for part, keep in (("lora", 0.0), ("ema", 0.7), ("behaviour", 0.25)):
        for got, after, before in zip(plain(weights(tmp_path, part)), trained, begin, strict=True):
            torch.testing.assert_close(got, keep * before + (1 - keep) * after, rtol=1e-4, atol=1e-7)
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert row["behaviour/eta"] == 0.25


@pytest.fixture(scope="module")
def evaluated(run_config: RunConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step between two evaluations."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = run_config(f"run.dir={folder}", "trainer.eval_every=1", "trainer.steps=1")
    assert train(config, resume="auto") == 0
    return folder


@pytest.mark.parametrize(
    "overrides", [["evaluation.steps=7"], ["evaluation.solver=euler", "evaluation.guidance_scale=3"]]
)
def test_evaluation_settings_change_only_evaluation_scores(
    run_config: RunConfigMaker, evaluated: Path, tmp_path: Path, overrides: list[str]
) -> None:
    """A run that only evaluates gets the same scores from the same values in the rollout group."""
    settings = ("trainer.eval_every=1", "trainer.steps=1", *overrides)
    assert train(run_config(f"run.dir={tmp_path / 'other'}", *settings), resume="auto") == 0
    as_rollout = [override.replace("evaluation.", "rollout.") for override in overrides]
    alone = run_config(
        f"run.dir={tmp_path / 'alone'}", "trainer.eval_every=1", "trainer.steps=0", *as_rollout
    )
    assert train(alone, resume="auto") == 0
    plain, other, alone_rows = (
        read_rows(folder / "metrics.jsonl") for folder in (evaluated, tmp_path / "other", tmp_path / "alone")
    )
    for name in ("lora", "ema"):
        assert all(
            map(
                torch.equal,
                weights(evaluated, name).values(),
                weights(tmp_path / "other", name).values(),
            )
        )
    means = [
        {key: row[key] for key in row if key.endswith("/mean")}
        for row in (plain[0], other[0], alone_rows[0], plain[1], other[1])
    ]
    assert means[0] != means[1] == means[2]
    assert means[3] == means[4]


@pytest.mark.parametrize("rule", list(TrainingTimes))
def test_step_trains_on_the_configured_times(
    run_config: RunConfigMaker,
    tmp_path: Path,
    directions: list[tuple[TrainingSet, Direction]],
    rule: TrainingTimes,
) -> None:
    config = run_config(
        f"run.dir={tmp_path}",
        "trainer.steps=1",
        "rollout.steps=5",
        "rollout.groups=6",
        "trainer.times_per_image=null",
        f"algorithm.training_times={rule.value}",
        "rollout.times=euler",
    )
    assert train(config, resume="auto") == 0
    times = directions[0][0].times
    assert times.shape == (18, 4)
    assert directions[0][0].samples == 72
    every = times.unique().tolist()
    assert len(every) == (4 if rule is TrainingTimes.leading else 5)
    assert max(every) == 1.0
    assert all(len(set(row)) == 4 for row in times.tolist())


@pytest.mark.parametrize("kind", ["group", "image"])
def test_training_noise_group_shares_noise_per_prompt(
    run_config: RunConfigMaker, tmp_path: Path, directions: list[tuple[TrainingSet, Direction]], kind: str
) -> None:
    config = run_config(
        f"run.dir={tmp_path}",
        "trainer.steps=1",
        "rollout.steps=9",
        f"algorithm.training_noise={kind}",
        "trainer.times_per_image=4",
    )
    train(config, resume="auto")
    data = directions[0][0]
    assert data.draws.tolist() == ([0, 0, 0, 1, 1, 1] if kind == "group" else list(range(6)))
    assert data.indices.tolist() == list(range(6))
    assert data.samples == 24
    same = [torch.equal(data.times[0], data.times[i]) for i in range(6)]
    assert same == ([True] * 3 + [False] * 3 if kind == "group" else [True] + [False] * 5)
