"""The wheel alone, in an empty environment and another folder."""

import json
from pathlib import Path

import pytest

from tests.e2e.environment import ROOT, SMALL, Environment, rows


def test_the_wheel_trains_evaluates_generates_and_exports(fresh: Environment, run: Path) -> None:
    trained = fresh.marble("train", *SMALL, "trainer.steps=2", "run.dir=here", "trainer.eval_every=2")
    assert trained.returncode == 0, trained.stderr
    assert "ocr is not installed" in trained.stderr
    folder = fresh.folder / "here"
    assert [row["step"] for row in rows(folder) if row["phase"] == "train"] == [1, 2]
    assert str(ROOT) not in (folder / "config.yaml").read_text()

    judged = fresh.marble(
        "eval", "here", "--against", "base", "--json", "--output", "seen", "trainer.eval_prompts=2"
    )
    assert judged.returncode == 0, judged.stderr
    report = json.loads(judged.stdout)
    assert set(report["rewards"]) == {"colorfulness", "compressibility"}
    for reward in report["rewards"].values():
        assert reward["interval"][0] <= reward["difference"] <= reward["interval"][1]
        assert reward["n"] == 6
    assert (fresh.folder / "seen" / "images.png").stat().st_size > 1000

    drawn = fresh.marble("generate", "here", "--prompt", "a red circle", "--output", "drawn")
    assert drawn.returncode == 0, drawn.stderr
    assert (fresh.folder / "drawn" / "000.png").is_file()

    exported = fresh.marble("export", "here", "lora")
    assert exported.returncode == 0, exported.stderr
    assert (fresh.folder / "lora" / "pytorch_lora_weights.safetensors").is_file()
    again = fresh.marble("export", "here", "lora")
    assert again.returncode == 2
    assert "not overwritten" in again.stderr


def test_training_prints_nothing_of_transformers(
    fresh: Environment, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns on its warnings, which `marble` turns off; diffusers' imports make it miss torchvision."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "warning")
    done = fresh.marble("train", *SMALL, "trainer.steps=1", f"run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert "transformers" not in done.stdout + done.stderr


def test_a_run_s_config_repeats_the_run(fresh: Environment, run: Path) -> None:
    assert fresh.marble("train", *SMALL, "trainer.steps=2", f"run.dir={run}").returncode == 0
    other = run.with_name("repeated")
    done = fresh.marble("train", "--config-name", run / "config.yaml", f"run.dir={other}")
    assert done.returncode == 0, done.stderr
    assert rows(other) == rows(run)


def test_a_third_party_s_plugin_is_found_checked_and_trained_on(fresh: Environment, run: Path) -> None:
    assert "brightness" in fresh.marble("rewards", "list").stdout
    checked = fresh.marble("rewards", "check", "brightness")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    done = fresh.marble(
        "train", *SMALL, "trainer.steps=2", f"run.dir={run}", "rewards=[brightness,compressibility]"
    )
    assert done.returncode == 0, done.stderr
    assert all(0 < row["reward/brightness/mean"] < 1 for row in rows(run))
