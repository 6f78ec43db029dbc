"""`marble rewards serve | install | new`: what they refuse, and what they say."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("colorfulness", "--host", "0.0.0.0"), "no token is set"),
        (("colorfulnes",), "did you mean 'colorfulness'"),
        (("compressibility", "rewards.compressibility.qualty=3"), "did you mean 'quality'"),
        (("trainer.steps=2",), "no reward is named"),
        (("colorfulness", "--host", "192.0.2.1", "--token", "x"), "cannot listen there"),
        (("colorfulness", "--token", "schlüssel"), "printable ASCII"),
        (("far", "+rewards.far={plugin: far, url: 'http://127.0.0.1:9'}"), "no reward server can be reached"),
    ],
)
def test_serve_refuses_bad_requests(
    marble: Callable, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.delenv("MARBLE_REWARD_TOKEN", raising=False)
    shown = marble("rewards", "serve", *arguments)
    assert shown.code == (1 if "far" in arguments else 2), shown.err
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert not shown.out


def test_serve_without_its_extra_names_the_pip_command(
    marble: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in list(sys.modules):
        if module.startswith("marble_cli.rewards.elsewhere.server"):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    shown = marble("rewards", "serve", "colorfulness")
    assert shown.code == 2
    assert "pip install 'marble-cli[serve]'" in shown.err


def test_a_plan_is_printed_although_a_server_is_unreachable(marble: Callable, tmp_path: Path) -> None:
    far = "+rewards.far={plugin: far, url: 'http://127.0.0.1:9'}"
    shown = marble(
        "train", "preset=tiny", "rewards=[colorfulness]", far, f"run.dir={tmp_path / 'run'}", "--dry-run"
    )
    assert shown.code == 1
    assert "optimizer steps" in shown.out
    assert "rewards.far.url=http://127.0.0.1:9: no reward server can be reached" in shown.err


def test_new_prints_next_steps_and_refuses_bad_names(
    marble: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = marble("rewards", "new", "blur_free")
    assert shown.code == 0
    assert "marble rewards check blur_free" in shown.out
    shown = marble("rewards", "new", "sharp", "--output", "my plugin")
    assert "pip install -e 'my plugin'\n" in shown.out
    assert "python -m pytest 'my plugin'\n" in shown.out
    before = sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for arguments, said in (
        (("blur_free",), "marble-reward-blur-free exists and is not overwritten"),
        (("Blur",), "cannot be a reward's name"),
        (("blur_",), "cannot be a reward's name"),
        (("class",), "cannot be a reward's name, as it is a word of Python"),
        (("none",), "cannot be a reward's name, as it is a word of Python"),
        (("colorfulness",), "there is a reward 'colorfulness' already, of marble"),
        (("x", "--output", "/proc/x"), "--output /proc/x cannot be written"),
    ):
        refused = marble("rewards", "new", *arguments)
        assert refused.code == 2
        assert said in refused.err
    assert sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()) == before
