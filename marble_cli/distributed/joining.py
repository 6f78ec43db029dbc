"""What is said when the processes of a run cannot reach one another at its start."""

import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from marble_cli.errors import JoinError

log = logging.getLogger("marble")

SOON = 60.0  # seconds in which processes that were started together have met
ADVICE = (
    "All processes need the same MASTER_ADDR and a free MASTER_PORT there, as torchrun and SLURM's script "
    "set them; a network interface from each machine to all others, named in GLOO_SOCKET_IFNAME and "
    "NCCL_SOCKET_IFNAME where it is not the one found (`ip -br address` lists them); within a machine, room "
    "in /dev/shm (containers: --shm-size); and free memory on every GPU. NCCL_DEBUG=INFO tells more; see "
    "docs/how-to/cluster.md."
)


@contextmanager
def joining(rank: int, world: int) -> Iterator[None]:
    """Say what to look at where the process group cannot be made within, or takes longer than a minute.

    Raises:
        JoinError: the processes cannot reach one another.
    """
    here = f"process {rank} of {world} on {socket.gethostname()}"
    late = threading.Timer(SOON, log.warning, ("%s still waits to reach the others. %s", here, ADVICE))
    late.daemon = True
    late.start()
    try:
        yield
    except (dist.DistError, RuntimeError, ValueError) as error:  # ValueError: a variable is not set
        raise JoinError(f"{here} cannot reach the others: {_reason(error)}. {ADVICE}") from error
    finally:
        late.cancel()


def _reason(error: Exception) -> str:
    """A backend's first line, without the place in its source, and the cause that NCCL ends with."""
    text = str(error).strip() or type(error).__name__
    first = re.sub(r"^\[[^]]*\] ", "", text.splitlines()[0]).rstrip(".: ")
    last = re.search(r"Last error:\s*(.+)", text)
    return f"{first} ({last.group(1).strip()})" if last else first
