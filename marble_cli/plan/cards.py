"""Tabulate what fits on cards of common sizes: the largest micro-batch for each kind of frozen weights."""

from dataclasses import replace

from rich.table import Table

from marble_cli.config.counts import geometry, per_process, processes
from marble_cli.config.enums import Parallel, Quantization, Switch, Train
from marble_cli.config.schema import RunConfig
from marble_cli.plan.memory import describe_bytes, memory
from marble_cli.policy.base import ModelSize

CARDS = (24, 48, 80)  # GiB
MICRO_BATCHES = (64, 48, 32, 24, 16, 12, 9, 8, 6, 4, 3, 2, 1)
# Kinds of the frozen weights that the table compares; fp8 takes what int8 takes.
KINDS = (Quantization.none, Quantization.int8, Quantization.nf4)


def tabulate_cards(config: RunConfig, size: ModelSize, neighbours: int = 0) -> Table:
    """Return a row per kind of frozen weights: the least memory, and the largest micro-batches per card.

    The micro-batches are two: without and with gradient checkpointing; a dash where the run does not fit.
    `neighbours` are the bytes of others on each card (`plan.neighbours`).
    """
    table = Table("model.quantization", box=None, pad_edge=False)
    for heading in ("least memory", *(f"{card} GB" for card in CARDS)):
        table.add_column(heading, justify="right")
    rounds = config.model.train is Train.lora and config.trainer.parallel is Parallel.ddp
    for kind in KINDS if rounds else KINDS[:1]:
        least = _peak(config, size, kind, 1, Switch.true) + neighbours
        fits = (_largest(config, size, kind, card * 2**30 - neighbours) for card in CARDS)
        table.add_row(kind.value, describe_bytes(least), *fits)
    return table


def _largest(config: RunConfig, size: ModelSize, kind: Quantization, card: int) -> str:
    """Describe the largest micro-batches that fit on a card, without and with gradient checkpointing."""
    most = per_process(geometry(config).images, processes(config.launcher))
    found = []
    for checkpointing in (Switch.false, Switch.true):
        fits = (b for b in MICRO_BATCHES if b <= most and _peak(config, size, kind, b, checkpointing) <= card)
        found.append(str(next(fits, "-")))
    return " / ".join(found)


def _peak(config: RunConfig, size: ModelSize, kind: Quantization, batch: int, checkpointing: Switch) -> int:
    model = replace(config.model, quantization=kind, gradient_checkpointing=checkpointing)
    trainer = replace(config.trainer, micro_batch_size=batch)
    return memory(replace(config, model=model, trainer=trainer), size).peak
