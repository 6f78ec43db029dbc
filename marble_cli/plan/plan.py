"""Print what a run will do and need before any weight is loaded: `--dry-run`."""

from collections.abc import Mapping

import torch
from rich.console import Console
from rich.table import Table

from marble_cli.config.schema import RunConfig, SourceConfig
from marble_cli.data.prompts import Prompt
from marble_cli.plan.cards import tabulate_cards
from marble_cli.plan.checks import applicable, check_applicable, trained_on, with_declarations
from marble_cli.plan.findings import Findings, examine
from marble_cli.plan.forecast import unsound
from marble_cli.plan.lines import divide, model_lines, run_lines, step_lines
from marble_cli.plan.mixture import mixed_size
from marble_cli.plan.neighbours import find_neighbours
from marble_cli.policy.load import pick_device
from marble_cli.policy.model_size import ModelSize
from marble_cli.rewards.api import Declaration
from marble_cli.rewards.worker import required


def plan(config: RunConfig, resume: str = "auto") -> None:
    """Check everything that needs no weights, and print the plan of a run.

    Raises:
        RequestError: prompts, rewards, balance, geometry or the run's folder are wrong, or the folder holds
            another run.
        UnreachableError: a reward's server does not answer; the plan is printed before this is raised.
    """
    found = examine(config, resume)
    division = divide(config, found)
    size = mixed_size(config.model, division.shares, config.evaluation.resolution)
    device = pick_device(config.model.device)
    neighbours = find_neighbours(config, found.declarations, device)
    table = Table("", box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")  # a path longer than a line stays whole
    for line in (
        *run_lines(config, found),
        *step_lines(config, found, division),
        *model_lines(config, size, device, neighbours, found.existing, division),
    ):
        table.add_row(*line)
    console = Console(markup=False)
    console.print(table, "")
    if size is not None:
        _print_cards(console, config, size, found.declarations, device)
    if found.no_prompts:
        console.print(f"No prompts yet: {found.no_prompts}")
    else:
        console.print(_sources(config.data.sources, config.rollout.groups, found.prompts), "")
    if found.unreachable is not None:
        raise found.unreachable
    if not found.no_prompts:
        _print_rewards(console, config, found)


def _print_cards(
    console: Console,
    config: RunConfig,
    size: ModelSize,
    declarations: Mapping[str, Declaration],
    device: torch.device,
) -> None:
    card = device if device.type == "cuda" else torch.device("cuda:0")
    console.print(tabulate_cards(config, size, find_neighbours(config, declarations, card).total))
    console.print(
        "Largest trainer.micro_batch_size without / with gradient checkpointing; -: does not fit.\n"
    )


def _print_rewards(console: Console, config: RunConfig, found: Findings) -> None:
    """Print what each reward applies to and which will fail.

    Raises:
        ConfigError: a reward applies to no prompt, or fails on all.
    """
    console.print(_rewards(config, found.declarations, found.prompts), "")
    check_applicable(config, found.declarations, found.prompts["train"], found.prompts["test"])
    for line in unsound(config, found.declarations, found.prompts):
        console.print(line, soft_wrap=True)


def _sources(
    sources: Mapping[str, SourceConfig], groups: int, prompts: Mapping[str, Mapping[str, list[Prompt]]]
) -> Table:
    """Tabulate each source: its prompts, and its share of a step's prompts."""
    table = Table("source", box=None, pad_edge=False)
    for heading in ("prompts", "held out", "share", "prompts per step"):
        table.add_column(heading, justify="right")
    total = sum(source.weight for source in sources.values())
    for name, source in sources.items():
        counts = [f"{len(prompts[split][name]):,}" for split in ("train", "test")]
        share = source.weight / total
        table.add_row(name, *counts, f"{share:.0%}", f"{share * groups:.3g}")
    return table


def _rewards(
    config: RunConfig,
    declarations: Mapping[str, Declaration],
    prompts: Mapping[str, Mapping[str, list[Prompt]]],
) -> Table:
    """Tabulate the metadata that each reward requires and the prompts that it applies to.

    Rewards that are watched and not trained on see held-out prompts only.
    """
    table = Table("reward", "requires", "applies to", box=None, pad_edge=False)
    trained = trained_on(config.data.sources, prompts["train"])
    for rewards, asked, kind in (
        (config.rewards, trained, "prompts"),
        (config.eval_rewards, prompts["test"], "held-out prompts"),
    ):
        for name, reward, declaration in with_declarations(rewards, declarations):
            applied = applicable(reward, declaration, asked)
            counts = {source: count for source, count in applied.items() if count}
            where = f" ({', '.join(counts)})" if 0 < len(counts) < len(asked) else ""
            keys = ", ".join(required(reward, declaration))
            every = sum(map(len, asked.values()))
            condition = f", if {reward.only_if}" if reward.only_if else ""
            applies = f"{sum(counts.values()):,} of {every:,} {kind}{where}{condition}"
            table.add_row(name, keys or "nothing", applies)
    return table
