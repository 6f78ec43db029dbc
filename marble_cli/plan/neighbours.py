"""Count what shares a run's device with the model: the rewards' models and NCCL's buffers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from marble_cli.config.counts import processes
from marble_cli.config.enums import Parallel
from marble_cli.config.schema import RewardConfig, RunConfig
from marble_cli.plan.memory import describe_bytes
from marble_cli.policy.source import ASSETS
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.device import numbered
from marble_cli.rewards.registry import load_plugin, parameters

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float64": 8}  # bytes; rewards compute in float32 by default
WEIGHTS = "model.safetensors"
# Bytes per communicator, at most: a ring and a tree over 32 channels, each of which receives through 10 MiB
# and sends through 2 MiB. Source: the allocations on eight H100 in github.com/NVIDIA/nccl/issues/1685.
NCCL = 2 * 32 * (10 + 2) * 2**20


@dataclass(frozen=True)
class Neighbours:
    """Bytes on each process's device besides the model's.

    Attributes:
        rewards: of the weights that each reward loads there, by name; None if they are not known. Rewards
            that load nothing there are left out.
        nccl: of NCCL's buffers, at most.
    """

    rewards: dict[str, int | None]
    nccl: int

    @property
    def total(self) -> int:
        """All that is known."""
        return self.nccl + sum(size or 0 for size in self.rewards.values())

    def __str__(self) -> str:
        sizes = [f"{name} {describe_bytes(size)}" for name, size in self.rewards.items() if size]
        if unknown := [name for name, size in self.rewards.items() if size is None]:
            sizes.append(f"of {', '.join(unknown)} not known and not counted")
        if self.nccl:
            sizes.append(f"NCCL up to {describe_bytes(self.nccl)}")
        return ", ".join(sizes) or "none"


def find_neighbours(
    config: RunConfig, declarations: Mapping[str, Declaration], device: torch.device
) -> Neighbours:
    """Count what shares `device` with the model; rewards without a declaration are not known.

    With trainer.parallel=fsdp, the ranks of a copy have a communicator besides that of all ranks, and those
    with the same shards have one if there are several copies.
    """
    place = str(numbered(str(device)))
    rewards = {
        name: _size(reward, declarations[name]) if name in declarations else None
        for name, reward in {**config.rewards, **config.eval_rewards}.items()
        if reward.url is None and reward.options.get("device", place) in (place, device.type)
    }
    communicators = 0
    if device.type == "cuda" and processes(config.launcher) > 1:
        sharded = config.trainer.parallel is Parallel.fsdp
        communicators = 1 + sharded * (1 + (config.trainer.fsdp.replicas > 1))
    return Neighbours({name: size for name, size in rewards.items() if size != 0}, communicators * NCCL)


def _size(reward: RewardConfig, declaration: Declaration) -> int | None:
    taken = {} if reward.isolated else parameters(load_plugin(reward.plugin))
    if declaration.loads is None:
        # A reward that takes no device computes on the CPU; that of an isolated one cannot be told from here.
        return 0 if "device" not in taken and not reward.isolated else None
    total = 0
    for option, published in declaration.loads.items():
        default = taken[option].default if option in taken else None
        model = reward.options.get(option, default)
        count = _count(str(model))
        if count is None and (count := published.get(str(model))) is None:
            return None
        total += count
    return total * ITEMSIZE.get(str(reward.options.get("dtype")), 4)


def _count(model: str) -> int | None:
    """Count the parameters in the weights of a folder or hub repository; None if they are not here."""
    folder = ASSETS / "tiny" / "clip" if model == "tiny" else Path(model).expanduser()
    try:
        return sum(_count_file(file) for file in _weight_files(folder, model))
    except (OSError, SafetensorError, ValueError, KeyError):
        return None


def _weight_files(folder: Path, model: str) -> list[Path]:
    """Return the files that transformers loads a model from.

    Raises:
        OSError: they are not on this machine.
        ValueError: the name is neither a path nor a hub id, or the index cannot be read.
    """

    def find(name: str) -> Path | None:
        found = folder / name if folder.is_dir() else try_to_load_from_cache(model, name)
        return Path(found) if isinstance(found, str | Path) and Path(found).is_file() else None

    if whole := find(WEIGHTS):
        return [whole]
    if not (index := find(f"{WEIGHTS}.index.json")):
        raise FileNotFoundError(model)
    parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [index.with_name(name) for name in sorted(set(parts))]


def _count_file(file: Path) -> int:
    with safe_open(file, "pt") as content:
        return sum(prod(content.get_slice(key).get_shape()) for key in content.keys())  # noqa: SIM118
