"""A function that reads one prompt source."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.schema import DataConfig, SourceConfig
from marble_cli.data.prompts import Prompt, load_prompts

Reader = Callable[..., list[Prompt]]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Prompts of a source `signs` whose train split is `part`, a file under `tmp_path`; keywords are its other keys."""

    def reader(part: str, **keys: object) -> list[Prompt]:
        source = SourceConfig(train=part, test=part, **keys)  # type: ignore[arg-type]
        return load_prompts(DataConfig(root=str(tmp_path), sources={"signs": source}), "train")["signs"]

    return reader
