"""Forecast the paper's step and its parts at true size on an H100; print the seconds as JSON."""

import json

from scripts.bench.roofline import forecast, note_kernel_sizes
from scripts.bench.sd35m import make_jobs, step_config
from scripts.bench.whole_step import PARTS, compose_step
from tests.standin.programs.full_size import IMAGES, make


def main() -> None:
    """Forecast every part, ours and the recipe's, and put the step together."""
    note_kernel_sizes()
    config = step_config(False, "model.compile=true")
    ours, recipe = make(config), make(step_config(False, "model.compile=false"))
    recipe.policy.network.float()
    recipe.policy.autocast = True
    seconds: dict[tuple[str, str], float] = {}
    for part in PARTS:
        for whose, job in make_jobs(recipe, ours, part).items():
            job()  # compiles
            seconds[part, whose] = forecast(job, ours.policy.device)
    steps = {
        " ".join(key).strip(): sum(parts) for key, parts in compose_step(config, IMAGES, seconds).items()
    }
    found = {"parts": {", ".join(key): value for key, value in seconds.items()}, "steps": steps}
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
