"""`marble push` prints the folder or the address, and refuses bad requests before anything is written."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Record calls of the folder's writer and of the upload."""
    seen: list[tuple[str, ...]] = []

    def write_folder(target: str, repo: str, folder: Path) -> Path:
        seen.append(("write", target, repo, str(folder)))
        return folder

    def upload(folder: Path, repo: str) -> str:
        seen.append(("upload", str(folder), repo))
        return f"https://hub/{repo}"

    monkeypatch.setattr("marble_cli.push.folder.write_folder", write_folder)
    monkeypatch.setattr("marble_cli.push.upload.upload", upload)
    return seen


def test_a_dry_run_names_the_folder_and_uploads_nothing(
    marble: Callable, calls: list[tuple[str, ...]]
) -> None:
    shown = marble("push", "runs/first", "me/lora", "--dry-run")
    assert (shown.code, shown.out) == (0, "push/me/lora\n")
    assert calls == [("write", "runs/first", "me/lora", "push/me/lora")]


def test_a_push_uploads_the_folder_and_names_its_address(
    marble: Callable, calls: list[tuple[str, ...]]
) -> None:
    shown = marble("push", "runs/first", "me/lora", "--output", "out")
    assert (shown.code, shown.out) == (0, "https://hub/me/lora\n")
    assert calls == [("write", "runs/first", "me/lora", "out"), ("upload", "out", "me/lora")]


def test_a_bad_name_is_refused_before_anything_is_written(
    marble: Callable, calls: list[tuple[str, ...]]
) -> None:
    shown = marble("push", "runs/first", "lora")
    assert shown.code == 2
    assert "lora is no hub id. Expected OWNER/NAME" in shown.err
    assert calls == []
