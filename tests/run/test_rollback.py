"""What a run does at a sign of reward hacking: warn, stop, or go back with a larger KL coefficient."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.checkpoint import manifest, store
from marble_cli.checkpoint.step_folders import read_pointer
from marble_cli.config.enums import OnHacking
from marble_cli.config.schema import RunConfig
from marble_cli.config.trainer import RollbackConfig
from marble_cli.errors import CheckpointError, ConfigError, HackingError
from marble_cli.metrics.history import read_history
from marble_cli.run.evaluations import Evaluations
from marble_cli.run.rollback import RollBack, raised, respond
from marble_cli.run.state import Progress
from marble_cli.run.state_checks import check_info
from marble_cli.run.train import train
from tests.run.alarmed import HACKED, SETTINGS, hacked_score
from tests.run.runs import assert_same_run

RunConfigMaker = Callable[..., RunConfig]


@pytest.fixture
def hacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evaluations, "score", hacked_score)


def test_run_that_goes_back_is_the_best_checkpoint_resumed_with_more_kl(
    hacked: None,
    run_config: RunConfigMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It goes back twice to step 2: with 0.05, then with 0.5. So does one that is killed on the way."""
    rolled, by_hand = tmp_path / "rolled", tmp_path / "by_hand"
    config = run_config(*SETTINGS, "trainer.on_hacking=rollback", f"run.dir={rolled}")
    amend, calls = manifest.amend, [None]

    def killed(folder: Path, changes: dict[str, float]) -> None:
        if calls:
            calls.clear()
            raise KeyboardInterrupt
        amend(folder, changes)

    monkeypatch.setattr(manifest, "amend", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, resume="auto")
    assert train(config, resume="auto") == 0
    assert "going back to the best checkpoint, of step 2 (rollback 2 of at most 2)" in caplog.text

    for steps in (2, 4):
        more = (f"trainer.steps={steps}", "trainer.on_hacking=rollback", f"run.dir={by_hand}")
        assert train(run_config(*SETTINGS, *more), resume="auto") == 0
        if steps == 2:
            amend(by_hand / "checkpoints" / "step-00000002", {"rollbacks": 2, "kl_coef": 0.5})
    assert_same_run(rolled, by_hand)

    history = read_history(rolled)
    assert [row["step"] for row in history.train] == [1, 2, 3, 4]
    assert [row["step"] for row in history.held_out] == [0, 1, 2, 3, 4]
    assert [row["loss/kl_coef"] for row in history.train] == [1e-4, 1e-4, 0.5, 0.5]
    assert [row.get("alarm/rollbacks") for row in history.train] == [None, None, 2, 2]
    assert read_pointer(rolled, "best") == "step-00000004"


def test_run_that_stops_keeps_the_step_and_the_best_before_it(
    hacked: None, run_config: RunConfigMaker, tmp_path: Path
) -> None:
    """Resumed, it trains on, also if it was killed in the evaluation, which then sounds the alarm first."""
    config = run_config(*SETTINGS, "trainer.on_hacking=stop", f"run.dir={tmp_path}")
    with pytest.raises(
        HackingError, match=r"stopped after step 3, .*other \(-2\) fell.*on_hacking=warn"
    ) as it:
        train(config, resume="auto")
    assert it.value.exit_code == 3
    assert (read_pointer(tmp_path, "latest"), read_pointer(tmp_path, "best")) == (
        "step-00000003",
        "step-00000002",
    )
    manifest.amend(tmp_path / "checkpoints" / "step-00000003", {"evaluated": 2})
    with pytest.raises(HackingError, match="stopped after step 3"):
        train(config, resume="auto")
    assert train(config, resume="auto") == 0
    assert [row["step"] for row in read_history(tmp_path).held_out] == [0, 1, 2, 3, 4]
    state, _, _ = store.load(tmp_path / "checkpoints" / "step-00000004")
    assert (state.info["rollbacks"], state.info["kl_coef"]) == (0, None)


@pytest.mark.parametrize(
    ("best", "rollbacks", "expected"),
    [(None, 0, "no best checkpoint yet"), (2, 3, r"went back 3 times, and trainer\.rollback\.times=3")],
)
def test_run_that_cannot_go_back_stops(
    run_config: RunConfigMaker, best: int | None, rollbacks: int, expected: str
) -> None:
    settings = run_config().trainer
    progress = Progress(3, None, {}, {}, best_step=best, rollbacks=rollbacks)  # type: ignore[arg-type]
    respond(HACKED, settings, progress, 0.0)  # only warns
    settings.on_hacking = OnHacking.rollback
    with pytest.raises(HackingError, match=expected):
        respond(HACKED, settings, progress, 0.0)
    progress.best_step, progress.rollbacks = 2, 0
    with pytest.raises(RollBack) as back:
        respond(HACKED, settings, progress, 0.0)
    assert (back.value.step, back.value.rollbacks, back.value.kl_coef) == (2, 1, 1e-4)


def test_kl_coefficient_rises_by_the_factor_and_from_zero() -> None:
    settings = RollbackConfig(kl_factor=4.0, kl_least=0.01)
    assert [raised(kl, settings) for kl in (0.0, 0.001, 0.01, 0.5)] == [0.01, 0.01, 0.04, 2.0]


def test_state_of_older_checkpoints_has_no_rollback() -> None:
    older = {"cache": {"alpha": None, "norms": None, "unit": False}, "base_scores": {}, "best": None}
    older |= {"evaluated": -1, "wandb_id": None}
    info = check_info(1, older)
    assert (info["rollbacks"], info["kl_coef"]) == (0, None)
    for wrong in ({"rollbacks": -1}, {"kl_coef": 0.0}):
        with pytest.raises(CheckpointError, match=f"{next(iter(wrong))} is"):
            check_info(1, older | wrong)


@pytest.mark.parametrize(
    ("more", "expected"),
    [(["trainer.eval_every=0"], "trainer.eval_every=0 makes none"), ([], "Expected a watched reward")],
)
def test_alarm_that_cannot_sound_is_refused(
    run_config: RunConfigMaker, more: list[str], expected: str
) -> None:
    settings = ["trainer.on_hacking=stop", "trainer.eval_every=1", *more]
    with pytest.raises(ConfigError, match=expected):
        run_config(*settings)
    if not more:
        run_config(*settings, "rewards.colorfulness.role=guard")
