"""Make the embedded `tiny_edit` model: a FLUX.1 Kontext pipeline that edits the pictures of `edits`.

    python -m scripts.tiny.pretrain_edit [--output DIR] [--seed 0] [--scale 1.0]

Writes a folder of a `FluxKontextPipeline` (`pipeline/`), and prompts with the pictures they start from
(`prompts/`). Its VAE is that of the embedded `tiny` model, which `scripts.tiny.pretrain` makes. It learns in
two rounds, from a careless editor's work and then from a better one's (`CARELESS` and `BETTER` of `edits`).
"""

import copy
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from scripts.tiny.edits import BETTER, CARELESS, painted_triples, save_edits
from scripts.tiny.pretrain import ASSETS as TINY
from scripts.tiny.text import make_tokenizer, text_config, token_ids
from scripts.tiny.training import DEVICE, Track, Updater, normalised, read_options

ASSETS = TINY.with_name("tiny_edit")
TOKENS = 8  # of T5; the longest instruction has seven
WIDTH = 64  # of both text encoders
CHANNELS = 8  # of the VAE's latents
SIDE = 4  # image tokens on a side
WORDED = 2_000  # triples whose instructions the tokenizers are made of


@dataclass(frozen=True)
class Plan:
    """Sizes of the training; `prompts` are the pictures of each split and the instructions for each."""

    triples: tuple[int, int] = (16_000, 12_000)  # of each round
    steps: tuple[int, int] = (3_000, 1_800)  # of each round
    batch: int = 64
    prompts: tuple[tuple[str, tuple[int, int]], ...] = (("train", (48, 16)), ("test", (24, 10)))

    def scaled(self, share: float) -> "Plan":
        """Return the plan with a share of the triples and steps."""
        triples, steps = (
            (int(first * share), int(second * share)) for first, second in (self.triples, self.steps)
        )
        return replace(self, triples=triples, steps=steps)


