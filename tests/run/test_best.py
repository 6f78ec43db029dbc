"""The best checkpoint by each metric, and the checkpoints that are kept besides."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from marble_cli.checkpoint import step_folders, store
from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig
from marble_cli.errors import ConfigError
from marble_cli.evaluate.score import Evaluation
from marble_cli.evaluate.verdict import Verdict
from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.evaluations import Evaluations
from marble_cli.run.loop import Trainer
from marble_cli.run.recorder import RunRecorder
from marble_cli.run.train import train

RunConfigMaker = Callable[..., RunConfig]

SETTINGS = (
    "trainer.eval_every=1",
    "trainer.checkpoint_every=1",
    "trainer.keep_last=1",
    "trainer.eval_prompts=1",
    "rollout.steps=2",
    "rollout.batch_size=6",
    "optimizer.lr=0.05",
    "algorithm.behaviour.rate=0.5",
)
STEPS = 4
FIGURES = ("eval/composite", "reward/colorfulness/mean", "reward/compressibility/mean")


def judged(run: Path, figure: str) -> dict[int, float]:
    return {row["step"]: row[figure] for row in read_rows(run / "metrics.jsonl") if row["phase"] == "eval"}


def best(run: Path) -> int | None:
    pointer = run / "checkpoints" / "best"
    return int(pointer.read_text().strip().removeprefix("step-")) if pointer.is_file() else None


def kept(run: Path) -> list[int]:
    return sorted(store.step_of(folder) for folder in store.steps(run))


@pytest.fixture(scope="module")
def runs(run_config: RunConfigMaker, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one run per metric that chooses the best checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    folders = {figure: root / figure.replace("/", "-") for figure in FIGURES}
    for figure, folder in folders.items():
        config = run_config(
            f"trainer.steps={STEPS}", *SETTINGS, f"trainer.best={figure}", f"run.dir={folder}"
        )
        assert train(config, resume="auto") == 0
    return folders


@pytest.mark.parametrize("figure", FIGURES)
def test_best_checkpoint_has_the_highest_configured_metric(runs: dict[str, Path], figure: str) -> None:
    values = judged(runs[figure], figure)
    highest = max(values, key=lambda step: values[step])
    assert best(runs[figure]) == (highest or None)  # the start has no checkpoint
    assert kept(runs[figure]) == sorted({highest or STEPS, STEPS})
    state, _, _ = store.load(runs[figure] / "checkpoints" / f"step-{STEPS:08d}")
    assert state.info["best"] == values[highest]
    assert state.info["best_step"] == (highest or None)


def test_metrics_choose_different_best_checkpoints(runs: dict[str, Path]) -> None:
    """Otherwise the test above could not distinguish the metrics."""
    assert len({best(run) for run in runs.values()}) > 1


def test_resume_with_another_best_metric_starts_the_best_anew(
    run_config: RunConfigMaker, runs: dict[str, Path], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    settings = [setting for setting in SETTINGS if not setting.startswith("trainer.keep_last")]
    for steps, figure in ((2, FIGURES[1]), (STEPS, FIGURES[2])):
        more = (f"trainer.steps={steps}", f"trainer.best={figure}", "trainer.keep_last=9")
        assert train(run_config(*settings, *more, f"run.dir={tmp_path}"), resume="auto") == 0
    assert (
        f"the best checkpoint was chosen by {FIGURES[1]} so far; from here on it is chosen by {FIGURES[2]}"
        in caplog.text
    )
    assert compose([], str(tmp_path / "config.yaml")) == run_config(
        *settings, f"trainer.steps={STEPS}", f"trainer.best={FIGURES[2]}", *more[2:], f"run.dir={tmp_path}"
    )
    late = {step: value for step, value in judged(tmp_path, FIGURES[2]).items() if step > 2}
    assert best(tmp_path) == max(late, key=lambda step: late[step])


def test_keep_every_keeps_checkpoints_permanently(run_config: RunConfigMaker, tmp_path: Path) -> None:
    settings = ("trainer.checkpoint_every=1", "trainer.keep_last=1", "rollout.steps=2", f"run.dir={tmp_path}")
    assert train(run_config("trainer.steps=5", "trainer.keep_every=2", *settings), resume="auto") == 0
    assert kept(tmp_path) == [2, 4, 5]
    assert train(run_config("trainer.steps=6", "trainer.keep_every=4", *settings), resume="auto") == 0
    assert kept(tmp_path) == [4, 6]


def test_resume_from_an_earlier_step_restores_the_best(
    run_config: RunConfigMaker, tmp_path: Path, runs: dict[str, Path]
) -> None:
    """If the checkpoint of the latest best is lost, the earlier best is restored."""
    figure = next(figure for figure, run in runs.items() if (best(run) or 0) > 1)
    settings = (*SETTINGS, "trainer.keep_last=9", f"trainer.best={figure}", f"run.dir={tmp_path}")
    assert train(run_config(f"trainer.steps={STEPS}", *settings), resume="auto") == 0
    later = best(tmp_path)
    assert later is not None
    file = tmp_path / "checkpoints" / f"step-{later:08d}" / "behaviour.safetensors"
    file.write_bytes(b"")
    for folder in store.steps(tmp_path):
        if store.step_of(folder) > later:
            (folder / "state.json").unlink()
    before, _, _ = store.load(tmp_path / "checkpoints" / f"step-{later - 1:08d}")
    assert train(run_config(f"trainer.steps={later - 1}", *settings), resume="auto") == 0
    assert best(tmp_path) == before.info["best_step"]
    assert train(run_config(f"trainer.steps={STEPS}", *settings), resume="auto") == 0
    assert best(tmp_path) == later


def scored_as(values: list[float]) -> Callable[..., tuple[Evaluation, Verdict]]:
    """Return an `Evaluations.score` that gives each step its composite."""
    score = Evaluations.score

    def scored(self: Evaluations, advance: Callable[[int], None]) -> tuple[Evaluation, Verdict]:
        evaluation, verdict = score(self, advance)
        metrics = {**verdict.metrics, "eval/composite": values[self.progress.step]}
        return evaluation, replace(verdict, metrics=metrics)

    return scored


def test_best_step_that_is_evaluated_after_a_resume_is_kept(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends after the row of step 2, the best, before a checkpoint says that it was evaluated."""
    finish = Evaluations.finish

    def ended(self: Evaluations, evaluation: Evaluation, verdict: Verdict) -> bool:
        if self.progress.step == 2:
            raise OSError("a cable was pulled")
        return finish(self, evaluation, verdict)

    monkeypatch.setattr(Evaluations, "score", scored_as([0.0, 0.1, 0.9, 0.5]))
    config = run_config("trainer.steps=3", *SETTINGS, f"run.dir={tmp_path}")
    with monkeypatch.context() as patched:
        patched.setattr(Evaluations, "finish", ended)
        with pytest.raises(OSError, match="cable"):
            train(config, resume="auto")
    assert (best(tmp_path), kept(tmp_path)) == (1, [1, 2])
    assert train(config, resume="auto") == 0
    assert (best(tmp_path), kept(tmp_path)) == (2, [2, 3])
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["phase"] == "eval"] == [0, 1, 2, 3]
    for step in (2, 3):
        info = store.load(step_folders.place(tmp_path, step))[0].info
        assert (info["best"], info["best_step"], info["evaluated"]) == (0.9, 2, step)


