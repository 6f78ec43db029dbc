"""Read prompts from their sources: files of text, JSON, tables or Parquet, and datasets of the hub."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from marble_cli.config.embedded import WORLDS
from marble_cli.config.enums import Quotes
from marble_cli.config.resolution import EXPECTED, canonical, is_resolution, nearest_aspect
from marble_cli.config.schema import DataConfig, SourceConfig
from marble_cli.data.conditions import Condition
from marble_cli.data.rows import (
    Row,
    RowError,
    SourceRows,
    clean_text,
    json_rows,
    separated_rows,
    strip_marks,
    text_rows,
)
from marble_cli.data.tables import hub_rows, parquet_rows
from marble_cli.errors import DataError

NEGATIVE = "negative_prompt"  # key of a row's own negative prompt
QUOTED = re.compile(r'"([^"]*)"')
QUOTED_CURLY = re.compile("\u201c([^\u201d]*)\u201d")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
LISTED_FAULTS = 3  # bad rows that a message lists


@dataclass(frozen=True)
class Prompt:
    """One prompt with its metadata."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)  # passed to rewards
    source: str = ""  # name of its source in `data.sources`
    negative: str = ""  # negative prompt, used with guidance
    images: tuple[Condition, ...] = ()  # the pictures to start from, in their order
    resolution: int | str | None = None  # the size of its images, if its row names one
    buckets: tuple[str, ...] = ()  # sizes of which the first picture of a row without one takes the nearest
    where: str = field(default="", compare=False)  # its file or dataset and its line or row, for messages

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from other prompts: its text, and the names of its pictures."""
        return self.text, "\n".join(image.name for image in self.images)

    def drawn_at(self, default: int | str) -> int | str:
        """Return the size of its images: its own, else that of its first picture's bucket, else `default`.

        Raises:
            DataError: the picture cannot be read.
        """
        if self.resolution is not None:
            return self.resolution
        if not self.images or not self.buckets:
            return default
        return canonical(nearest_aspect(*self.images[0].size, self.buckets))


def find_root_fault(data: DataConfig) -> str | None:
    """Return an error message if prompt files are configured and `data.root` is not a folder, else None."""
    sources = [source for source in data.sources.values() if source.hub is None]
    needed = [file for source in sources for file in (source.train, source.test)]
    if not needed or data.root in WORLDS or (data.root and Path(data.root).is_dir()):
        return None
    fault = f"data.root={data.root} is not a folder" if data.root else "data.root is not set"
    return f"{fault}. Expected the folder that holds {', '.join(needed)}."


def load_prompts(data: DataConfig, split: str) -> dict[str, list[Prompt]]:
    """Read the prompts of every source's `train` or `test` split, in file order.

    Raises:
        DataError: a file or dataset is missing, empty or has bad rows, which are listed.
    """
    if (fault := find_root_fault(data)) is not None:
        raise DataError(fault)
    assets = Path(str(files("marble_cli") / "assets"))
    root = assets / data.root / "prompts" if data.root in WORLDS else Path(data.root or ".")
    buckets = data.aspect_ratio_buckets or ()
    return {
        name: read_source(root, name, source, source.train if split == "train" else source.test, buckets)
        for name, source in data.sources.items()
    }


def read_source(
    root: Path, name: str, source: SourceConfig, part: str, buckets: Sequence[str] = ()
) -> list[Prompt]:
    """Read the prompts of one source: of the file `part` under `root`, or of its dataset's split `part`.

    Args:
        root: the folder of its files and pictures.
        name: of the source.
        source: its settings.
        part: the file or split.
        buckets: `data.aspect_ratio_buckets`.

    Raises:
        DataError: the source is missing, holds no prompt, or has bad rows, which are listed.
    """
    rows = hub_rows(name, source, part) if source.hub is not None else _file_rows(root / part, name, source)
    prompts, bad = [], list[str]()
    for number, raw in enumerate(rows.raw, 1):
        try:
            row = rows.parse(raw)
            if row is not None:
                where = f"{rows.where}, {rows.unit} {number}"
                prompt = _make_prompt(row, name, source, root, where)
                prompts.append(replace(prompt, buckets=tuple(buckets)) if buckets else prompt)
        except RowError as error:
            bad.append(f"{rows.unit} {number}: {error}")
    if bad:
        more = f"; and {len(bad) - LISTED_FAULTS} more" if len(bad) > LISTED_FAULTS else ""
        raise DataError(f"{rows.where}, {'; '.join(bad[:LISTED_FAULTS])}{more}. {rows.expected}")
    if not prompts:
        raise DataError(f"{rows.where} of data.sources.{name} is empty. Expected one prompt per {rows.unit}.")
    return prompts


def _file_rows(path: Path, name: str, source: SourceConfig) -> SourceRows:
    """Open a prompt file by its ending.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return parquet_rows(path, name, source)
        if suffix in SEPARATORS:
            return separated_rows(path, SEPARATORS[suffix])
        return (text_rows if suffix == ".txt" else json_rows)(path, source.prompt_key)
    except FileNotFoundError:
        raise DataError(_describe_missing_file(path, name)) from None
    except OSError as error:
        raise DataError(f"prompt file {path} of data.sources.{name} cannot be read: {error}") from error


