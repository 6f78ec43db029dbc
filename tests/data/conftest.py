"""A function that reads one prompt source."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.schema import DataConfig, SourceConfig
from marble_cli.data.prompts import Prompt, load_prompts

Reader = Callable[..., list[Prompt]]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Return a reader of a source `signs`, the file `part` under `tmp_path`; keywords are its other keys."""

    def reader(part: str, **keys: object) -> list[Prompt]:
        source = SourceConfig(train=part, test=part, **keys)  # type: ignore[arg-type]
        return load_prompts(DataConfig(root=str(tmp_path), sources={"signs": source}), "train")["signs"]

    return reader
