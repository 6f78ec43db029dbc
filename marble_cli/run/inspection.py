"""Keep the batch of a step whose gradient is not finite, for inspection."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from marble_cli.files import writing
from marble_cli.rollout.collect import Samples
from marble_cli.step.batches import TrainingSet
from marble_cli.step.reward_signal import Signal


def keep_batch(
    folder: Path, step: int, rank: int, samples: Samples, data: TrainingSet, signal: Signal
) -> Path:
    """Write this rank's part of a step to `<folder>/skipped/step-...-rank-....safetensors`; return the file.

    The file holds, of the m images that this rank trains on, `x0` [m, C, H, W], `images` uint8 [m, 3, h, w],
    `times` [m, T] and their `indices` [m] among the step's n images; `rewards`, `applicable` and `optimality`
    [K, n] of all images; and the prompts as JSON in its metadata.

    Raises:
        StorageError: the file does not fit on the disk.
    """
    tensors = {
        "x0": samples.x0,
        "images": samples.images,
        "times": data.times,
        "indices": data.indices,
        "rewards": signal.rewards,
        "applicable": signal.applicable,
        "optimality": signal.optimality,
    }
    file = folder / "skipped" / f"step-{step:08d}-rank-{rank}.safetensors"
    prompts = json.dumps([prompt.text for prompt in samples.prompts])
    content: dict[str, torch.Tensor] = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    size = sum(tensor.nbytes for tensor in content.values())
    with writing(file, "The run continues without it.", size):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(content, file, metadata={"prompts": prompts})
    return file
