"""Weights of a run's checkpoints."""

from pathlib import Path

from torch import Tensor

from marble_cli.checkpoint import store


def weights(folder: Path, part: str, step: int = 1) -> dict[str, Tensor]:
    """Return the weights as trained: the files of a LoRA contain the factor alpha / rank."""
    state, lora, ema = store.load(folder / "checkpoints" / f"step-{step:08d}")
    return {"lora": lora, "ema": ema, **state.tensors}[part]
