"""Standard output holds what a command answers and nothing else, whatever plugins and C libraries print."""

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from PIL import Image

from marble_cli.output import reserved
from marble_cli.plugins import installed

NOISE = """
print("NOISE of Python")
print("NOISE that was not flushed", end="")
os.write(1, b"NOISE of the system\\n")
ctypes.CDLL(None).printf(b"NOISE of C\\n")
subprocess.run(["echo", "NOISE of another program"], check=True)
sys.stdout.write("NOISE of a stream\\n")
"""


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A reward that prints whenever it can."""
    noise = "\n".join(f"    {line}" for line in NOISE.strip().splitlines())
    (tmp_path / "loud_module.py").write_text(f'''
import ctypes, os, subprocess, sys
def noise():
{noise}
noise()
class Loud:
    """A loud reward."""
    def __init__(self):
        noise()
    def __call__(self, prompts):
        noise()
        return [float(len(prompt)) for prompt in prompts]
''')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "loud_module", raising=False)
    entries = {**installed(), "loud": EntryPoint("loud", "loud_module:Loud", "marble.rewards")}
    for module in ("plugins", "config.compose", "config.validate", "rewards.registry"):
        monkeypatch.setattr(f"marble_cli.{module}.installed", lambda: entries)
    return "loud"


def test_every_answer_in_json_can_be_read(
    marble: Callable, loud: str, tmp_path: Path, base_overrides: list[str]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    picture = ("--image", tmp_path / "a.png", "--prompt", "abc")
    for arguments, key in (
        (("rewards", "list"), "rewards"),
        (("rewards", "check", loud), "checks"),
        (("rewards", "score", loud, *picture), "score"),
        (("eval", "base", *base_overrides, "rewards=[loud]"), "rewards"),
        (("doctor",), "findings"),
    ):
        shown = marble(*arguments, "--json")
        assert key in json.loads(shown.out), shown.err
        sys.modules.pop("loud_module", None)
        assert "NOISE of C" in shown.err


@pytest.mark.parametrize("command", ["list", "show", "check"])
def test_tables_are_tables(marble: Callable, loud: str, command: str) -> None:
    shown = marble("rewards", command, *([] if command == "list" else [loud]))
    assert "NOISE" not in shown.out
    assert "license" in shown.out or "A loud reward." in shown.out or "one score an image" in shown.out
    for source in ("Python", "that was not flushed", "the system", "C", "another program", "a stream"):
        assert f"NOISE of {source}" in shown.err or f"NOISE {source}" in shown.err


def test_a_plan_has_no_output_of_plugins(
    marble: Callable, loud: str, base_overrides: list[str], tmp_path: Path
) -> None:
    shown = marble("train", *base_overrides, "rewards=[loud]", f"run.dir={tmp_path / 'run'}", "--dry-run")
    assert shown.code == 0, shown.err
    assert "optimizer steps" in shown.out
    assert "NOISE" not in shown.out


def test_standard_output_is_restored(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout

    def fails() -> None:
        with reserved() as own:
            print("answer", file=own)
            print("noise")
            os.write(1, b"noise\n")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fails()
    assert sys.stdout is before
    print("after")
    os.write(1, b"after too\n")
    captured = capfd.readouterr()
    assert captured.out.split("\n") == ["answer", "after", "after too", ""]
    assert captured.err == "noise\nnoise\n"
