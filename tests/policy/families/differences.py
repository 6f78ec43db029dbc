"""Keep the largest difference that each proof of the battery finds, for docs/models.md.

A pytest option, `--differences FILE`, writes them as JSON: {case: {proof: difference}}; `python -m
scripts.models` makes the page's table of them.
"""

import json
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

LARGEST: dict[str, dict[str, float]] = defaultdict(dict)


def record(case: str, proof: str, difference: Tensor | float) -> None:
    """Keep the largest absolute value of `difference`, and what is no number above all."""
    found = torch.as_tensor(difference).double().abs().max().nan_to_num(nan=torch.inf).item()
    LARGEST[case][proof] = max(found, LARGEST[case].get(proof, 0.0))


def beyond_rounding(got: Tensor, plain: Tensor) -> Tensor:
    """Return how much further than 0.5 levels uint8 is from the levels of 0 to 1, at most."""
    return ((got.float() - plain * 255).abs().max() - 0.5).clamp(min=0)


def write(file: Path) -> None:
    """Write what was kept."""
    file.write_text(json.dumps(LARGEST, indent=1), encoding="utf-8")
