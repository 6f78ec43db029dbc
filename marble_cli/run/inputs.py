"""Read what a run starts from, and check that model, rewards and memory fit it, before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

import torch

from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.schema import RunConfig
from marble_cli.data.condition_checks import check_conditions
from marble_cli.data.prompts import Prompt, held_out, load_prompts
from marble_cli.distributed.ranks import Ranks
from marble_cli.evaluate.start import Start, read_start
from marble_cli.plan.checks import check_applicable
from marble_cli.plan.memory import Checkpointing, check_memory, choose_checkpointing
from marble_cli.plan.neighbours import find_neighbours
from marble_cli.policy.size import model_size
from marble_cli.policy.source import count_pictures
from marble_cli.rewards.api import Declaration
from marble_cli.rollout.sizes import check_sizes, largest, possible_sizes


@dataclass(frozen=True)
class Inputs:
    """What a run starts from.

    Attributes:
        sources: the training prompts of each source.
        held_out: the prompts of evaluations.
        start: the LoRA that training begins with; None without one, or if the run is resumed.
        checkpointing: whether blocks are computed again, so that this rank's memory suffices.
    """

    sources: dict[str, list[Prompt]]
    held_out: list[Prompt]
    start: Start | None
    checkpointing: Checkpointing


def read_inputs(
    config: RunConfig,
    declarations: Mapping[str, Declaration],
    device: torch.device,
    ranks: Ranks,
    *,
    resumed: bool,
) -> Inputs:
    """Read prompts and the LoRA to start from, and check everything that can be checked without the model.

    Args:
        config: the configuration of the run.
        declarations: of its rewards, by the names that the configuration has.
        device: of this rank.
        ranks: share the pictures that are checked.
        resumed: whether the weights are those of a checkpoint.

    Raises:
        RequestError: prompts, pictures, sizes, rewards and model do not fit each other, or the device lacks
            memory.
    """
    sources, every_held_out = (load_prompts(config.data, split) for split in ("train", "test"))
    prompts = held_out(every_held_out, resolve_evaluation(config).prompts)
    every = [*chain(*sources.values()), *prompts]
    counts = count_pictures(config.model, fetch=True)
    check_conditions(every, config.model.path, *counts, rank=ranks.rank, world=ranks.world)
    check_sizes(every, config.model, fetch=True)
    check_applicable(config, declarations, sources, every_held_out)
    start = None if resumed else read_start(config)
    most = largest(possible_sizes(every, config.model.resolution))
    pictures = max(len(prompt.images) for prompt in every)
    size = model_size(replace(config.model, resolution=most), pictures=pictures)
    neighbours = find_neighbours(config, declarations, device).total
    check_memory(config, size, device, neighbours)
    return Inputs(sources, prompts, start, choose_checkpointing(config, size, device, neighbours))
