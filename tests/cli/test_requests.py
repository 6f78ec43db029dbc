"""Wrong requests: exit code 2, one readable message that names the thing, no traceback, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "trainer.stepz=3"), "trainer.steps"),
        (("train", "+balance.flor=1"), "balance.floor"),
        (("train", "balance=marbel"), "did you mean 'marble'"),
        (("train", "rewards=[colorfulnes]"), "did you mean 'colorfulness'"),
        (("train", "trainer.steps=many"), "trainer.steps"),
        (("train", "trainer.steps=1,2"), "several values"),
        (("train", "a b"), "cannot be read"),
        (("train", "--config-name", "nowhere.yaml"), "nowhere.yaml does not exist"),
        (("train", "--config-name", "confg"), "did you mean 'config'"),
        (("train", "--resume", "nowhere"), "--resume nowhere: there is no such folder. Expected auto, never"),
        (("train", "--dry-run", "model.device=foo"), "model.device=foo"),
        (("train", "--dry-run", "model.lora.target_modules=[foo]"), "target_modules=['foo']"),
        (("train", "--dry-run", "model.path=/nowhere"), "no model_index.json"),
        (("train", "--dry-run", "model.resolution=72"), "expected a multiple of 16"),
        (("train", "trainer.seed=99999999999999999999"), "trainer.seed"),
        (("train", "run.dir="), "run.dir"),
        (("generate", "base", "--prompt", "a", "--output", "/proc/x"), "--output /proc/x cannot be written"),
        (("generate", "base", "modl=sd3", "--prompt", "a"), "did you mean 'model'"),
        (
            ("generate", "base", "~preset", "model=sd3", "model.path=/nowhere", "--prompt", "a"),
            "no model_index.json",
        ),
        (("eval", "nowhere"), "nowhere is neither a checkpoint"),
        (("generate", "nowhere", "--prompt", "a tree"), "nowhere is neither a checkpoint"),
        (("export", "nowhere", "lora"), "nowhere is neither a checkpoint"),
        (("export", "base", "lora"), "the base model has no trained weights"),
        (("export", "nowhere", "lora", "--format", "peft"), "nowhere is neither a checkpoint"),
        (("export", "base", "lora", "--format", "kohya"), "'kohya' is not one of"),
        (("rewards", "show", "colorfulnes"), "did you mean 'colorfulness'"),
        (("rewards", "check", "colorfulnes"), "did you mean 'colorfulness'"),
        (("rewards", "score", "colorfulness", "--image", "no.png", "--prompt", "a"), "no.png"),
        (("rewards", "check", "nowhere", "+rewards.nowhere={plugin: nowhre}"), "no such reward is installed"),
        (("rewards", "install", "nowhere"), "--from PATH|REQUIREMENT"),
        (("eval", "base", "rewards.colorfulness.wight=2"), "wight"),
    ],
)
def test_a_wrong_request_is_one_message(
    marble: Callable,
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = marble(*arguments)
    assert shown.code == 2, shown.err
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not list(tmp_path.glob("*/checkpoints"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("\n\n", "is empty"),
        ('{"prompt": "a"}\n{"prompt": \n', "line 2"),
        ('{"text": "a"}\n', "line 1"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_bad_prompt_file_is_one_message(
    marble: Callable, tmp_path: Path, content: str | None, said: str, dry: bool
) -> None:
    if content is not None:
        (tmp_path / "train.jsonl").write_text(content)
    (tmp_path / "test.jsonl").write_text('{"prompt": "a tree"}\n')
    overrides = (
        "data=files",
        f"data.root={tmp_path}",
        "data.sources.prompts.train=train.jsonl",
        "data.sources.prompts.test=test.jsonl",
        f"run.dir={tmp_path / 'run'}",
    )
    shown = marble("train", *overrides, *(["--dry-run"] if dry else []))
    assert shown.code == 2
    assert said in shown.err
    assert "train.jsonl" in shown.err


def test_a_folder_that_cannot_be_written_is_one_message(marble: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    shown = marble("train", f"run.dir={tmp_path / 'file' / 'run'}")
    assert shown.code == 2
    assert "cannot be written" in shown.err
    assert (tmp_path / "file").read_text() == "in the way"


def test_debug_shows_the_traceback(marble: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from marble_cli.errors import ConfigError

    monkeypatch.setenv("MARBLE_DEBUG", "1")
    with pytest.raises(ConfigError):
        marble("train", "balance=marbel")


def test_print_config_is_replayable(marble: Callable, tmp_path: Path) -> None:
    first = marble("train", "balance=mgda", "trainer.steps=7", "--print-config")
    assert first.code == 0
    file = tmp_path / "saved.yaml"
    file.write_text(first.out)
    assert marble("train", "--config-name", file, "--print-config").out == first.out


def test_dry_run_prints_the_plan(marble: Callable, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shown = marble(
        "train", "preset=tiny", f"run.dir={run}", "rollout.groups=3", "rollout.group_size=5", "--dry-run"
    )
    assert shown.code == 0, shown.err
    assert "3 prompts x 5 = 15" in shown.out
    assert "parameters" in shown.out
    assert max(len(line) for line in shown.out.splitlines()) <= 80
    assert not (run / "config.yaml").exists()


def test_rewards_list_and_show(marble: Callable) -> None:
    assert "colorfulness" in marble("rewards", "list").out
    shown = marble("rewards", "show", "compressibility").out
    assert "option quality" in shown
    assert "arXiv 2305.13301" in shown
    own = marble("rewards", "show", "compressibility", "rewards.compressibility.requires=[text]").out
    assert "prompts with the metadata text" in own


def test_rewards_check_passes_and_score_prints_json(marble: Callable, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), (128, 128, 128)).save(tmp_path / "grey.png")
    assert marble("rewards", "check", "colorfulness").code == 0
    arguments = ("rewards", "score", "colorfulness", "--image", tmp_path / "grey.png", "--prompt", "grey")
    assert json.loads(marble(*arguments, "--json").out) == {
        "reward": "colorfulness",
        "outcome": "score",
        "score": 0.0,
    }
    assert marble(*arguments).out == "colorfulness: 0\n"
    asked = marble(
        *arguments, "rewards.colorfulness.requires=[text]", "rewards.colorfulness.sources=[text]", "--json"
    )
    assert json.loads(asked.out)["outcome"] == "score", "what a run asks of its prompts is no matter here"


def test_doctor(marble: Callable) -> None:
    shown = marble("doctor", "--json")
    report = json.loads(shown.out)
    assert shown.code == (0 if report["ok"] else 1)
    assert {"torch", "device", "balance solver", "rewards", "embedded model"} <= {
        finding["name"] for finding in report["findings"]
    }
