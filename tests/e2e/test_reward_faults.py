"""Plugins that misbehave, in real runs."""

from pathlib import Path

from tests.e2e.environment import SMALL, Environment, rows

PAIR = "rewards=[compressibility,{}]"


def train(environment: Environment, run: Path, reward: str, *more: str) -> tuple[int, str]:
    done = environment.marble("train", *SMALL, f"run.dir={run}", PAIR.format(reward), *more)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_reward_that_raises_sometimes_is_retried_then_masked(environment: Environment, run: Path) -> None:
    small = ("rollout.batch_size=4", "trainer.steps=2")
    code, said = train(environment, run, "flaky", *small, "rewards.flaky.max_failed=0.9")
    assert code == 0, said
    failed = [row["reward/flaky/failed"] for row in rows(run)]
    assert sum(failed) == 4, failed  # one batch, after three attempts
    assert [row["reward/flaky/applicable"] + row["reward/flaky/failed"] for row in rows(run)] == [12, 12]
    assert "flaky failed on 4 images" in said


def test_reward_that_always_raises_stops_the_run_with_a_checkpoint(
    environment: Environment, run: Path
) -> None:
    code, said = train(environment, run, "broken", "trainer.steps=4", "rewards.broken.good_calls=3")
    assert code == 1
    assert "reward broken failed on 12 of 12 images" in said
    assert "the judge is out of order" in said
    assert "Traceback" not in said
    assert (run / "checkpoints" / "latest").read_text().strip() == "step-00000002"
    log = (run / "log.txt").read_text()
    assert "step     1/4" in log
    assert "RewardError: reward broken failed on 12 of 12 images" in log


def test_reward_that_is_broken_from_the_start_fails_in_the_preflight(
    environment: Environment, run: Path
) -> None:
    code, said = train(environment, run, "broken", "trainer.steps=1", "rewards.broken.good_calls=0")
    assert code == 1
    assert "reward broken failed on the first image" in said
    assert rows(run) == []


def test_reward_that_returns_the_wrong_length_stops_the_run(environment: Environment, run: Path) -> None:
    code, said = train(environment, run, "short", "trainer.steps=1")
    assert code == 1
    assert "reward short returned scores of shape [5] for 6 images" in said


def test_reward_that_scores_no_image_is_left_out(environment: Environment, run: Path) -> None:
    code, said = train(environment, run, "silent", "trainer.steps=2")
    assert code == 0, said
    assert "reward silent applied to none" in said
    for row in rows(run):
        assert row["reward/silent/applicable"] == 0
        assert "reward/silent/mean" not in row
    assert rows(run)[0]["balance/alpha/compressibility"] == 1.0
