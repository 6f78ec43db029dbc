"""`marble generate`: images of given prompts from any target."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from marble_cli.config.enums import Switch
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.data.prompts import Prompt
from marble_cli.evaluate.target import Models, resolve_target
from marble_cli.files import check_writable, writing
from marble_cli.rollout.collect import evaluation_rollout
from marble_cli.seeds import noise


@torch.no_grad()
def generate(
    target: str, prompts: list[str], output: Path, seed: int, overrides: Sequence[str] = ()
) -> list[Path]:
    """Draw one image per prompt, write `000.png`, `001.png`, ... into `output`, and return the files.

    Raises:
        RequestError: the target, an override or `output` is wrong.
    """
    models = Models(overrides, [resolve_target(target)])
    (chosen,) = models.targets
    if chosen.model is not None and chosen.model.compile is Switch.auto:  # a few pictures take less time
        chosen = replace(chosen, model=replace(chosen.model, compile=Switch.false))
    check_writable(output, "--output ")
    policy = models.hold(chosen)
    rollout = evaluation_rollout(policy, models.config.rollout, resolve_evaluation(models.config))
    rollout.prepare([Prompt(text) for text in prompts])
    files = []
    for index, text in enumerate(prompts):
        start = noise(seed, "generate", 0, [index], rollout.policy.latent_shape)
        x0 = rollout.draw(rollout.encode([Prompt(text)]), slice(1), start, chosen.adapter)
        file = output / f"{index:03d}.png"
        with writing(file, "Choose another --output."):
            output.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rollout.policy.decode(x0)[0].permute(1, 2, 0).numpy()).save(file)
        files.append(file)
    return files
