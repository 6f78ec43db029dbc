"""Marks of tests that compile."""

import shutil

import pytest

# The compiler's own, of which there are many.
WITHOUT_COMPILER_WARNINGS = pytest.mark.filterwarnings("ignore")
NEEDS_COMPILER = pytest.mark.skipif(
    shutil.which("gcc") is None, reason="torch.compile needs a C++ compiler on a CPU"
)
