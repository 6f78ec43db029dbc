"""Describe what each process draws and trains on in a step."""

from collections.abc import Sequence

from marble_cli.config.counts import geometry, images_per_process, micro_batches, processes
from marble_cli.config.schema import RunConfig

MORE_PROCESSES = (16, 8, 4, 2)


def describe_processes(config: RunConfig, together: int, groups: Sequence[int]) -> str:
    """Describe each process's part of a step, for the run's processes and for more without padding.

    Args:
        config: the run's configuration.
        together: neighbouring images that stay on one process.
        groups: a step's groups of each size; steps differ if there are several.
    """
    about, total = "about " if len(groups) > 1 else "", geometry(config).images

    def padding(processes: int) -> int:
        return processes * sum(images_per_process(config, together, groups, processes)) - total

    def share(processes: int) -> str:
        each = images_per_process(config, together, groups, processes)
        rollouts = sum(-(-images // config.rollout.batch_size) for images in each)
        parts = micro_batches(config, together, groups, processes)
        spare = f" ({padding(processes)} in all are padding)" if padding(processes) else ""
        drawn = f"{about}{_count(sum(each), 'image', 's')}{spare} in {_count(rollouts, 'batch', 'es')}"
        return f"{processes}, each with {drawn}, and {_count(parts, 'micro-batch', 'es')}"

    here = processes(config.launcher)
    further = [n for n in MORE_PROCESSES if n > here and not padding(n)]
    return share(here) + (f"; or {share(further[0])}" if further else "")


def _count(number: int, noun: str, plural: str) -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"
