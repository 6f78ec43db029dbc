"""Train the CLIP model of the tiny world, which the `clipscore` reward uses."""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from scripts.tiny.painter import RESOLUTION
from scripts.tiny.text import text_config
from scripts.tiny.training import DEVICE, Track, Updater, normalised

EMBEDDING = 64


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Make a small CLIP with random weights."""
    vision = {
        "hidden_size": 96,
        "intermediate_size": 288,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": RESOLUTION,
        "patch_size": 8,
        "projection_dim": EMBEDDING,
        "hidden_act": "gelu",
    }
    text = text_config(tokenizer, 64, 2, EMBEDDING).to_dict()
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=EMBEDDING))


def train_clip(
    tokenizer: CLIPTokenizer, images: Tensor, ids: Tensor, steps: int, batch: int, draw: torch.Generator
) -> CLIPModel:
    """Train a small CLIP contrastively.

    Args:
        tokenizer: of the captions.
        images: uint8 [N, 3, 64, 64], all with right captions.
        ids: int64 [N, L], their tokenized captions.
        steps: optimizer steps.
        batch: images per step.
        draw: picks the images.
    """
    model: Any = make_clip(tokenizer)
    model.to(DEVICE).train()
    updater = Updater(model, steps, lr=1.5e-3, weight_decay=0.05)
    track = Track("clip", steps)
    for step in track:
        index = torch.randint(len(images), (batch,), generator=draw)
        pixels = normalised(images[index].to(DEVICE))
        loss = model(input_ids=ids[index].to(DEVICE), pixel_values=pixels, return_loss=True).loss
        updater.update(loss)
        track.show_loss(step, loss.detach())
    trained: CLIPModel = model.eval()
    return trained
