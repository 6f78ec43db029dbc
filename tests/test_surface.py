"""Public names: a change here is a decision."""

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

from typer.main import get_command

from marble_cli import DISTRIBUTION
from marble_cli.cli.app import app

ROOT = Path(__file__).resolve().parents[1]


def test_commands() -> None:
    assert set(get_command(app).commands) == {  # type: ignore[attr-defined]
        "train", "eval", "bench", "explain", "report", "generate", "rewards", "export", "push", "sync",
        "merge", "doctor",
    }  # fmt: skip


def test_commands_of_rewards() -> None:
    assert set(get_command(app).commands["rewards"].commands) == {  # type: ignore[attr-defined]
        "list", "show", "check", "score", "serve", "install", "new",
    }  # fmt: skip


def test_the_core_s_own_rewards_enter_like_any_other() -> None:
    own = {e.name for e in entry_points(group="marble.rewards") if e.dist and e.dist.name == DISTRIBUTION}
    assert own == {"colorfulness", "compressibility", "keeping"}


def test_the_core_s_own_trackers_enter_like_any_other() -> None:
    own = {e.name for e in entry_points(group="marble.trackers") if e.dist and e.dist.name == DISTRIBUTION}
    assert own == {"tensorboard", "trackio", "wandb"}


def test_every_plugin_is_a_distribution_of_its_own() -> None:
    found = {}
    for file in sorted((ROOT / "plugins").glob("*/pyproject.toml")):
        project = tomllib.loads(file.read_text())["project"]
        found[project["name"]] = set(project["entry-points"]["marble.rewards"])
        assert (file.parent / "README.md").is_file()
    assert found == {
        "marble-reward-clip": {"aesthetic", "clipscore", "hpsv2", "pickscore"},
        "marble-reward-editreward": {"editreward"},
        "marble-reward-geneval": {"geneval"},
        "marble-reward-hpsv3": {"hpsv3"},
        "marble-reward-imagereward": {"imagereward"},
        "marble-reward-judge": {"judge", "edit_judge", "unifiedreward", "unifiedreward2", "softtifa", "dpg"},
        "marble-reward-objects": {"objects"},
        "marble-reward-ocr": {"ocr"},
        "marble-reward-preservation": {"preservation"},
    }


def test_the_wheel_lists_every_package() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {
        ".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "marble_cli").rglob("__init__.py")
    }
    groups = {
        f"marble_cli.conf.{folder.name}" for folder in (ROOT / "conf").iterdir() if any(folder.glob("*.yaml"))
    }
    assert listed == there | groups | {"marble_cli.conf"}
