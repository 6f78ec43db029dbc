"""Mark the tests of this room; `make test-standin` runs them in an environment with torch's CUDA build."""

from pathlib import Path

import pytest

ROOM = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOM):
            item.add_marker("standin")
