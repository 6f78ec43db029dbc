"""Agree on a folder in which the ranks of a machine meet, to share the servers of isolated rewards."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from marble_cli.config import schema
from marble_cli.distributed.ranks import Ranks
from marble_cli.rewards.device import numbered


@dataclass(frozen=True)
class Machine:
    """Where the ranks of this machine meet: their folder, and the device of the first one."""

    folder: Path
    device: str


@contextmanager
def meeting(
    ranks: Ranks, rewards: Mapping[str, schema.RewardConfig], device: str
) -> Iterator[Machine | None]:
    """Make the folder in which the ranks of each machine meet; None if they have nothing to share.

    All ranks must enter the block. The first rank of a machine removes its folder at the end.

    Args:
        ranks: the ranks.
        rewards: settings by name, the same on all ranks.
        device: this rank's device.
    """
    if not any(reward.isolated for reward in rewards.values()):
        yield None
        return
    own = None
    with ranks.raise_together():
        if ranks.local_rank == 0 and ranks.local_world > 1:
            own = {"folder": tempfile.mkdtemp(prefix="marble-rewards-"), "device": numbered(device)}
    first = ranks.all_gather_json(own)[ranks.rank - ranks.local_rank]
    try:
        yield None if first is None else Machine(Path(first["folder"]), first["device"])
    finally:
        if own is not None:
            shutil.rmtree(own["folder"], ignore_errors=True)
