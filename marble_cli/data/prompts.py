"""Prompt files: JSON lines with metadata, or plain text with one prompt a line."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from marble_cli.config.schema import Data
from marble_cli.errors import DataError


@dataclass(frozen=True)
class Prompt:
    """One prompt, what rewards may know of it, and the name of the source it comes from."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


def load_prompts(data: Data, split: str) -> dict[str, list[Prompt]]:
    """The prompts of every source's `train` or `test` file, in the file's order.

    Raises:
        DataError: a file is missing, empty or has a bad line, which is named.
    """
    root = (
        Path(str(files("marble_cli") / "assets" / "tiny" / "prompts"))
        if data.root == "tiny"
        else Path(data.root)
    )
    root = root.expanduser()
    return {
        name: read_prompts(root / (source.train if split == "train" else source.test), name)
        for name, source in data.sources.items()
    }


def read_prompts(path: Path, source: str) -> list[Prompt]:
    """The prompts of one file; blank lines are passed over.

    Raises:
        DataError: the file is missing, holds no prompt, or has a bad line, which is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(_missing(path, source)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"prompt file {path} of data.sources.{source} cannot be read: {error}") from error
    parse = _parse_json if path.suffix.lower() in (".jsonl", ".ndjson", ".json") else _parse_text
    prompts = [parse(line, path, number, source) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise DataError(f"prompt file {path} of data.sources.{source} is empty. Expected one prompt a line.")
    return prompts


def _missing(path: Path, source: str) -> str:
    beside = [str(file) for file in path.parent.glob("*") if file.is_file()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), beside, n=1)
    hint = f" Did you mean {near[0]}?" if near else " Set data.root and data.sources to your files."
    return f"prompt file {path} of data.sources.{source} does not exist.{hint}"


def _parse_text(line: str, path: Path, number: int, source: str) -> Prompt:
    return Prompt(line.strip(), {}, source)


def _parse_json(line: str, path: Path, number: int, source: str) -> Prompt:
    expected = 'Expected an object such as {"prompt": "a red sign that says \\"47\\"", "text": "47"}.'
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not valid JSON ({error.msg}). {expected}") from error
    text = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f'{path}, line {number}: no text under the key "prompt". {expected}')
    return Prompt(text.strip(), {key: value for key, value in row.items() if key != "prompt"}, source)


def held_out(prompts: Mapping[str, list[Prompt]], per_source: int) -> list[Prompt]:
    """The first `per_source` prompts of every source's test split, sources in their order."""
    return [prompt for rows in prompts.values() for prompt in rows[:per_source]]
