"""Two processes go back to the best checkpoint as one does."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.metrics.jsonl import read_rows
from marble_cli.run.evaluations import Evaluations
from marble_cli.run.train import train
from tests.distributed.processes import ends, job
from tests.distributed.test_image_shares import assert_alike
from tests.run import alarmed

# A smooth reward is watched, so that rounding stays small.
ONCE = (
    *("eval_rewards.other.plugin=colorfulness", "trainer.rollback.kl_least=0.5", "trainer.steps=3"),
    *("rollout.steps=3", "rollout.batch_size=4"),
)


def test_two_processes_go_back_as_one_does(
    run_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = (*alarmed.SETTINGS, "rewards=[colorfulness]", "trainer.on_hacking=rollback", *ONCE)
    alone, two, file = tmp_path / "alone", tmp_path / "two", tmp_path / "config.yaml"
    file.write_text(dump(run_config(*settings, f"run.dir={two}")))
    for code, _, err in ends(job([(Path(alarmed.__file__), "train", "--config-name", file)] * 2)):
        assert code == 0, err
    with monkeypatch.context() as patched:
        patched.setattr(Evaluations, "score", alarmed.hacked_score)
        assert train(run_config(*settings, f"run.dir={alone}"), resume="auto") == 0
    rows, others = (
        # A rounded pixel shows in the small changes of held-out scores, so steps are compared.
        [row for row in read_rows(folder / "metrics.jsonl") if row["phase"] == "train"]
        for folder in (two, alone)
    )
    assert (rows[-1]["alarm/rollbacks"], rows[-1]["loss/kl_coef"]) == (1, 0.5)
    assert_alike(rows, others)
