"""Fixtures of the launchers' tests: a local run, a cluster of stand-ins, and cells of a sweep."""

from tests.launch.cells import cells
from tests.launch.cluster import cluster
from tests.launch.local_run import forked_run, run

__all__ = ["cells", "cluster", "forked_run", "run"]
