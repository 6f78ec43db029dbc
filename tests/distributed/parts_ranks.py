"""Run by every rank of tests/distributed/test_parts.py: train with full weights, checkpoints in small files.

Arguments: the configuration's file; the step whose checkpoint a rank cannot write, or 0; that rank; the
signal that kills it instead, or 0.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from marble_cli.checkpoint import parts, tensor_files
from marble_cli.config.compose import compose
from marble_cli.run.train import train

config, rank = compose([], sys.argv[1]), int(os.environ["RANK"])
spoilt, culprit, number = map(int, sys.argv[2:])
parts.PART_BYTES = 20_000

write, written, held = tensor_files.write, [], [0]
full_tensor = DTensor.full_tensor


def watched_write(file: Path, tensors: Any, header: Any) -> None:
    if rank == culprit and f"{spoilt:08d}" in str(file):
        os.kill(os.getpid(), number)
        raise OSError(28, "No space left on device")
    written.append(str(file))
    assert all(type(tensor) is torch.Tensor and tensor.device.type == "cpu" for tensor in tensors.values())
    held[0] = max(held[0], sum(tensor.nbytes for tensor in tensors.values()))
    write(file, tensors, header)


tensor_files.write = watched_write  # type: ignore[assignment]
try:
    code = train(config, resume="auto")
except Exception as error:
    code = f"{type(error).__name__}: {error}"  # type: ignore[assignment]
print("files", len(written), "most", held[0])
print("ended", code)
