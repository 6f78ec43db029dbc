"""The distance of the trained velocities from the behaviour policy's, in the passes of a step."""

from typing import Any

import pytest
import torch

from marble_cli.step.batches import chunks, noised_batches
from tests.step.directions import STEP, DescentMaker, direct, only_lora


@pytest.mark.parametrize(
    "overrides",
    [
        ("balance.mode=full", "balance.refresh_fraction=0.5"),
        ("balance.mode=amortized", "balance.refresh_when=stale", "balance.warmup=9"),
        ("balance=output_space", "balance.refresh_every=1000", "balance.warmup=0"),
    ],
    ids=["refresh", "halves", "output_space"],
)
@only_lora
def test_deviation_is_that_of_all_samples(
    descent: DescentMaker, case: Any, double_policy: Any, overrides: tuple[str, ...]
) -> None:
    gaps, sizes = [], []
    with torch.no_grad():
        for batch in noised_batches(case.data, chunks(case.data, 12), 0, STEP):
            at = (batch.xt, batch.t, batch.embeddings)
            old, new = (double_policy.velocity(*at, name) for name in ("behaviour", "trained"))
            gaps.append((new - old).abs())
            sizes.append(old.abs())
    expected = (torch.cat(gaps).mean() / torch.cat(sizes).mean()).item()
    found = direct(descent(*overrides), case).metrics["policy/deviation"]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found > 0.01
