"""Count what the parts of a step ask for at Stable Diffusion 3.5 Medium's true size; print them as JSON."""

import json
from dataclasses import asdict, replace

import torch
from diffusers import SD3Transformer2DModel

from marble_cli.config.enums import Offload
from marble_cli.config.schema import RunConfig
from marble_cli.policy.base import PromptEmbeddings
from marble_cli.policy.source import config_folder, read_json
from scripts.bench.scenes import Scene, make_scene, random_policy
from scripts.bench.sd35m import CLIP_TOKENS, MODEL, REWARDS, rollout_job, step_config
from scripts.bench.steps import step_job
from tests.standin.counters import count

IMAGES = 9


def make(config: RunConfig) -> Scene:
    """Make a micro-batch on the device; a transformer of this size would not be drawn on the CPU in time."""
    folder = config_folder(MODEL)
    assert folder is not None
    shape = read_json(folder / "transformer" / "config.json")
    with torch.device("cuda"):
        transformer = SD3Transformer2DModel.from_config(shape | {"sample_size": config.model.resolution // 8})
    transformer.to(torch.bfloat16)
    if config.model.offload is Offload.blocks:
        transformer.to("cpu")
    policy = random_policy(transformer, config.model)
    text_tokens = CLIP_TOKENS + config.model.max_sequence_length
    sizes = {
        "tokens": (text_tokens, shape["joint_attention_dim"]),
        "pooled": (shape["pooled_projection_dim"],),
    }
    embeddings = {
        name: torch.zeros(IMAGES, *size, device=policy.device, dtype=policy.dtype)
        for name, size in sizes.items()
    }
    return make_scene("full size", config, policy, PromptEmbeddings(embeddings))


def in_parts(scene: Scene, size: int) -> Scene:
    """Return the scene with micro-batches of `size` images."""
    trainer = replace(scene.config.trainer, micro_batch_size=size)
    return replace(scene, config=replace(scene.config, trainer=trainer))


def main() -> None:
    """Count a rollout, and both kinds of steps in one micro-batch and in three."""
    scene = make(step_config(False, "model.compile=false"))
    found = {"rollout": asdict(count(rollout_job(scene)))}
    for name, refresh in (("plain", False), ("refresh", True)):
        for size in (IMAGES, IMAGES // 3):
            job = step_job(in_parts(scene, size), REWARDS, refresh=refresh, outside=True)
            found[f"{name} in {IMAGES // size}"] = asdict(count(job))
    found["weights"] = {"bytes": torch.cuda.memory_allocated()}
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
