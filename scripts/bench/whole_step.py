"""Put the whole step of the paper together from its measured parts, beside a roofline's forecast."""

from collections.abc import Mapping

from marble_cli.config.schema import RunConfig
from scripts.bench.report import Cell, Sheet

ROLLOUT, TRAINING, WITHOUT_KL, REFRESH = "rollout", "training", "training without the frozen model", "refresh"
PARTS = (ROLLOUT, TRAINING, WITHOUT_KL, REFRESH)
RECIPE, EAGER, COMPILED = "recipe", "ours", "ours, compiled"
KL_EVERY, FRACTION, GPUS = 4, 0.25, 8
WITH_FRACTION, WITH_KL_EVERY = f"+ fraction {FRACTION}", f"+ kl_every {KL_EVERY}"
# Images per second on one H100 SXM, by a sum over all kernels of the longest of: FLOP at 600 TFLOP/s in large
# bfloat16 products, 380 and 280 in attention's two passes and 45 in float32; bytes at 2.7 TB/s; 2.2 us. It is
# of 333 tokens of text, a LoRA of 243 layers and refreshes that are not compiled. Ours eager without a
# fraction was computed under autocast only, which is gone.
ROOFLINE = {
    (RECIPE, ""): 0.614,
    (EAGER, WITH_FRACTION): 0.80,
    (COMPILED, ""): 1.04,
    (COMPILED, WITH_FRACTION): 1.12,
    (COMPILED, WITH_KL_EVERY): 1.28,
}
COLUMNS = {
    "whose": "",
    "images/s": ".3f",
    "x recipe": ".2f",
    "s/step on 8": ".0f",
    "rollout": ".0%",
    "training": ".0%",
    "refresh": ".0%",
    "roofline": ".3f",
    "x recipe there": ".2f",
}


def whole_step(config: RunConfig, images: int, seconds: Mapping[tuple[str, str], float]) -> Sheet:
    """Compute speed and seconds of the paper's step, and the shares of its parts; one step in ten refreshes.

    The recipe refreshes on one micro-batch of the step. Each "+" changes one thing more than the row above.

    Args:
        config: the settings of the step.
        images: per micro-batch.
        seconds: of one call, by part and by whose it is.
    """
    total = config.rollout.groups * config.rollout.group_size
    batches = total / images
    passes = batches * max(1, int(config.rollout.steps * config.trainer.timestep_fraction))
    every = config.balance.refresh_every

    def spent(whose: str, refreshed: float, kl_every: int = 1) -> tuple[float, float, float]:
        """Return seconds of rollout, training passes, and what refreshes add, on one GPU."""
        plain = seconds[TRAINING, whose]
        saved = (1 - 1 / kl_every) * (plain - seconds[WITHOUT_KL, whose]) if kl_every > 1 else 0.0
        extra = seconds[REFRESH, whose] - plain
        return batches * seconds[ROLLOUT, whose], passes * (plain - saved), refreshed * extra / every

    steps = {(RECIPE, ""): spent(RECIPE, 1)}
    for whose in (EAGER, COMPILED):
        if (ROLLOUT, whose) in seconds:
            steps[whose, ""] = spent(whose, passes)
            steps[whose, WITH_FRACTION] = spent(whose, FRACTION * passes)
            steps[whose, WITH_KL_EVERY] = spent(whose, FRACTION * passes, KL_EVERY)
    recipe, rows = sum(steps[RECIPE, ""]), list[tuple[Cell, ...]]()
    for key, parts in steps.items():
        whole, forecast = sum(parts), ROOFLINE.get(key)
        there = forecast / ROOFLINE[RECIPE, ""] if forecast else None
        shares = [part / whole for part in parts]
        rows.append((key[1] or key[0], total / whole, recipe / whole, whole / GPUS, *shares, forecast, there))
    note = (
        f"{total} images, {passes:.0f} training passes; decoding and rewards are left out. Images/s are of "
        f"one GPU; a refresh's share is what it takes beyond training passes, averaged over {every} steps. "
        "Fraction and kl_every are balance.refresh_fraction and algorithm.kl_every. The roofline is images/s "
        "of an H100 SXM with 333 tokens of text, a LoRA of 243 layers and eager refreshes."
    )
    return Sheet("The whole step", note, COLUMNS, rows)