def make_t5(instructions: list[str]) -> tuple[T5Tokenizer, T5EncoderModel]:
    """Make a tokenizer of the instructions' words and of letters, and a T5 encoder with random weights."""
    words = sorted({word for instruction in instructions for word in instruction.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    pieces += [(f"▁{word}", -1.0) for word in words]
    pieces += [(chr(code), -8.0) for code in range(33, 127)]
    config = T5Config(
        vocab_size=len(pieces),
        d_model=WIDTH,
        d_kv=16,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TOKENS)
    return tokenizer, T5EncoderModel(config)


def make_transformer() -> FluxTransformer2DModel:
    """Make a FLUX transformer of 1.3 million parameters with random weights."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )


@torch.no_grad()
def packed_latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Return images uint8 [N, 3, 64, 64] as image tokens [N, 16, 32]: a token is a square of four latents."""
    config, parts = vae.config, []
    for chunk in images.split(256):
        pixels = normalised(chunk.to(DEVICE)).contiguous(memory_format=torch.channels_last)
        parts.append(vae.encode(pixels).latent_dist.mode().cpu())
    latents = (torch.cat(parts) - config.shift_factor) * config.scaling_factor
    return F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2).contiguous()


def token_places() -> Tensor:
    """Return the places [32, 3] of the picture's 16 tokens and the condition's: (0 or 1, row, column)."""
    side = torch.arange(SIDE)
    return torch.cartesian_prod(torch.arange(2), side, side).float().to(DEVICE)


def train(
    model: torch.nn.ModuleList,
    before: Tensor,
    after: Tensor,
    ids: tuple[Tensor, Tensor],
    steps: int,
    batch: int,
    draw: torch.Generator,
) -> Any:
    """Train a rectified flow from noise to edited pictures, and the text encoders along with it.

    Args:
        model: transformer, CLIP and T5.
        before: float32 [N, 16, 32], tokens of the pictures that are edited.
        after: float32 [N, 16, 32], tokens of the edited pictures.
        ids: int64 [N, L] each, instructions as tokenized for CLIP and T5.
        steps: optimizer steps.
        batch: triples per step.
        draw: picks triples, times and noise.

    Returns:
        The modules with the moving average of their weights.
    """
    model.to(DEVICE).train()
    average = copy.deepcopy(model).requires_grad_(False)
    updater = Updater(model, steps, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    places, no_places = token_places(), torch.zeros(TOKENS, 3, device=DEVICE)
    track = Track("edit", steps)
    for step in track:
        index = torch.randint(len(after), (batch,), generator=draw)
        x0 = after[index].to(DEVICE)
        noise = torch.randn(x0.shape, generator=draw).to(DEVICE)
        t = torch.sigmoid(torch.randn(batch, generator=draw) * 1.1).to(DEVICE)
        xt = torch.lerp(x0, noise, t[:, None, None])
        velocity = model[0](
            hidden_states=torch.cat([xt, before[index].to(DEVICE)], dim=1),
            timestep=t,
            pooled_projections=model[1](ids[0][index].to(DEVICE)).pooler_output,
            encoder_hidden_states=model[2](ids[1][index].to(DEVICE))[0],
            txt_ids=no_places,
            img_ids=places,
            return_dict=False,
        )[0][:, : x0.shape[1]]
        loss = F.mse_loss(velocity, noise - x0)
        updater.update(loss)
        decay = min(0.997, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        track.show_loss(step, loss.detach())
    return average.cpu().requires_grad_(True).eval()


def pretrain(output: Path, seed: int, plan: Plan) -> None:
    """Draw the prompts and the triples, train the model and write all to `output`."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    began = time.time()
    save_edits(seed, output / "prompts", dict(plan.prompts))
    vae = AutoencoderKL.from_pretrained(TINY / "pipeline" / "vae").to(DEVICE).eval()
    words = sorted(painted_triples(seed, WORDED, CARELESS)[1])
    clip_tokenizer = make_tokenizer(words)
    t5_tokenizer, t5 = make_t5(words)
    clip = CLIPTextModel(text_config(clip_tokenizer, WIDTH, 1, WIDTH))
    model: Any = torch.nn.ModuleList([make_transformer(), clip, t5])
    rounds = zip((CARELESS, BETTER), plan.triples, plan.steps, strict=True)
    for number, (shares, triples, steps) in enumerate(rounds):
        pictures, instructions, edited = painted_triples(seed + number, triples, shares)
        before, after = (
            packed_latents(vae, torch.from_numpy(images).permute(0, 3, 1, 2)) for images in (pictures, edited)
        )
        t5_ids: Tensor = t5_tokenizer(
            instructions, padding="max_length", max_length=TOKENS, return_tensors="pt"
        ).input_ids
        print(f"triples of round {number + 1} are there after {time.time() - began:.0f} s", flush=True)
        ids = token_ids(clip_tokenizer, instructions), t5_ids
        model = train(model, before, after, ids, steps, plan.batch, draw)
    save(output / "pipeline", model, vae, clip_tokenizer, t5_tokenizer)
    size = sum(file.stat().st_size for file in (output / "pipeline").rglob("*.safetensors"))
    print(f"wrote {output}: {size / 1e6:.1f} MB of safetensors in {(time.time() - began) / 60:.1f} min")


def save(folder: Path, model: Any, vae: AutoencoderKL, clip_tokenizer: Any, t5_tokenizer: Any) -> None:
    """Write the pipeline in float16; the VAE's files are those of `tiny`."""
    transformer, clip, t5 = model
    pipeline = FluxKontextPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.cpu(),
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
    )
    pipeline.to(dtype=torch.float16)
    for encoder in (clip, t5):
        encoder.float()  # as in `scripts.tiny.pretrain`
    pipeline.save_pretrained(folder)
    shutil.copytree(TINY / "pipeline" / "vae", folder / "vae", dirs_exist_ok=True)


def main(arguments: list[str]) -> None:
    """Make the model that the command line asks for."""
    options = read_options("scripts.tiny.pretrain_edit", __doc__, ASSETS, arguments)
    pretrain(options.output, options.seed, Plan().scaled(options.scale))


if __name__ == "__main__":
    main(sys.argv[1:])
