"""Start several processes of a run on this machine, by torch's own elastic launcher."""

import os
import signal
import sys
import tempfile
from pathlib import Path

from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def launched() -> bool:
    """Whether a launcher such as torchrun started this process."""
    return "WORLD_SIZE" in os.environ


def launch(config: RunConfig, resume: str) -> int:
    """Run `marble train` in `launcher.nproc` processes; returns the exit code of the first that failed, else 0.

    The configuration is composed once and handed over as a file, so that all processes agree on it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = config.launcher.nproc
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(dump(config), encoding="utf-8")
        command = ("-m", "marble_cli", "train", "--config-name", str(file), "--resume", resume)
        try:
            elastic_launch(settings, sys.executable)(*command)
        except ChildFailedError as error:
            return abs(min(error.failures.values(), key=lambda failure: failure.timestamp).exitcode)
        except SignalException as stopped:
            return EXIT_CODES.get(stopped.sigval, 1)
    return 0
