"""Share the cases of the battery: each tiny pipeline is saved and loaded once per process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from marble_cli.config.compose import compose
from marble_cli.config.schema import RunConfig
from marble_cli.policy.load import load_policy
from tests.policy.families import differences
from tests.policy.families.cases import Case, load_plain
from tests.policy.families.pipelines import TINY


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--differences", type=Path, help="write the largest difference of each proof here")


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--differences", default=None)
    if file is not None:
        differences.write(file)


@pytest.fixture(scope="session", params=list(TINY))
def case(
    request: pytest.FixtureRequest,
    tiny_folder: Callable[[str], Path],
    run_config: Callable[..., RunConfig],
    randomise: Callable[..., None],
) -> Case:
    tiny = TINY[request.param]
    folder = tiny_folder(request.param)
    choice = compose([f"model={tiny.choice}", "~preset", "data.root=.", "run.dir=unused"]).model
    overrides = (
        f"model={tiny.choice}",
        f"model.path={folder}",
        f"model.resolution={tiny.resolution}",
        f"model.max_sequence_length={tiny.max_sequence_length}",
        f"model.lora.target_modules=[{','.join(choice.lora.target_modules)}]",
        "model.precision=fp32",
        "model.embedding_cache=null",
        *tiny.overrides,
    )
    model = run_config(*overrides).model
    policy = load_policy(model, seed=0)
    randomise(policy)
    return Case(request.param, tiny, overrides, model, load_plain(folder), policy)
