"""Fixtures of the launchers' tests: a local run, and a cluster of stand-ins."""

from tests.launch.cluster import cluster
from tests.launch.local_run import run

__all__ = ["cluster", "run"]