def interrupt(config: RunConfig, part: type, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a method of one of the run's parts is called, and end there as by a second Ctrl+C."""

    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(part, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, resume="auto")


def test_the_start_is_not_the_best_if_its_evaluation_was_interrupted(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config("trainer.steps=1", *SETTINGS, f"run.dir={tmp_path}")
    interrupt(config, RunRecorder, "pictures", monkeypatch)
    assert kept(tmp_path) == [0]
    assert train(config, resume="auto") == 0
    starts = [(row["step"], row.get("eval/start")) for row in read_rows(tmp_path / "metrics.jsonl")]
    assert starts == [(0, 1), (1, None), (1, None)]
    assert best(tmp_path) != 0


def test_a_run_that_fails_in_its_first_step_keeps_its_start(
    run_config: RunConfigMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config("trainer.steps=1", *SETTINGS, f"run.dir={tmp_path}")
    interrupt(config, Trainer, "find_direction", monkeypatch)
    before = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["eval/start"]) for row in before] == [(0, 1)]
    assert train(config, resume="auto") == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["phase"]) for row in rows] == [(0, "eval"), (1, "train"), (1, "eval")]
    assert rows[0] == before[0]


def test_the_best_is_chosen_anew_if_its_checkpoint_is_gone(
    run_config: RunConfigMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Step 4 took the place of step 1 as the best, and the run resumes from between both."""
    monkeypatch.setattr(Evaluations, "score", scored_as([0.0, 0.8, 0.0, 0.0, 0.9, 0.5]))
    settings = (*SETTINGS, "trainer.keep_last=2", f"run.dir={tmp_path}")
    assert train(run_config("trainer.steps=4", *settings), resume="auto") == 0
    assert (best(tmp_path), kept(tmp_path)) == (4, [3, 4])
    config = run_config("trainer.steps=5", *settings, "trainer.eval_every=5")
    assert train(config, resume=str(step_folders.place(tmp_path, 3))) == 0
    assert "the best checkpoint, of step 1, is gone; the best is determined anew" in caplog.text
    assert best(tmp_path) == 5


@pytest.mark.parametrize("name", ["composite", "reward/colourfulness/mean", "reward/colorfulness/std"])
def test_unknown_best_metric_is_refused(run_config: RunConfigMaker, name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=f"trainer.best={name}: .*Known: eval/composite, eval/joint_improvement, reward/color",
    ):
        run_config(f"trainer.best={name}")


def test_watched_reward_can_choose_the_best(run_config: RunConfigMaker) -> None:
    watched = ("~rewards.compressibility", "+eval_rewards.other={plugin: compressibility}")
    assert run_config(*watched, "trainer.best=reward/other/mean").trainer.best == "reward/other/mean"
