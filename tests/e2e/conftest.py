from pathlib import Path

import pytest

from tests.e2e.environment import Environment, make_environment


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_environment(tmp_path_factory.mktemp("environment"))


@pytest.fixture
def run(environment: Environment, request: pytest.FixtureRequest) -> Path:
    """A run folder of the test's own, not yet made."""
    return environment.folder / request.node.name.replace("[", "-").replace("]", "")
