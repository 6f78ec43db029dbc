from pathlib import Path

import pytest

from .tiny_models import write_clip, write_predictor


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small random CLIP model with tokenizer and image processor."""
    place = tmp_path_factory.mktemp("clip")
    write_clip(place)
    return place


@pytest.fixture(scope="session")
def predictor(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """Write a small random aesthetic predictor for the embeddings of `folder`."""
    place = tmp_path_factory.mktemp("predictor")
    write_predictor(place, clip=folder)
    return place
