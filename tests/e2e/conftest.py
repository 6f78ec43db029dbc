from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.environment import Environment, made_in, make_environment
from tests.once import once, shared_server


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The environment, each of whose commands is an interpreter of its own."""
    return made_in(once(tmp_path_factory, "environment", make_environment))


@pytest.fixture(scope="session")
def environment(fresh: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The environment, with commands as forks of one interpreter that has imported marble from its wheel."""
    forks = shared_server(tmp_path_factory, "wheel-forks", fresh.python, fresh.variables())
    yield replace(fresh, forks=forks)
    forks.close()


@pytest.fixture
def run(fresh: Environment, request: pytest.FixtureRequest) -> Path:
    """A run folder of the test's own, not yet made."""
    return fresh.folder / request.node.name.replace("[", "-").replace("]", "")
