"""Report that the processes of a run cannot reach one another at its start."""

import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from marble_cli.errors import JoinError

log = logging.getLogger("marble")

LATE_AFTER = 60.0  # seconds; processes that were started together normally join sooner
ADVICE = (
    "All processes need the same MASTER_ADDR and a free MASTER_PORT there, as torchrun and SLURM's script "
    "set them; a network interface from each machine to all others, named in GLOO_SOCKET_IFNAME and "
    "NCCL_SOCKET_IFNAME if the wrong one is chosen (`ip -br address` lists them); free space in /dev/shm "
    "(containers: --shm-size); and free memory on every GPU. NCCL_DEBUG=INFO shows details; see "
    "docs/how-to/cluster.md."
)


@contextmanager
def joining(rank: int, world: int) -> Iterator[None]:
    """Explain what to check if the process group cannot be created inside the block, or not within a minute.

    Raises:
        JoinError: the processes cannot reach one another.
    """
    process = f"process {rank} of {world} on {socket.gethostname()}"
    late = threading.Timer(
        LATE_AFTER, log.warning, ("%s still waits to reach the others. %s", process, ADVICE)
    )
    late.daemon = True
    late.start()
    try:
        yield
    # ValueError: an environment variable is missing.
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise JoinError(f"{process} cannot reach the others: {_reason(error)}. {ADVICE}") from error
    finally:
        late.cancel()


def _reason(error: Exception) -> str:
    """Return the first line of a backend's error without its source location, and NCCL's last error."""
    text = str(error).strip() or type(error).__name__
    first = re.sub(r"^\[[^]]*\] ", "", text.splitlines()[0]).rstrip(".: ")
    last = re.search(r"Last error:\s*(.+)", text)
    return f"{first} ({last.group(1).strip()})" if last else first
