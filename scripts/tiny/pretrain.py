"""Make the embedded `tiny` model from nothing: prompts, tokenizer, CLIP, VAE and an SD3 flow transformer.

    python scripts/pretrain_tiny.py [--output DIR] [--seed 0] [--scale 1.0]

Writes a `StableDiffusion3Pipeline` folder (`pipeline/`), the contrastively trained `CLIPModel` of the `clipscore`
reward (`clip/`) and the prompt splits (`prompts/`). Every number that matters is in `Plan`. A share of the training
images is miscaptioned, as on the web: the base model can draw everything and does so some of the time.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny_world as world
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer, models, trainers
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

TOKENS = 16  # prompt length; the longest prompt of the world has 15 tokens
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ASSETS = Path(__file__).resolve().parent.parent / "marble_cli" / "assets" / "tiny"


@dataclass(frozen=True)
class Plan:
    """Sizes of the run; `noise` is the share of miscaptioned images a source."""

    images: int = 36_000
    clip_steps: int = 450
    clip_batch: int = 192
    vae_crop_steps: int = 1_200  # on 32 px crops, a quarter of the cost
    vae_steps: int = 160  # on whole images, for the statistics of its group norms
    vae_batch: int = 48
    flow_steps: int = 2_500
    flow_batch: int = 128
    noise: tuple[tuple[str, float], ...] = (("general", 0.3), ("text", 0.5), ("compositional", 0.5))
    prompts_train: int = 4_000
    prompts_test: int = 400

    def scaled(self, share: float) -> "Plan":
        """The same with a share of the images and steps."""
        return replace(
            self, images=int(self.images * share), clip_steps=int(self.clip_steps * share),
            vae_crop_steps=int(self.vae_crop_steps * share), vae_steps=int(self.vae_steps * share),
            flow_steps=int(self.flow_steps * share),
        )  # fmt: skip


class Track:
    """A progress bar over the steps of one stage, with its loss."""

    def __init__(self, name: str, steps: int):
        self.bar = Progress(
            TextColumn("{task.description:<6}"), BarColumn(30), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"),
        )  # fmt: skip
        self.task = self.bar.add_task(name, total=steps, loss="")
        self.name, self.steps = name, steps

    def __iter__(self) -> Iterator[int]:
        began = time.time()
        with self.bar:
            for step in range(self.steps):
                yield step
                self.bar.advance(self.task)
        print(f"{self.name}: {self.steps} steps in {time.time() - began:.0f} s", flush=True)

    def loss(self, step: int, value: Tensor) -> None:
        if step % 100 == 99 or step == self.steps - 1:
            self.bar.update(self.task, loss=f"loss {value.item():.4f}")
            self.bar.console.print(f"{self.name} {step + 1}: {value.item():.4f}")


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over 5 %, then a cosine to 2 % of the peak."""
    warm = max(1, steps // 20)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warm, 0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, s / steps)))),
    )


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose byte-pair merges were learned on the world's captions."""
    alphabet: Any = CLIPTokenizer(vocab={"<|endoftext|>": 0}, merges=[])._tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = alphabet.normalizer, alphabet.pre_tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    trainer = trainers.BpeTrainer(
        vocab_size=1_400,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator([c.replace('"', ' " ') for c in captions], trainer)
    model = json.loads(learner.to_str())["model"]
    vocab = dict(model["vocab"])
    for character in ByteLevel.alphabet():
        vocab.setdefault(character + "</w>", len(vocab))
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(
        vocab=vocab, merges=merges, model_max_length=TOKENS,
        bos_token="<|startoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>",
    )  # fmt: skip


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=projection, hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def normalised(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def train_clip(
    plan: Plan, tokenizer: CLIPTokenizer, images: Tensor, ids: Tensor, draw: torch.Generator
) -> CLIPModel:
    """A small CLIP trained contrastively on rightly captioned images."""
    text = text_config(tokenizer, 64, 2, 64).to_dict()
    vision = {
        "hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": world.RESOLUTION, "patch_size": 8, "projection_dim": 64, "hidden_act": "gelu",
    }  # fmt: skip
    model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=0.05)
    rate = schedule(optimizer, plan.clip_steps)
    track = Track("clip", plan.clip_steps)
    for step in track:
        index = torch.randint(len(images), (plan.clip_batch,), generator=draw)
        output = model(
            input_ids=ids[index].to(DEVICE),
            pixel_values=normalised(images[index].to(DEVICE)),
            return_loss=True,
        )
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        track.loss(step, output.loss.detach())
    trained: CLIPModel = model.eval()
    return trained


def train_vae(plan: Plan, images: Tensor, draw: torch.Generator) -> AutoencoderKL:
    """An 8x autoencoder with 8 latent channels; `scaling_factor` and `shift_factor` make its latents unit normal."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64), layers_per_block=1, latent_channels=8, norm_num_groups=8,
        sample_size=world.RESOLUTION, use_quant_conv=False, use_post_quant_conv=False,
    ).to(DEVICE, memory_format=torch.channels_last)  # fmt: skip
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=1e-4)
    steps = plan.vae_crop_steps + plan.vae_steps
    rate = schedule(optimizer, steps)
    track = Track("vae", steps)
    for step in track:
        index = torch.randint(len(images), (plan.vae_batch,), generator=draw)
        crop = images[index]
        if step < plan.vae_crop_steps:
            top, left = (8 * int(torch.randint(5, (), generator=draw)) for _ in range(2))
            crop = crop[:, :, top : top + 32, left : left + 32]
        target = normalised(crop.to(DEVICE)).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=draw).to(DEVICE)
        sample = posterior.mean + noise * posterior.std
        decoded = vae.decode(sample).sample
        error = decoded - target
        loss = error.abs().mean() + error.square().mean() + 2e-4 * posterior.kl().mean() / 512
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        rate.step()
        track.loss(step, loss.detach())
    return vae.eval()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latents of every image [N, 8, 8, 8], normalised by factors written into the VAE's config."""
    latents = torch.cat(
        [
            vae.encode(
                normalised(chunk.to(DEVICE)).contiguous(memory_format=torch.channels_last)
            ).latent_dist.mean.cpu()
            for chunk in images.split(256)
        ]
    )
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    vae.register_to_config(shift_factor=shift, scaling_factor=scale)
    return (latents - shift) * scale


def make_flow(tokenizer: CLIPTokenizer) -> tuple[SD3Transformer2DModel, torch.nn.ModuleList]:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=8, out_channels=8, num_layers=6, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=128, caption_projection_dim=128, pooled_projection_dim=128,
        pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip
    encoders = torch.nn.ModuleList(
        [CLIPTextModelWithProjection(text_config(tokenizer, 64, 3, 64)) for _ in range(2)]
    )
    return transformer, encoders


def encode_prompt(encoders: torch.nn.ModuleList, ids: Tensor, empty: int) -> tuple[Tensor, Tensor]:
    """Embeddings as `StableDiffusion3Pipeline.encode_prompt` makes them, with `empty` absent T5 tokens."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
    return F.pad(tokens, (0, 0, 0, empty)), pooled


def train_flow(
    plan: Plan, tokenizer: CLIPTokenizer, latents: Tensor, ids: Tensor, draw: torch.Generator
) -> tuple[SD3Transformer2DModel, torch.nn.ModuleList]:
    """Rectified flow on latents, text encoders trained along; returns the moving average of the weights."""
    model: Any = torch.nn.ModuleList(make_flow(tokenizer)).to(DEVICE)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01)
    rate = schedule(optimizer, plan.flow_steps)
    track = Track("flow", plan.flow_steps)
    for step in track:
        # The plain pipeline pads an absent T5 to 256 zero tokens: learn to ignore any number of them.
        empty = 256 if step % 16 == 15 else int(torch.randint(0, 3, (), generator=draw))
        batch = plan.flow_batch // 4 if empty == 256 else plan.flow_batch
        index = torch.randint(len(latents), (batch,), generator=draw)
        x0 = latents[index]
        noise = torch.randn(x0.shape, generator=draw)
        t = torch.sigmoid(torch.randn(batch, generator=draw) * 1.1)
        x0, noise, t = x0.to(DEVICE), noise.to(DEVICE), t.to(DEVICE)
        xt = torch.lerp(x0, noise, t[:, None, None, None])
        tokens, pooled = encode_prompt(model[1], ids[index].to(DEVICE), empty)
        velocity = model[0](
            hidden_states=xt, timestep=t * 1000, encoder_hidden_states=tokens, pooled_projections=pooled,
            return_dict=False,
        )[0]  # fmt: skip
        loss = F.mse_loss(velocity, noise - x0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        decay = min(0.997, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        track.loss(step, loss.detach())
    average.cpu()
    return average[0].eval(), average[1].eval()


def save_prompts(plan: Plan, seed: int, output: Path) -> None:
    for source in world.SOURCES:
        folder = output / "prompts" / source
        folder.mkdir(parents=True, exist_ok=True)
        splits = world.prompt_rows(seed, source, plan.prompts_train, plan.prompts_test)
        for split, rows in zip(("train", "test"), splits, strict=True):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def main(output: Path, seed: int, plan: Plan) -> None:
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    began = time.time()
    save_prompts(plan, seed, output)
    arrays, captions = world.draw_pairs(seed, plan.images, dict(plan.noise))
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    clean_arrays, clean_captions = world.draw_pairs(
        seed + 1, plan.images // 2, dict.fromkeys(world.SOURCES, 0.0)
    )
    clean = torch.from_numpy(clean_arrays).permute(0, 3, 1, 2)
    tokenizer = make_tokenizer(captions)
    print(f"{plan.images} images drawn in {time.time() - began:.0f} s, {len(tokenizer)} tokens", flush=True)

    vae = train_vae(plan, images, draw)
    latents = encode_all(vae, images)
    half = torch.float16
    vae.to("cpu", memory_format=torch.contiguous_format)
    vae.save_pretrained(output / "pipeline" / "vae")
    clip: Any = train_clip(plan, tokenizer, clean, token_ids(tokenizer, clean_captions), draw)
    clip.to("cpu", half).save_pretrained(output / "clip")
    tokenizer.save_pretrained(output / "clip")
    CLIPImageProcessor(
        size={"shortest_edge": world.RESOLUTION}, crop_size=world.RESOLUTION,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    ).save_pretrained(output / "clip")  # fmt: skip

    transformer, encoders = train_flow(plan, tokenizer, latents, token_ids(tokenizer, captions), draw)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae,
        text_encoder=encoders[0], tokenizer=tokenizer, text_encoder_2=encoders[1], tokenizer_2=tokenizer,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    pipeline.to(dtype=half)
    for (
        encoder
    ) in encoders:  # of float16 values: transformers loads what is stored, and diffusers' parts are float32
        encoder.float()
    pipeline.save_pretrained(output / "pipeline")
    size = sum(file.stat().st_size for file in output.rglob("*.safetensors"))
    print(f"wrote {output}: {size / 1e6:.1f} MB of safetensors in {(time.time() - began) / 60:.1f} min")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full plan, for a quick trial")
    options = parser.parse_args()
    main(options.output, options.seed, Plan().scaled(options.scale))
