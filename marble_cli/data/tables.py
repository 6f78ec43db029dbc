"""Read tables as rows: Parquet files and datasets of the Hugging Face hub.

Their columns are text, numbers, and lists and records of them. One may hold pictures to start from: bytes, or
records of `bytes` and `path`, as the datasets library stores them, or lists of these. The libraries are
optional and imported only if a source needs them.
"""

import importlib
import json
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

from marble_cli.config.schema import SourceConfig
from marble_cli.data.rows import SourceRows
from marble_cli.errors import DataError

log = logging.getLogger("marble")

# Readers of the datasets library that are allowed. Its others unpickle files, or read only media.
READERS = ("parquet", "json", "csv", "text", "arrow", "imagefolder")


def parquet_rows(path: Path, name: str, source: SourceConfig) -> SourceRows:
    """Read the rows of a Parquet file, without columns of bytes.

    Raises:
        DataError: pyarrow is missing, the file is no Parquet file, or it lacks the prompts' column.
    """
    parquet = _import_library("pyarrow.parquet", f"data.sources.{name} is a Parquet file")
    pyarrow = _import_library("pyarrow", "")
    try:
        with parquet.ParquetFile(path) as file:
            columns, pictures = _usable_columns(str(path), file.schema_arrow, name, source)
            table = file.read(columns=[*columns, *pictures])
            _warn_mixed(str(path), file.read(columns=_mixed_columns(file.schema_arrow)))
    except pyarrow.ArrowException as error:
        raise DataError(
            f"prompt file {path} of data.sources.{name} cannot be read: {_first_line(error)}. "
            "Expected a Parquet file."
        ) from error
    return _table_rows(str(path), table, pictures)


def hub_rows(name: str, source: SourceConfig, split: str) -> SourceRows:
    """Read the rows of one split of a dataset, on the hub or in a folder that the datasets library can read.

    Raises:
        DataError: the datasets library is missing, the dataset cannot be read, or it lacks the split or the
            column.
    """
    datasets = _import_library("datasets", f"data.sources.{name}.hub names a dataset")
    datasets.disable_progress_bars()
    where = f"data.sources.{name}.hub={source.hub}, split {split!r}"
    try:
        builder = datasets.load_dataset_builder(source.hub, name=source.subset, revision=source.revision)
        reader = type(builder).__module__.split(".")[-1]
        if reader in READERS:
            builder.download_and_prepare()
            dataset = builder.as_dataset(split=split)
    except Exception as error:  # the library and the network raise many types
        raise DataError(
            f"{where}: {_first_line(error)}. Expected a dataset that can be reached (for a gated one: hf "
            "auth login), or a folder of .jsonl or .parquet files, and one of its splits."
        ) from error
    if reader not in READERS:
        raise DataError(f"{where}: its files are of the kind {reader}. Expected one of {', '.join(READERS)}.")
    _warn_mixed(
        where, dataset.select_columns(_mixed_columns(dataset.features.arrow_schema)).with_format("arrow")[:]
    )
    columns, pictures = _usable_columns(where, dataset.features.arrow_schema, name, source)
    table = dataset.select_columns([*columns, *pictures]).with_format("arrow")[:]
    return _table_rows(where, table, pictures)


def _table_rows(where: str, table: Any, pictures: list[str]) -> SourceRows:
    rows = [_without_decimals(row) for row in table.drop_columns(pictures).to_pylist()]
    for name in pictures:
        for row, cell in zip(rows, table.column(name), strict=True):
            row[name] = _read_cell(cell)
    return SourceRows(where, "row", "Expected text in every row.", rows, dict)


def _without_decimals(value: Any) -> Any:
    """Return a value with floats for its decimals, which JSON has not."""
    if isinstance(value, dict):
        return {key: _without_decimals(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_decimals(part) for part in value]
    return float(value) if isinstance(value, Decimal) else value


def _read_cell(cell: Any) -> Any:
    """Return the picture in a cell, without a copy of its bytes, or its path; None if there is none.

    Of a list, return a list of them.
    """
    if not cell.is_valid:
        return None
    if _is_list(cell.type):
        return [_read_cell(part) for part in cell]
    if hasattr(cell, "as_buffer"):
        return memoryview(cell.as_buffer())
    inside, path = cell["bytes"], cell["path"] if "path" in cell else None  # noqa: SIM401 - no mapping
    if inside.is_valid:
        return memoryview(inside.as_buffer())
    return None if path is None else path.as_py()


def _mixed_columns(schema: Any) -> list[str]:
    """List the columns of JSON, which the datasets library makes of a column whose rows differ in type."""
    return [field.name for field in schema if getattr(field.type, "extension_name", None) == "arrow.json"]


def _warn_mixed(where: str, table: Any) -> None:
    """Warn about columns that are left out because their rows differ in type.

    Their rows cannot be told apart: the library stores the text "47" and the number 47 alike.
    """
    for name in _mixed_columns(table.schema):
        types = {
            type(json.loads(cell)).__name__ for cell in table.column(name).to_pylist() if cell is not None
        }
        types |= {"str"} if len(types) == 1 else set()  # text that looks like the others
        log.warning(
            "%s: column left out because its rows differ in type: %s (%s). Give them one type; .jsonl files "
            "under data.root may have several",
            where,
            name,
            ", ".join(sorted(types)),
        )


def _usable_columns(where: str, schema: Any, name: str, source: SourceConfig) -> tuple[list[str], list[str]]:
    """List the columns of text and numbers, and that of pictures if there is one; warn about others.

    Raises:
        DataError: the prompts' column is not among them.
    """
    plain = [field.name for field in schema if _is_plain(field.type)]
    pictures = [
        field.name for field in schema if field.name == source.image_key and _holds_pictures(field.type)
    ]
    if plain.count(source.prompt_key) != 1:
        raise DataError(
            f"{where}: there is no column {source.prompt_key!r} of text, or more than one. It has: "
            f"{', '.join(plain) or 'none'}. Set data.sources.{name}.prompt_key to the column of the prompts."
        )
    left_out = [
        f"{field.name} ({field.type})"
        for field in schema
        if field.name not in (*plain, *pictures, *_mixed_columns(schema))
    ]
    if left_out:
        log.warning(
            "%s: columns left out because they hold no text or numbers: %s", where, ", ".join(left_out)
        )
    return plain, pictures


def _holds_pictures(kind: Any) -> bool:
    """Return whether an Arrow type is bytes, a record of `bytes` and perhaps a `path`, or a list of these."""
    from pyarrow import types

    if _is_list(kind):
        return _holds_pictures(kind.value_type)
    if types.is_struct(kind):
        parts = {part.name: part.type for part in kind}
        return set(parts) in ({"bytes"}, {"bytes", "path"}) and _holds_pictures(parts["bytes"])
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_plain(kind: Any) -> bool:
    """Return whether an Arrow type is text, a number, a boolean, or lists and records of them."""
    from pyarrow import types

    if types.is_struct(kind):
        return all(_is_plain(field.type) for field in kind)
    if _is_list(kind):
        return _is_plain(kind.value_type)
    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    return bool(text or number or types.is_boolean(kind) or types.is_null(kind))


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _import_library(module: str, why: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{why}, for which {module.split('.')[0]} is missing here ({error}). "
            "Install it: pip install 'marble-cli[data]'"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
