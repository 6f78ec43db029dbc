"""`marble generate`: images of given prompts from a checkpoint, a run or the base model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from marble_cli.data.prompts import Prompt
from marble_cli.evaluate.target import resolve_target, run_config
from marble_cli.files import check_writable, writing
from marble_cli.policy.base import Adapter
from marble_cli.policy.load import load_policy
from marble_cli.rollout.collect import Rollout, evaluation_settings
from marble_cli.seeds import noise


@torch.no_grad()
def generate(
    target: str, prompts: list[str], output: Path, seed: int, overrides: Sequence[str] = ()
) -> list[Path]:
    """Draw one image per prompt, write `000.png`, `001.png`, ... into `output`, and return the files.

    Raises:
        RequestError: the target, an override or `output` is wrong.
    """
    chosen = resolve_target(target)
    config = run_config(overrides, chosen)
    check_writable(output, "--output ")
    policy = load_policy(config.model, config.trainer.seed)
    chosen.put_into(policy)
    adapter: Adapter = None if chosen.weights is None else "trained"
    files = []
    rollout = Rollout(policy, evaluation_settings(config.rollout, config.evaluation), config.trainer.seed)
    rollout.prepare([Prompt(text) for text in prompts])
    for index, text in enumerate(prompts):
        start = noise(seed, "generate", 0, [index], policy.latent_shape)
        x0 = rollout.draw(rollout.encode([Prompt(text)]), slice(1), start, adapter)
        file = output / f"{index:03d}.png"
        with writing(file, "Choose another --output."):
            output.mkdir(parents=True, exist_ok=True)
            Image.fromarray(policy.decode(x0)[0].permute(1, 2, 0).numpy()).save(file)
        files.append(file)
    return files
