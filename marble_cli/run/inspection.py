"""Keep the batch of a step whose gradient is not finite, for inspection."""

import json
from pathlib import Path

import torch

from marble_cli.checkpoint import tensor_files
from marble_cli.files import writing
from marble_cli.rollout.samples import Samples
from marble_cli.step.batches import TrainingSet, rows_by_shape
from marble_cli.step.reward_signal import Signal


def keep_batch(
    folder: Path, step: int, rank: int, samples: Samples, data: TrainingSet, signal: Signal
) -> Path:
    """Write this rank's part of a step to `<folder>/skipped/step-...-rank-....safetensors`; return the file.

    The file holds, of the m images that this rank trains on, `x0` [m, C, H, W], `images` uint8 [m, 3, h, w],
    or frames [m, F, 3, h, w], `times` [m, T] and their `indices` [m] among the step's n images, -1 for
    padding; `rewards`, `applicable` and `optimality` [K, n] of all images; and the prompts as JSON in its
    metadata. Of several shapes, it has `x0/0`, `images/0` and `rows/0`, which of the m they are, then `x0/1`
    and so on.

    Raises:
        StorageError: the file does not fit on the disk.
    """
    tensors = {
        "times": data.times,
        "indices": data.indices if data.real is None else data.indices.where(data.real, -1),
        "rewards": signal.rewards,
        "applicable": signal.applicable,
        "optimality": signal.optimality,
    }
    every = rows_by_shape(samples.x0, samples.embeddings)
    for number, rows in enumerate(every):
        end = f"/{number}" if len(every) > 1 else ""
        tensors[f"x0{end}"] = torch.stack([samples.x0[row] for row in rows.tolist()])
        tensors[f"images{end}"] = torch.stack([samples.images[row] for row in rows.tolist()])
        if end:
            tensors[f"rows{end}"] = rows
    file = folder / "skipped" / f"step-{step:08d}-rank-{rank}.safetensors"
    prompts = json.dumps([prompt.text for prompt in samples.prompts])
    size = sum(tensor.nbytes for tensor in tensors.values())
    with writing(file, "The run continues without it.", size):
        tensor_files.write(file, tensors, {"prompts": prompts})
    return file
