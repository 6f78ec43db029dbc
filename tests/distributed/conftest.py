from collections.abc import Iterator

import pytest

from tests.distributed import processes


@pytest.fixture(scope="session", autouse=True)
def _no_server_is_left() -> Iterator[None]:
    yield
    if processes.forks.cache_info().currsize:
        processes.forks().close()
