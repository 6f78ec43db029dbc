"""Run by every rank of tests/distributed/test_guarded_aspects.py: train on aspects of one plugin.

Arguments: the configuration's file.
"""

import os
import sys
from pathlib import Path

from torch import Tensor

from marble_cli.config.compose import compose
from marble_cli.rewards.builtin import colorfulness
from marble_cli.run.train import train


class Views:
    """How red, blue and contrasting a picture is."""

    aspects = ("red", "blue", "contrast")

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Score images uint8 [B, 3, H, W]."""
        red, _, blue = images.double().mean((2, 3)).unbind(1)
        return {"red": red, "blue": blue, "contrast": images.double().std((1, 2, 3))}


def main(config: Path) -> None:
    """Train by a resolved configuration."""
    colorfulness.colorfulness = Views  # type: ignore[assignment]
    assert train(compose([], str(config)), resume="auto") == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print("done", os.environ["RANK"])
