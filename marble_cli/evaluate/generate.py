"""`marble generate`: images of given prompts from a checkpoint, a run or the base model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from marble_cli.evaluate.target import resolve_target, run_config
from marble_cli.files import check_writable, writing
from marble_cli.policy.base import Adapter
from marble_cli.policy.load import load_policy
from marble_cli.rollout.collect import evaluation_rollout
from marble_cli.rollout.ode import Velocity, is_guided, sample
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
    rollout = evaluation_rollout(config, policy)
    scale = rollout.guidance_scale

    def towards(text: str, *, negative: bool = False) -> Velocity:
        embeddings = policy.encode([text], negative=negative)
        return lambda xt, t: policy.velocity(xt, t, embeddings, adapter)

    policy.prepare(prompts, [""] if is_guided(scale) else [])
    for index, prompt in enumerate(prompts):
        velocity = towards(prompt)
        if is_guided(scale):
            velocity = rollout.guided(velocity, towards("", negative=True))
        begin = noise(seed, "generate", 0, [index], policy.latent_shape).to(policy.device)
        x0 = sample(velocity, begin, rollout.scheduler())
        file = output / f"{index:03d}.png"
        with writing(file, "Choose another --output."):
            output.mkdir(parents=True, exist_ok=True)
            Image.fromarray(policy.decode(x0)[0].permute(1, 2, 0).numpy()).save(file)
        files.append(file)
    return files