def _describe_missing_file(path: Path, name: str) -> str:
    siblings = [str(file) for file in path.parent.glob("*") if file.is_file()]
    near = difflib.get_close_matches(str(path), siblings, n=1)
    hint = f" Did you mean {near[0]}?" if near else " Set data.root and data.sources to your files."
    return f"prompt file {path} of data.sources.{name} does not exist.{hint}"


def _make_prompt(row: Row, name: str, source: SourceConfig, root: Path, where: str) -> Prompt:
    """Make a prompt of a row; its pictures are files under `root`.

    Raises:
        RowError: the row holds no prompt, or no quoted text where its source requires one.
    """
    text = _read_text(row, source.prompt_key)
    if not text:
        why = ", which is empty" if source.prompt_key in row else f" (its keys: {', '.join(row) or 'none'})"
        raise RowError(f'no text under the key "{source.prompt_key}"{why}')
    negative = _read_text(row, NEGATIVE) or source.negative_prompt or ""
    apart = (source.prompt_key, NEGATIVE, source.image_key, source.resolution_key)
    own = {key: _clean_metadata(row[key], key) for key in row if key not in apart}
    metadata = source.metadata | {key: value for key, value in own.items() if value is not None}
    if source.quoted_as is not None and source.quoted_as not in metadata:
        target = quoted(text) if source.quotes is Quotes.required else after_straight_quote(text)
        if target.strip():
            metadata[source.quoted_as] = target
        elif source.quotes is Quotes.required:
            raise RowError(
                f"no text in double quotes, which data.sources.{name}.quoted_as requires unless "
                f"data.sources.{name}.quotes=straight"
            )
    images = _read_images(row, source.image_key, root, where)
    return Prompt(text, metadata, name, negative, images, _read_resolution(row, name, source), where=where)


def _read_resolution(row: Row, name: str, source: SourceConfig) -> int | str | None:
    """Return the size that a row names, if it names one."""
    key = source.resolution_key
    value = None if key is None else row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    size = value.strip() if isinstance(value, str) else value
    if isinstance(size, bool) or not isinstance(size, int | str) or not is_resolution(size):
        raise RowError(
            f'no size under the key "{key}" but {str(value)[:40]!r}: expected {EXPECTED}, or '
            f"data.sources.{name}.resolution_key=null, which makes it metadata"
        )
    return canonical(size)


def _read_images(row: Row, key: str | None, root: Path, where: str) -> tuple[Condition, ...]:
    """Return the pictures of a row, which may name one or list several; no file is opened yet."""
    value = None if key is None else row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, list):
        return (_read_image(value, root, where, f'under the key "{key}"'),)
    return tuple(
        _read_image(part, root, f"{where}, picture {place}", f'at place {place} of the list under "{key}"')
        for place, part in enumerate(value, 1)
    )


def _read_image(value: Any, root: Path, where: str, place: str) -> Condition:
    """Return one picture of a row; `place` says in messages where it stands in the row."""
    if isinstance(value, memoryview):
        return Condition(where, value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"no path {place} but {str(value)[:40]!r} ({type(value).__name__})")
    return Condition(where, root / value)


def _read_text(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f'no text under the key "{key}" but {str(value)[:40]!r} ({type(value).__name__})')
    with _naming_key(key):
        return clean_text(value)


@contextmanager
def _naming_key(key: str) -> Iterator[None]:
    """Add the key to a RowError about a text."""
    try:
        yield
    except RowError as error:
        raise RowError(f'the text under the key "{key}" holds {error}') from None


def _clean_metadata(value: Any, key: str) -> Any:
    """Remove byte-order marks from texts, and the null values that tables give to missing nested keys."""
    if isinstance(value, dict):
        return {inner: _clean_metadata(part, key) for inner, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_clean_metadata(part, key) for part in value]
    if not isinstance(value, str) or (value.isascii() and value.isprintable()):
        return value
    with _naming_key(key):
        return strip_marks(value)


def quoted(text: str) -> str:
    """Return the text in the first straight double quotes, else in the first curly ones, else "".

    Source: with straight quotes, the target of the OCR reward of Flow-GRPO, arXiv 2505.05470.
    """
    found = QUOTED.search(text) or QUOTED_CURLY.search(text)
    return found.group(1) if found else ""


def after_straight_quote(text: str) -> str:
    """Return the text from the first straight double quote up to the next, or to the end; "" without any.

    Source: the target of the OCR reward published with arXiv 2605.06507, which takes the rest of `a 12"
    record`.
    """
    return text.partition('"')[2].partition('"')[0]


def held_out(prompts: Mapping[str, list[Prompt]], per_source: int) -> list[Prompt]:
    """Return the first `per_source` prompts of every source, in the order of the sources."""
    return [prompt for rows in prompts.values() for prompt in rows[:per_source]]
