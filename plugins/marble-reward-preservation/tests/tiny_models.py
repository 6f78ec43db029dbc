"""Small random models of DINO's classes, as folders that the reward loads."""

from pathlib import Path

import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
)

SMALL = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
}


def dino(kind: str = "dinov2", seed: int = 0) -> torch.nn.Module:
    """Make a network with random weights, large enough that its features differ."""
    torch.manual_seed(seed)
    model = {
        "dinov2": lambda: Dinov2Model(Dinov2Config(**SMALL, patch_size=14)),
        "registers": lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**SMALL, patch_size=14, num_register_tokens=3)
        ),
        "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**SMALL, patch_size=16, num_register_tokens=2)),
    }[kind]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def write_dino(folder: Path, kind: str = "dinov2", seed: int = 0) -> Path:
    """Write such a model into a folder."""
    dino(kind, seed).save_pretrained(folder)
    return folder
