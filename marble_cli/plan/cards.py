"""Tabulate what fits on cards of common sizes: the largest micro-batch for each kind of frozen weights."""

from dataclasses import replace

from rich.table import Table

from marble_cli.config.counts import geometry, per_process, processes
from marble_cli.config.enums import Offload, Parallel, Quantization, Switch, Train
from marble_cli.config.schema import RunConfig
from marble_cli.plan.memory import describe_bytes, memory
from marble_cli.policy.model_size import ModelSize

CARDS = (24, 48, 80)  # GiB
MICRO_BATCHES = (64, 48, 32, 24, 16, 12, 9, 8, 6, 4, 3, 2, 1)
# Kinds of the frozen weights that the table compares, and where they are; fp8 takes what int8 takes.
KINDS = {
    "none": (Quantization.none, Offload.none),
    "int8": (Quantization.int8, Offload.none),
    "nf4": (Quantization.nf4, Offload.none),
    "none, offload=blocks": (Quantization.none, Offload.blocks),
}


def tabulate_cards(config: RunConfig, size: ModelSize, neighbours: int = 0) -> Table:
    """Return a row per kind of frozen weights: the least memory, and the largest micro-batches per card.

    The micro-batches are two: without and with gradient checkpointing; a dash where the run does not fit.
    `neighbours` are the bytes of others on each card (`plan.neighbours`).
    """
    table = Table("model.quantization", box=None, pad_edge=False)
    for heading in ("least memory", *(f"{card} GB" for card in CARDS)):
        table.add_column(heading, justify="right")
    chooses = config.model.train is Train.lora and config.trainer.parallel is Parallel.ddp
    for name, (kind, offload) in KINDS.items() if chooses else list(KINDS.items())[:1]:
        model = replace(config.model, quantization=kind, offload=offload)
        row = replace(config, model=model)
        least = _peak(row, size, 1, Switch.true) + neighbours
        fits = (_largest(row, size, card * 2**30 - neighbours) for card in CARDS)
        table.add_row(name, describe_bytes(least), *fits)
    return table


def _largest(config: RunConfig, size: ModelSize, card: int) -> str:
    """Describe the largest micro-batches that fit on a card, without and with gradient checkpointing."""
    most = per_process(geometry(config).images, processes(config.launcher))
    found = []
    for checkpointing in (Switch.false, Switch.true):
        possible = checkpointing is Switch.true or config.model.offload is Offload.none
        batches = [b for b in MICRO_BATCHES if b <= most] if possible else []
        fits = (b for b in batches if _peak(config, size, b, checkpointing) <= card)
        found.append(str(next(fits, "-")))
    return " / ".join(found)


def _peak(config: RunConfig, size: ModelSize, batch: int, checkpointing: Switch) -> int:
    model = replace(config.model, gradient_checkpointing=checkpointing)
    trainer = replace(config.trainer, micro_batch_size=batch)
    return memory(replace(config, model=model, trainer=trainer), size).peak
