from pathlib import Path

import pytest

from tests.e2e.environment import Environment, made_in, make_environment
from tests.once import once


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return made_in(once(tmp_path_factory, "environment", make_environment))


@pytest.fixture
def run(environment: Environment, request: pytest.FixtureRequest) -> Path:
    """A run folder of the test's own, not yet made."""
    return environment.folder / request.node.name.replace("[", "-").replace("]", "")
