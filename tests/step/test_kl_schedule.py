"""The KL coefficient of a step by its schedule, in every kind of step."""

from typing import Any

import pytest

from tests.step.directions import STEP, DescentMaker, direct, distance, only_lora


@pytest.mark.parametrize(
    "overrides",
    [
        ("balance.mode=full", "balance.refresh_fraction=0.5"),
        ("balance.refresh_every=1000", "balance.warmup=0", "balance.shared_term=inside"),
    ],
    ids=["refresh", "amortised"],
)
@only_lora
def test_a_decayed_coefficient_weighs_the_kl_term_alone(
    descent: DescentMaker, case: Any, reference: Any, overrides: tuple[str, ...]
) -> None:
    """Step 7 of 24 is at a quarter of the decay."""
    assert STEP == 7
    whole = direct(descent(*overrides), case)
    decayed = direct(descent(*overrides, "trainer.steps=24", "algorithm.kl_schedule=linear"), case)
    assert distance(whole.gradient - decayed.gradient, 0.25 * reference.kl) < 1e-9
    assert decayed.metrics["loss/kl"] == pytest.approx(0.75 * whole.metrics["loss/kl"], rel=1e-12)
