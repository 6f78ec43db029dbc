"""Run by every rank of tests/distributed/test_left_out_images.py: edit where some prompts are flat.

Arguments: the configuration's file.
"""

import os
import sys
from pathlib import Path

from torch import Tensor

from marble_cli.config.compose import compose
from marble_cli.policy import source
from marble_cli.rewards.builtin import colorfulness
from marble_cli.run.train import train

FLAT = ("red", "blue", '"3"', '"14"', "1 boats")


def flat_on_some(images: Tensor, prompts: list[str]) -> Tensor:
    """Brightness, and zero for prompts with certain words."""
    flat = [any(word in prompt for word in FLAT) for prompt in prompts]
    return images.double().mean(dim=(1, 2, 3)) * images.new_tensor([not one for one in flat])


def main(config: Path) -> None:
    """Train by a resolved configuration."""
    colorfulness.colorfulness = flat_on_some  # type: ignore[assignment]
    source.FAMILIES["StableDiffusion3Pipeline"] = "tests.policy.editing:EditingSD3"
    assert train(compose([], str(config)), resume="auto") == 0


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # of the family
    main(Path(sys.argv[1]))
    print("done", os.environ["RANK"])
