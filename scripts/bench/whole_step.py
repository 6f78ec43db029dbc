"""Put the whole step of the paper together from its parts: measured, and as a roofline forecasts them."""

from collections.abc import Mapping

from marble_cli.config.schema import RunConfig
from scripts.bench.report import Cell, Sheet

ROLLOUT, TRAINING, WITHOUT_KL, REFRESH = "rollout", "training", "training without the frozen model", "refresh"
PARTS = (ROLLOUT, TRAINING, WITHOUT_KL, REFRESH)
RECIPE, EAGER, COMPILED = "recipe", "ours", "ours, compiled"
KL_EVERY, FRACTION, GPUS = 4, 0.25, 8
WITH_FRACTION, WITH_KL_EVERY = f"+ fraction {FRACTION}", f"+ kl_every {KL_EVERY}"
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


Parts = Mapping[tuple[str, str], float]  # seconds of one call, by part and by whose it is


def whole_step(config: RunConfig, images: int, measured: Parts, forecast: Parts) -> Sheet:
    """Return the table of the paper's step: speed, seconds, the shares of its parts, and a roofline's speed.

    Args:
        config: the settings of the step.
        images: per micro-batch.
        measured: seconds of the parts.
        forecast: their seconds by `roofline.forecast`.
    """
    total = config.rollout.groups * config.rollout.group_size
    expected = {key: sum(parts) for key, parts in compose_step(config, images, forecast).items()}
    steps = compose_step(config, images, measured)
    recipe, rows = sum(steps[RECIPE, ""]), list[tuple[Cell, ...]]()
    for key, parts in steps.items():
        whole = sum(parts)
        shares = [part / whole for part in parts]
        roofline = (total / expected[key], expected[RECIPE, ""] / expected[key])
        rows.append((key[1] or key[0], total / whole, recipe / whole, whole / GPUS, *shares, *roofline))
    note = (
        f"{total} images, {training_passes(config, images):.0f} training passes; decoding and rewards are "
        "left out. Images/s are of one GPU. A refresh's share is what it takes beyond training passes, "
        f"averaged over {config.balance.refresh_every} steps. Fraction is balance.refresh_fraction, kl_every "
        "is algorithm.kl_every. The roofline is images/s of one H100 SXM."
    )
    return Sheet("The whole step", note, COLUMNS, rows)


def compose_step(
    config: RunConfig, images: int, seconds: Parts
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return the seconds of rollout, training passes and what refreshes add, on one GPU; averages over steps.

    The recipe refreshes on one micro-batch of the step. Each "+" changes one thing more than the row above.
    """
    batches = config.rollout.groups * config.rollout.group_size / images
    passes = training_passes(config, images)

    def spent(whose: str, refreshed: float, kl_every: int = 1) -> tuple[float, float, float]:
        plain = seconds[TRAINING, whose]
        saved = (1 - 1 / kl_every) * (plain - seconds[WITHOUT_KL, whose]) if kl_every > 1 else 0.0
        extra = refreshed * (seconds[REFRESH, whose] - plain) / config.balance.refresh_every
        return batches * seconds[ROLLOUT, whose], passes * (plain - saved), extra

    steps = {(RECIPE, ""): spent(RECIPE, 1)}
    for whose in (EAGER, COMPILED):
        if (ROLLOUT, whose) in seconds:
            steps[whose, ""] = spent(whose, passes)
            steps[whose, WITH_FRACTION] = spent(whose, FRACTION * passes)
            steps[whose, WITH_KL_EVERY] = spent(whose, FRACTION * passes, KL_EVERY)
    return steps


def training_passes(config: RunConfig, images: int) -> float:
    """Return how many passes over micro-batches of `images` a step takes."""
    batches = config.rollout.groups * config.rollout.group_size / images
    return batches * max(1, int(config.rollout.steps * config.trainer.timestep_fraction))
