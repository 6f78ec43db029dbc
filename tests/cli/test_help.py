"""Help pages fit 80 columns, have an example, and import nothing heavy."""

import subprocess
import sys
from collections.abc import Callable

import pytest

COMMANDS = "train eval explain report generate rewards export push sync doctor"
REWARDS_COMMANDS = "list show check score serve install new"
PAGES = [
    (),
    *((name,) for name in COMMANDS.split()),
    *(("rewards", name) for name in REWARDS_COMMANDS.split()),
]
HEAVY = ("torch", "diffusers", "transformers", "hydra", "matplotlib", "wandb", "numpy", "altair")


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_help_fits_80_columns_and_has_an_example(marble: Callable, page: tuple[str, ...]) -> None:
    shown = marble(*page, "--help")
    assert shown.code == 0
    assert max(len(line) for line in shown.out.splitlines()) <= 80
    assert "Example:" in shown.out


def test_the_commands_are_these(marble: Callable) -> None:
    shown = marble("--help").out
    assert all(f"│ {name} " in shown for name in COMMANDS.split())


def test_help_and_completion_import_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['marble', '--help']\n"
        "from marble_cli.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_mistyped_option_gets_a_suggestion(marble: Callable) -> None:
    shown = marble("train", "--dry-runn")
    assert shown.code == 2
    assert "--dry-run" in shown.err


def test_no_command_shows_help(marble: Callable) -> None:
    assert "Usage" in marble().out
