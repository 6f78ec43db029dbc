"""The wheel alone, in an empty environment and another folder.

The first command is an interpreter of its own; those that follow are forks of one in that environment.
"""

import json
from pathlib import Path

import pytest

from tests.e2e.environment import ROOT, SMALL, Environment, rows


def test_the_wheel_trains_repeats_evaluates_generates_and_exports(
    fresh: Environment, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # Turns on the warnings of transformers; diffusers' imports make it miss torchvision.
        patch.setenv("TRANSFORMERS_VERBOSITY", "warning")
        steps = ("trainer.steps=2", "trainer.eval_every=2", "trainer.eval_prompts=2")
        trained = fresh.marble("train", *SMALL, *steps, "run.dir=here")
    assert trained.returncode == 0, trained.stderr
    assert "transformers" not in trained.stdout + trained.stderr
    assert "ocr is not installed" in trained.stderr
    folder = fresh.folder / "here"
    assert [row["step"] for row in rows(folder) if row["phase"] == "train"] == [1, 2]
    assert str(ROOT) not in (folder / "config.yaml").read_text()

    done = environment.marble("train", "--config-name", "here/config.yaml", "run.dir=repeated")
    assert done.returncode == 0, done.stderr
    assert rows(fresh.folder / "repeated") == rows(folder), "a run's configuration repeats the run"

    judged = environment.marble("eval", "here", "--against", "base", "--json", "--output", "seen")
    assert judged.returncode == 0, judged.stderr
    report = json.loads(judged.stdout)
    assert set(report["rewards"]) == {"colorfulness", "compressibility"}
    for reward in report["rewards"].values():
        assert reward["interval"][0] <= reward["difference"] <= reward["interval"][1]
        assert reward["n"] == 6
    assert (environment.folder / "seen" / "images.png").stat().st_size > 1000

    drawn = environment.marble("generate", "here", "--prompt", "a red circle", "--output", "drawn")
    assert drawn.returncode == 0, drawn.stderr
    assert (environment.folder / "drawn" / "000.png").is_file()

    exported = environment.marble("export", "here", "lora")
    assert exported.returncode == 0, exported.stderr
    assert (environment.folder / "lora" / "pytorch_lora_weights.safetensors").is_file()
    again = environment.marble("export", "here", "lora")
    assert again.returncode == 2
    assert "not overwritten" in again.stderr


def test_a_third_party_s_plugin_is_found_checked_and_trained_on(environment: Environment, run: Path) -> None:
    assert "brightness" in environment.marble("rewards", "list").stdout
    checked = environment.marble("rewards", "check", "brightness")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = environment.marble(
        "train", *SMALL, "trainer.steps=2", f"run.dir={run}", "rewards=[brightness,compressibility]"
    )
    assert done.returncode == 0, done.stderr
    assert all(0 < row["reward/brightness/mean"] < 1 for row in rows(run))
