"""Every command of the tutorial is executed, in its order, with smaller settings."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marble_cli.cli.app import app
from tests.scripts.smallest import FEWER

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial"
PAGES = ("first-run", "own-prompts", "own-reward", "read-the-report")
BLOCK = re.compile(r"^```(sh|python)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SMALLER = [
    "rollout.groups=3", "rollout.group_size=2", "rollout.steps=2", "rollout.batch_size=6",
    "trainer.micro_batch_size=6", "trainer.eval_prompts=2", "logging.wandb.mode=disabled",
    "model.resolution=32",
]  # fmt: skip
# The environment of the tests is installed already.
INSTALLED = {"make install", "source .venv/bin/activate"}
REWARD = Path("marble-reward-warmth/src/marble_reward_warmth/reward.py")


def test_every_command_succeeds_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    executed = 0
    for page in PAGES:
        for language, block in BLOCK.findall((TUTORIAL / f"{page}.md").read_text(encoding="utf-8")):
            if language == "python":
                assert REWARD.is_file()
                REWARD.write_text(block, encoding="utf-8")
                continue
            for command in block.splitlines():
                execute(command, tmp_path, monkeypatch)
                executed += 1
    assert executed > 20
    assert (tmp_path / "runs/first/explain/conflict.png").is_file()
    assert list((tmp_path / "pictures").glob("*.png"))
    assert (tmp_path / "lora/pytorch_lora_weights.safetensors").is_file()


def execute(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one command: marble in this process, anything else in a shell."""
    if command in INSTALLED:
        return
    if command.startswith("pip install -e "):
        install(folder / command.split()[-1], folder / "site")
        monkeypatch.syspath_prepend(folder / "site")
        return
    if not command.startswith("marble "):
        subprocess.run(["sh", "-ec", command], cwd=folder, check=True)
        return
    words = shlex.split(command)[1:]
    result = CliRunner().invoke(app, [*words, *(make_smaller(words) if words[0] == "train" else ())])
    assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"


def make_smaller(words: list[str]) -> list[str]:
    """Return overrides for half of the steps, and for a tenth of the prompts of `preset=tiny`."""
    steps = [int(word.split("=")[1]) // 2 for word in words if word.startswith("trainer.steps=")]
    fewer = () if "data=files" in words else FEWER
    return [*SMALLER, *fewer, *(f"trainer.steps={count}" for count in steps)]


def install(source: Path, site: Path) -> None:
    """Install a distribution into a folder of its own, without a network."""
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
            "--no-build-isolation", "--target", str(site), str(source),
        ],
        check=True,
    )  # fmt: skip
