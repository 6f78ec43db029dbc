"""The distribution is `marble-cli`: `marble` on the package index is another project, never required here."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from marble_cli import DISTRIBUTION, __version__

ROOT = Path(__file__).resolve().parents[1]
OTHER = "marble"  # the unrelated project
ARGUMENT = r"(?:\s+(?!#)['\"]?[^\s'\"`]+['\"]?)*?"  # of pip, options among them
REQUIRED = re.compile(
    rf"(?<![\w.-]){OTHER}\[\w"  # with extras
    rf"|\bpip3?\s+(?:install|download|wheel|uninstall){ARGUMENT}\s+['\"]?{OTHER}(?![\w./-])"
    rf"|(?<![\w.-]){OTHER}\s*(?:==|~=|>=|<=)\s*\d"  # with a version
    rf"|\b(?:distribution|version|metadata|requires|files)\(\s*['\"]{OTHER}['\"]"  # of importlib.metadata
)


def texts() -> Iterator[tuple[str, str]]:
    """Name and content of every text file that git tracks or would."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and b"\0" not in (data := (ROOT / name).read_bytes()):
            yield name, data.decode()


@pytest.mark.parametrize(
    "text",
    [
        f"pip install '{OTHER}[serve]'",
        f'dev = ["{OTHER}[torchjd,data]"]',
        f"pip install {OTHER}",
        f"python -m pip install --upgrade -q {OTHER}",
        f"pip install -e plugins/x {OTHER}",
        f'"{OTHER}>=0.1"',
        f"{OTHER} == 0.1.0",
        f'version("{OTHER}")',
    ],
)
def test_a_requirement_of_the_other_project_is_seen(text: str) -> None:
    assert REQUIRED.search(text)


@pytest.mark.parametrize(
    "text",
    [
        "pip install 'marble-cli[serve]'",
        "pip install marble-reward-ocr",
        "pip install plugins/marble-reward-ocr",
        "pip install -e . -e plugins/marble-reward-ocr  # marble train",
        "marble rewards install ocr",
        'getLogger("marble")',
        "isolated: pip install marble_cli-0.1.0-py3-none-any.whl",
    ],
)
def test_a_command_and_our_own_distributions_are_none(text: str) -> None:
    assert not REQUIRED.search(text)


def test_no_text_requires_the_other_project() -> None:
    own = str(Path(__file__).relative_to(ROOT))
    found = [
        f"{name}: {line.strip()}"
        for name, text in texts()
        if name != own
        for line in text.splitlines()
        if REQUIRED.search(line)
    ]
    assert not found, found


def requirements(project: dict[str, Any]) -> Iterator[str]:
    """Names of the distributions that a pyproject's project requires, of all its extras."""
    extras = project.get("optional-dependencies", {}).values()
    for line in (*project.get("dependencies", []), *(line for extra in extras for line in extra)):
        yield re.split(r"[^\w.-]", line, maxsplit=1)[0]


@pytest.mark.parametrize(
    "file",
    [
        *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("plugins/*/pyproject.toml"))),
        "pyproject.toml",
        "marble_cli/assets/plugin/pyproject.toml.template",
    ],
)
def test_no_project_of_ours_depends_on_the_other(file: str) -> None:
    text = (ROOT / file).read_text().replace("$package = ", "package = ").replace("$name = ", "name = ")
    project = tomllib.loads(text)["project"]
    assert project["name"] != OTHER
    assert OTHER not in set(requirements(project))


def test_the_installed_distribution_is_the_one_that_errors_and_environments_name() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == DISTRIBUTION
    found = distribution(DISTRIBUTION)
    assert found.version == __version__
    assert {"serve", "data", "torchjd", "solvers"} <= set(found.metadata.get_all("Provides-Extra") or [])
    assert {(e.group, e.name) for e in found.entry_points} >= {("console_scripts", "marble")}


def test_every_data_file_of_the_package_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {
        path
        for package, patterns in declared.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = [
        path
        for path in (ROOT / "marble_cli").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert not set(files) - packaged
