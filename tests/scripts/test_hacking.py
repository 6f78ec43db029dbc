"""The runs that let a reward be hacked: their settings, what remains of them, their table and pictures."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marble_cli.config.compose import compose
from marble_cli.config.enums import Role
from scripts.study import hacking, hacking_report, runner
from scripts.study.cells import REWARDS, TUNING_SEED
from scripts.study.scores import Folders, Scores, base_name
from tests.scripts.smallest import BRIEF, FEWER, SMALL, run_in_process


@pytest.mark.parametrize("answer", hacking.ANSWERS)
def test_every_answer_trains_colorfulness_alone(answer: str) -> None:
    config = compose([*hacking.SETTINGS, *hacking.ANSWERS[answer], "run.dir=unused"])
    roles = {name: reward.role for name, reward in {**config.rewards, **config.eval_rewards}.items()}
    assert [name for name in config.rewards if roles[name] is Role.train] == [hacking.TRAINED]
    assert {*roles} == {hacking.TRAINED, *hacking.WATCHED}
    assert config.trainer.on_hacking.value == (answer if answer in ("stop", "rollback") else "warn")


def test_a_stopped_run_leaves_its_best_checkpoint_or_the_base_model(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert hacking.remains(tmp_path, stopped=False) == str(tmp_path)
    assert hacking.remains(tmp_path, stopped=True) == "base"
    (tmp_path / "checkpoints" / "best").write_text("step-00000006\n")
    assert hacking.remains(tmp_path, stopped=True) == str(tmp_path / "checkpoints" / "step-00000006")


def test_a_run_is_trained_drawn_and_scored_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands = run_in_process(monkeypatch, runner)
    small = (word for word in (*SMALL, *BRIEF) if "rewards" not in word and "eval_every" not in word)
    monkeypatch.setattr(hacking, "SETTINGS", ("preset=tiny", *small, *FEWER, "trainer.eval_every=1"))
    monkeypatch.setattr(hacking, "STEPS", 2)
    monkeypatch.setattr(hacking, "ANSWERS", {"rollback": hacking.ANSWERS["rollback"]})
    monkeypatch.setattr(hacking, "PROMPTS", hacking.PROMPTS[:1])
    monkeypatch.setattr(runner, "JUDGED_PROMPTS", 2)
    folders = Folders(tmp_path / "runs", tmp_path / "results")
    words = ["--runs", str(folders.runs), "--results", str(folders.results), "--seeds", "0"]
    hacking.main(words)
    assert [command[0] for command in commands] == ["generate", "train", "generate"]
    scores = Scores.read(folders.result("hacking/rollback-0"))
    assert scores.values.shape == (len(REWARDS), 6)
    assert [row["step"] for row in scores.facts["evaluations"]] == [0, 1, 2]
    hacking.main(words)
    assert [command[0] for command in commands[3:]] == ["generate"], "the base model's pictures"


def test_the_report_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = Folders(tmp_path / "runs", tmp_path / "results")
    base = np.arange(10.0, dtype=np.float32).reshape(1, 10).repeat(len(REWARDS), 0)
    for seed in (TUNING_SEED, 0):
        Scores(base, {}).write(folders.result(base_name(seed)))
    rows = [{"step": step, f"reward/{hacking.TRAINED}/change": float(step)} for step in (0, 3)]
    for answer, steps in (("warn", 30), ("stop", 9)):
        facts = {"steps": steps, "alarms": 2, "evaluations": rows}
        Scores(base + base.std(), facts).write(folders.result(f"hacking/{answer}-0"))
    for name in ("base", "warn-0", "stop-0"):
        pictures = folders.runs / "hacking" / f"{name}-pictures"
        pictures.mkdir(parents=True)
        for place in range(len(hacking.PROMPTS)):
            Image.new("RGB", (8, 8)).save(pictures / f"{place:03d}.png")

    words = ("--runs", folders.runs, "--results", folders.results, "--output", tmp_path)
    hacking_report.main([str(word) for word in words])
    lines = capsys.readouterr().out.splitlines()
    gains = " | ".join(["**+1.00 ± 0.00**"] * len(REWARDS))
    assert lines[2:] == [f"| `warn` | 1 | {gains} | 30 | 2 |", f"| `stop` | 1 | {gains} | 9 | 2 |"]
    for name in ("hacking.png", "hacking-images.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 1000
