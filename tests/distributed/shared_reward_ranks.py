"""Run by every rank of tests/distributed/test_shared_rewards.py: train with an isolated reward.

Arguments: the configuration's file, and the Python that takes the place of an isolated environment's.
"""

import sys

from marble_cli.config.compose import compose
from marble_cli.rewards.elsewhere import isolated, shared
from marble_cli.run.train import train

COMMAND = [sys.argv[2], "-m", "marble_cli", "rewards", "serve", "--stdin"]
isolated.serve_command = shared.serve_command = lambda plugin: COMMAND
replace, started = shared.SharedServer._replace, []


def watched(self, old):
    serving = replace(self, old)
    started.append(serving.pid)
    return serving


shared.SharedServer._replace = watched  # type: ignore[method-assign]
assert train(compose([], sys.argv[1]), resume="auto") == 0
print("started", *started)
