"""Fonts as at the start of a process."""

from collections.abc import Iterator

import pytest
from matplotlib import font_manager

from marble_cli.metrics import captions


@pytest.fixture
def new_fonts() -> Iterator[None]:
    """Clear the caches of fonts and warnings before and after the test."""
    known = list(font_manager.fontManager.ttflist)
    for cached in (captions._family, captions._families, captions._letters, captions._warn_once):
        cached.cache_clear()
    yield
    font_manager.fontManager.ttflist[:] = known
    for cached in (captions._family, captions._families, captions._letters, captions._warn_once):
        cached.cache_clear()
