"""What a step saw, kept for a look at it where its gradient was not finite."""

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
    """Write this rank's part of a step to `<folder>/skipped/step-...-rank-....safetensors`; returns the file.

    It holds `x0` [m, C, H, W], `images` uint8 [m, 3, h, w], `times` [m, T] and `indices` [m] of the images among the step's n;
    `rewards`, `applicable` and `optimality` [K, n]; and the images' prompts as JSON in its metadata.

    Raises:
        StorageError: there is no room for it.
    """
    tensors = {
        "x0": samples.x0, "images": samples.images, "times": data.times, "indices": data.indices,
        "rewards": signal.rewards, "applicable": signal.applicable, "optimality": signal.optimality,
    }  # fmt: skip
    file = folder / "skipped" / f"step-{step:08d}-rank-{rank}.safetensors"
    prompts = json.dumps([prompt.text for prompt in samples.prompts])
    whole: dict[str, torch.Tensor] = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with writing(file, "The run goes on without it.", sum(tensor.nbytes for tensor in whole.values())):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(whole, file, metadata={"prompts": prompts})
    return file
