"""Refuse keys of a prompt source that contradict each other."""

from marble_cli.config.enums import Quotes
from marble_cli.config.schema import SourceConfig
from marble_cli.errors import ConfigError

PROMPT_FILES = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
NULLABLE = ("hub", "subset", "revision", "image_key", "resolution_key", "quoted_as")
TEXT_KEYS = ("train", "test", "prompt_key", *NULLABLE)
HUB_ONLY = ("subset", "revision")


def check_source(path: str, source: SourceConfig) -> None:
    """Check the keys of one prompt source, whose dotted key is `path`.

    Raises:
        ConfigError: naming the key and what was expected.
    """
    for key in TEXT_KEYS:
        value = getattr(source, key)
        if value is not None and not value.strip():
            raise ConfigError(
                f"{path}.{key} is empty. Expected a name{', or null' if key in NULLABLE else ''}."
            )
    if source.hub is None:
        _check_files(path, source)
    _check_metadata(path, source)


def _check_files(path: str, source: SourceConfig) -> None:
    for key in HUB_ONLY:
        if getattr(source, key) is not None:
            raise ConfigError(
                f"{path}.{key}={getattr(source, key)}: files have none. Expected it beside "
                f"{path}.hub=OWNER/NAME."
            )
    for key in ("train", "test"):
        file = getattr(source, key)
        if not file.lower().endswith(PROMPT_FILES):
            raise ConfigError(
                f"{path}.{key}={file}: expected a file that ends in {', '.join(PROMPT_FILES)}; for a dataset "
                f"of the hub, {path}.hub=OWNER/NAME."
            )
        if file.lower().endswith(".txt") and source.prompt_key != "prompt":
            raise ConfigError(
                f"{path}.prompt_key={source.prompt_key}: {file} is plain text, which has no keys. Expected "
                "none."
            )


def _check_metadata(path: str, source: SourceConfig) -> None:
    """Check that each key of a prompt has one origin."""
    for key in (*_taken(source), source.quoted_as):
        if key in source.metadata:
            raise ConfigError(
                f"{path}.metadata.{key}: {path} says already where {key!r} comes from. Expected another key."
            )
    if source.quotes is not Quotes.required and source.quoted_as is None:
        raise ConfigError(
            f"{path}.quotes={source.quotes.value}: nothing asks for what is in quotes. Expected "
            f"{path}.quoted_as beside it, e.g. text."
        )
    if source.image_key in (source.prompt_key, "negative_prompt"):
        raise ConfigError(
            f"{path}.image_key={source.image_key}: {path} takes text from there. Expected another key."
        )
    if source.resolution_key is not None and _taken(source).count(source.resolution_key) > 1:
        raise ConfigError(
            f"{path}.resolution_key={source.resolution_key}: {path} takes a text or a picture from there. "
            "Expected another key."
        )
    if source.quoted_as is not None and source.quoted_as in _taken(source):
        raise ConfigError(f"{path}.quoted_as={source.quoted_as}: expected a key of metadata, such as text.")


def _taken(source: SourceConfig) -> tuple[str | None, ...]:
    """Return the keys of a row that are no metadata."""
    return source.prompt_key, "negative_prompt", source.image_key, source.resolution_key
