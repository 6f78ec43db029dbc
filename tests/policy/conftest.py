"""Share the folders of tiny pipelines among the tests of this room."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.policy.families.pipelines import TINY


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a pipeline of `TINY`, saved once per process; tests must not change it."""

    @cache
    def save(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            TINY[name].make().save_pretrained(folder)
        return folder

    return save
