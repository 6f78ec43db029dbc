"""Tiny models of the real classes, written once a session."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def _tiny_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_geneval", Path(__file__).with_name("tiny_geneval.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """What writes the models."""
    return _tiny_models()


@pytest.fixture(scope="session")
def mask2former(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.write_mask2former(tmp_path_factory.mktemp("mask2former"))
    return folder


@pytest.fixture(scope="session")
def detr(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.write_detr(tmp_path_factory.mktemp("detr"))
    return folder


@pytest.fixture(scope="session")
def clip(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tiny.write_clip(tmp_path_factory.mktemp("clip"))
    return folder
