"""Make the embedded `tiny` model from scratch: prompts, tokenizer, CLIP, VAE and an SD3 flow transformer.

    python -m scripts.tiny.pretrain [--output DIR] [--seed 0] [--scale 1.0]

Writes a folder of a `StableDiffusion3Pipeline` (`pipeline/`), the `CLIPModel` of the `clipscore` reward
(`clip/`) and the prompts (`prompts/`). `Plan` holds every number that matters. A share of the training images
has a wrong caption, as on the web: the base model can draw everything, but does so only some of the time.
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPImageProcessorPil

from scripts.tiny import world
from scripts.tiny.clip import train_clip
from scripts.tiny.flow import train_flow
from scripts.tiny.painter import RESOLUTION, painted_pairs
from scripts.tiny.text import make_tokenizer, token_ids
from scripts.tiny.training import read_options
from scripts.tiny.vae import encode_all, train_vae

ASSETS = Path(__file__).resolve().parents[2] / "marble_cli" / "assets" / "tiny"


@dataclass(frozen=True)
class Plan:
    """Sizes of the training; `noise` is the share of wrong captions per source."""

    images: int = 36_000
    clip_steps: int = 450
    clip_batch: int = 192
    vae_crop_steps: int = 1_200  # on crops
    vae_steps: int = 160  # on whole images
    vae_batch: int = 48
    flow_steps: int = 2_500
    flow_batch: int = 128
    noise: tuple[tuple[str, float], ...] = (("general", 0.3), ("text", 0.5), ("compositional", 0.5))
    prompts_train: int = 4_000
    prompts_test: int = 400

    def scaled(self, share: float) -> "Plan":
        """Return the plan with a share of the images and steps."""
        return replace(
            self,
            images=int(self.images * share),
            clip_steps=int(self.clip_steps * share),
            vae_crop_steps=int(self.vae_crop_steps * share),
            vae_steps=int(self.vae_steps * share),
            flow_steps=int(self.flow_steps * share),
        )


def save_prompts(plan: Plan, seed: int, output: Path) -> None:
    """Write a training and a test file of prompts per source."""
    for source in world.SOURCES:
        folder = output / "prompts" / source
        folder.mkdir(parents=True, exist_ok=True)
        splits = world.prompt_rows(seed, source, plan.prompts_train, plan.prompts_test)
        for split, rows in zip(("train", "test"), splits, strict=True):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def paint(seed: int, count: int, noise: dict[str, float]) -> tuple[Tensor, list[str]]:
    """Paint `count` images uint8 [count, 3, 64, 64] and return them with their captions."""
    arrays, captions = painted_pairs(seed, count, noise)
    return torch.from_numpy(arrays).permute(0, 3, 1, 2), captions


def pretrain(output: Path, seed: int, plan: Plan) -> None:
    """Train all parts of the model and write them to `output`."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    began = time.time()
    save_prompts(plan, seed, output)
    images, captions = paint(seed, plan.images, dict(plan.noise))
    clean_images, clean_captions = paint(seed + 1, plan.images // 2, dict.fromkeys(world.SOURCES, 0.0))
    tokenizer = make_tokenizer(captions)
    print(f"{plan.images} images drawn in {time.time() - began:.0f} s, {len(tokenizer)} tokens", flush=True)

    vae = train_vae(images, plan.vae_crop_steps, plan.vae_steps, plan.vae_batch, draw)
    latents = encode_all(vae, images)
    vae.to("cpu", memory_format=torch.contiguous_format)
    vae.save_pretrained(output / "pipeline" / "vae")

    clean_ids = token_ids(tokenizer, clean_captions)
    clip: Any = train_clip(tokenizer, clean_images, clean_ids, plan.clip_steps, plan.clip_batch, draw)
    save_clip(clip, tokenizer, output / "clip")

    ids = token_ids(tokenizer, captions)
    transformer, encoders = train_flow(tokenizer, latents, ids, plan.flow_steps, plan.flow_batch, draw)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.to(dtype=torch.float16)
    for encoder in encoders:
        # Stored in float32, with float16 values: transformers loads the stored dtype, diffusers loads
        # float32.
        encoder.float()
    pipeline.save_pretrained(output / "pipeline")
    size = sum(file.stat().st_size for file in output.rglob("*.safetensors"))
    print(f"wrote {output}: {size / 1e6:.1f} MB of safetensors in {(time.time() - began) / 60:.1f} min")


def save_clip(clip: Any, tokenizer: Any, folder: Path) -> None:
    """Write a CLIP model in float16, with its tokenizer and image processor."""
    clip.to("cpu", torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": RESOLUTION},
        crop_size=RESOLUTION,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(folder)


def main(arguments: list[str]) -> None:
    """Make the model that the command line asks for."""
    options = read_options("scripts.tiny.pretrain", __doc__, ASSETS, arguments)
    pretrain(options.output, options.seed, Plan().scaled(options.scale))


if __name__ == "__main__":
    main(sys.argv[1:])
