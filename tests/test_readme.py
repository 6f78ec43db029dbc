"""What README and docs tell a reader to type is accepted."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from marble_cli.cli.app import app
from marble_cli.config.compose import compose
from marble_cli.config.sweep import split_sweep

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = sorted(
    {
        line.split("  ")[0].strip()
        for page in DOCS
        for language, block in BLOCK.findall(page.read_text())
        if not language
        for line in block.splitlines()
        if line.startswith("marble ")
    }
)
# Rewards that the reader has just written.
FOREIGN = {
    "plugin: light, aspects: [brightness, contrast]": "plugin: colorfulness",
    "brightness": "colorfulness",
    "warmth": "colorfulness",
}


def words(command: str) -> list[str]:
    for theirs, ours in FOREIGN.items():
        command = command.replace(theirs, ours)
    return [word.replace(", gamma: 2.2", "") for word in shlex.split(command)[1:]]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("marble train")])
def test_train_commands_compose(command: str) -> None:
    plain = re.sub(r"--(nproc|resume|config-name) \S+|--\S+| -m ", " ", command)
    overrides = words(plain)[1:]
    if not re.search(r" (--multirun|-m) ", command):
        assert compose(overrides).rewards
        return
    fixed, cells = split_sweep(overrides)
    assert all(compose([*fixed, *cell.overrides]).rewards for cell in cells)


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("marble train")])
def test_other_commands_exist(command: str) -> None:
    path = tuple(
        word
        for word in words(command)
        if word
        in (
            "eval",
            "explain",
            "generate",
            "export",
            "doctor",
            "rewards",
            "list",
            "check",
            "serve",
            "install",
            "new",
            "sync",
        )
    )
    assert has_help(path)


@cache
def has_help(path: tuple[str, ...]) -> bool:
    """Tell whether there is such a command; many lines call the same one."""
    return CliRunner().invoke(app, [*path, "--help"]).exit_code == 0


def test_the_files_and_folders_named_exist() -> None:
    for page in DOCS:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_configuration_reference_has_a_section_per_group() -> None:
    from marble_cli.config.compose import GROUPS

    page = (ROOT / "docs/reference/configuration.md").read_text()
    sections = re.findall(r"^## (\w+)$", page, re.MULTILINE)
    assert set(GROUPS) - {"preset"} <= set(sections)


def test_paths_of_pages_that_code_and_comments_name_exist() -> None:
    files = [ROOT / "Makefile", *(ROOT / "marble_cli").rglob("*.py"), *(ROOT / "conf").rglob("*.yaml")]
    files += [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    named = {
        (path, file.relative_to(ROOT))
        for file in files
        for path in re.findall(r"(?<![\w/.])docs/[\w/-]+(?:\.(?:md|png|json))?", file.read_text())
    }
    assert [(path, str(file)) for path, file in sorted(named) if not (ROOT / path).exists()] == []
