"""Prompts from their sources: files of text, JSON lines or Parquet, and datasets of the hub."""

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from marble_cli.config.schema import DataConfig, Quotes, SourceConfig
from marble_cli.data.rows import Row, RowError, Rows, clean, json_rows, legible, text_rows
from marble_cli.data.tables import hub_rows, parquet_rows
from marble_cli.errors import DataError

NEGATIVE = "negative_prompt"  # the key of a row's own
QUOTED = re.compile(r'"([^"]*)"')
QUOTED_CURLY = re.compile("\u201c([^\u201d]*)\u201d")
NAMED = 3  # bad lines that a message names


@dataclass(frozen=True)
class Prompt:
    """One prompt, what rewards may know of it, the name of its source, and what guidance leads away from."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    negative: str = ""


def lacking(data: DataConfig) -> str | None:
    """What is to be set before there are prompts: the folder that their files are in."""
    wanted = [
        file for source in data.sources.values() if source.hub is None for file in (source.train, source.test)
    ]
    if not wanted or data.root == "tiny" or (data.root and Path(data.root).is_dir()):
        return None
    said = f"data.root={data.root} is no folder" if data.root else "data.root is not set"
    return f"{said}. Expected the one that holds {', '.join(wanted)}."


def load_prompts(data: DataConfig, split: str) -> dict[str, list[Prompt]]:
    """The prompts of every source's `train` or `test` split, in their order there.

    Raises:
        DataError: a file or dataset is missing, empty or has bad lines, which are named.
    """
    if (lack := lacking(data)) is not None:
        raise DataError(lack)
    embedded = Path(str(files("marble_cli") / "assets" / "tiny" / "prompts"))
    root = embedded if data.root == "tiny" else Path(data.root or ".")
    return {
        name: read_source(root, name, source, source.train if split == "train" else source.test)
        for name, source in data.sources.items()
    }


def read_source(root: Path, name: str, source: SourceConfig, part: str) -> list[Prompt]:
    """The prompts of one source's file `part` under `root`, or of the split `part` of its dataset.

    Raises:
        DataError: it is missing, holds no prompt, or has bad lines, which are named.
    """
    rows = hub_rows(name, source, part) if source.hub is not None else _file_rows(root / part, name, source)
    prompts, bad = [], list[str]()
    for number, raw in enumerate(rows.raw, 1):
        try:
            row = rows.parse(raw)
            if row is not None:
                prompts.append(_prompt(row, name, source))
        except RowError as error:
            bad.append(f"{rows.unit} {number}: {error}")
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise DataError(f"{rows.where}, {'; '.join(bad[:NAMED])}{more}. {rows.expected}")
    if not prompts:
        raise DataError(f"{rows.where} of data.sources.{name} is empty. Expected one prompt a {rows.unit}.")
    return prompts


def _file_rows(path: Path, name: str, source: SourceConfig) -> Rows:
    """Raises DataError if the file is missing or cannot be read."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return parquet_rows(path, name, source)
        return text_rows(path, source.prompt_key) if suffix == ".txt" else json_rows(path)
    except FileNotFoundError:
        raise DataError(_missing(path, name)) from None
    except OSError as error:
        raise DataError(f"prompt file {path} of data.sources.{name} cannot be read: {error}") from error


def _missing(path: Path, name: str) -> str:
    beside = [str(file) for file in path.parent.glob("*") if file.is_file()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), beside, n=1)
    hint = f" Did you mean {near[0]}?" if near else " Set data.root and data.sources to your files."
    return f"prompt file {path} of data.sources.{name} does not exist.{hint}"


def _prompt(row: Row, name: str, source: SourceConfig) -> Prompt:
    """Raises RowError if the row holds no prompt, or lacks what its source asks for."""
    text = _text(row, source.prompt_key)
    if not text:
        raise RowError(f'no text under the key "{source.prompt_key}" (its keys: {", ".join(row) or "none"})')
    negative = _text(row, NEGATIVE) or source.negative_prompt or ""
    own = {key: _plain(row[key], key) for key in row if key not in (source.prompt_key, NEGATIVE)}
    metadata = source.metadata | {key: value for key, value in own.items() if value is not None}
    if source.quoted_as is not None and source.quoted_as not in metadata:
        wanted = quoted(text) if source.quotes is Quotes.required else after_straight_quote(text)
        if wanted.strip():
            metadata[source.quoted_as] = wanted
        elif source.quotes is Quotes.required:
            raise RowError(f"no text in double quotes, which data.sources.{name}.quoted_as asks for")
    return Prompt(text, metadata, name, negative)


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f'no text under the key "{key}" but {str(value)[:40]!r} ({type(value).__name__})')
    with _under(key):
        return clean(value)


@contextmanager
def _under(key: str) -> Iterator[None]:
    """Say of what is wrong with a text which key it stands under."""
    try:
        yield
    except RowError as error:
        raise RowError(f'the text under the key "{key}" holds {error}') from None


def _plain(value: Any, key: str) -> Any:
    """Metadata with texts that are legible, and without the keys that a table fills with null where a row has none."""
    if isinstance(value, dict):
        return {inner: _plain(part, key) for inner, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_plain(part, key) for part in value]
    if not isinstance(value, str) or (value.isascii() and value.isprintable()):
        return value
    with _under(key):
        return legible(value)


def quoted(text: str) -> str:
    """What stands between the first two straight double quotes, else between the first curly ones; "" without any.

    Source: the target of the OCR reward of Flow-GRPO, arXiv 2505.05470, where there are straight ones.
    """
    found = QUOTED.search(text) or QUOTED_CURLY.search(text)
    return found.group(1) if found else ""


def after_straight_quote(text: str) -> str:
    """Return what follows the first straight double quote, up to the next if there is one; "" without any.

    Source: the target of the OCR reward published with arXiv 2605.06507, which takes the rest of `a 12" record`.
    """
    return text.partition('"')[2].partition('"')[0]


def held_out(prompts: Mapping[str, list[Prompt]], per_source: int) -> list[Prompt]:
    """The first `per_source` prompts of every source's test split, sources in their order."""
    return [prompt for rows in prompts.values() for prompt in rows[:per_source]]
