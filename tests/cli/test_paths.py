"""Paths and homes as commands take them."""

import os
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from marble_cli.cli import rewards
from marble_cli.cli.app import app
from marble_cli.cli.options import to_path

Marble = Callable[..., Any]
BUILT_IN = "rewards=[colorfulness,compressibility]"

pytestmark = pytest.mark.usefixtures("at_home")


def test_an_options_home_is_expanded(marble: Marble, at_home: Path) -> None:
    assert marble("rewards", "new", "sharp", "--output=~/[red] plugin").code == 0
    assert (at_home / "[red] plugin" / "pyproject.toml").is_file()
    for asked in (
        ["sync", "~nobody-here/run"],
        ["explain", "~nobody-here/run"],
        ["eval", "~nobody-here/run"],
    ):
        told = marble(*asked)
        assert (told.code, "there is no user 'nobody-here'" in told.err) == (2, True)


def test_every_option_that_is_a_path_is_expanded() -> None:
    """One without `to_path` would make a folder named `~`."""
    found = 0
    for command in (*app.registered_commands, *rewards.app.registered_commands):
        for name, kind in typing.get_type_hints(command.callback, include_extras=True).items():
            if "Path" in str(kind):
                found += 1
                assert kind.__metadata__[0].parser is to_path, (command.name, name)
    assert found >= 8


def test_a_default_is_a_path() -> None:
    generate = get_command(app).commands["generate"]  # type: ignore[attr-defined]
    context = generate.make_context("generate", ["base", "--prompt", "a cup"])
    assert context.params["output"] == Path("outputs")


@pytest.mark.usefixtures("homeless")
def test_a_plan_without_a_home_says_what_is_taken_for_it(marble: Marble, tmp_path: Path) -> None:
    told = marble("train", "preset=tiny", BUILT_IN, "run.dir=[red]run", "--dry-run")
    assert told.code == 0, told.err
    folder = tmp_path / "[red]run"
    assert told.err.count("there is no home") == 1
    assert f"Using {folder / 'home'}" in told.err
    assert os.environ["HOME"] == str(folder / "home")
    assert str(folder) in "".join(told.out.split())
    assert not folder.exists()


@pytest.mark.usefixtures("homeless")
def test_other_commands_have_a_home_for_a_while(marble: Marble) -> None:
    told = marble("rewards", "install", "ocr")
    assert told.code == 2
    assert "MARBLE_HOME=FOLDER" in told.err
    assert told.err.count("Using ") == 1
    assert "marble-home-" in os.environ["HOME"]


@pytest.mark.parametrize("directory", ["x" * 300, "a\nb", "~nobody-here/x", "/proc/nothing/x", "/dev/null/x"])
def test_an_impossible_folder_is_one_message(marble: Marble, directory: str) -> None:
    told = marble("train", "preset=tiny", BUILT_IN, f"run.dir={directory}", "--dry-run")
    assert told.code == 2
    assert told.err.startswith("marble: run.dir=")
    assert told.err.count("\n") == 1
    assert not told.out
