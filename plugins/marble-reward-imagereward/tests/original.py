"""ImageReward in plain layers of torch, with the names of the published checkpoint.

Scores one picture and one prompt at a time without padding, so no mask is needed. Sources: ImageReward, arXiv
2304.05977; BLIP, arXiv 2201.12086.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import BlipConfig

from .tiny_models import WORDS, randomise

LENGTH = 35
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """[n, width] from [n, width], [m, width] and [m, width]: each head by itself."""
    size = query.shape[1] // heads
    parts = []
    for head in range(heads):
        mine = slice(head * size, (head + 1) * size)
        share = torch.softmax(query[:, mine] @ key[:, mine].T / math.sqrt(size), dim=1)
        parts.append(share @ value[:, mine])
    return torch.cat(parts, dim=1)


class VitAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)


class VitBlock(nn.Module):
    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.heads = VitAttention(width), heads
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attn.qkv(self.norm1(x)).chunk(3, dim=1)
        x = x + self.attn.proj(attend(query, key, value, self.heads))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class Vit(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        vision = config.vision_config
        width, patch = vision.hidden_size, vision.patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (vision.image_size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(
            VitBlock(width, vision.intermediate_size, vision.num_attention_heads)
            for _ in range(vision.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](pixels[None])[0].flatten(1).T
        x = torch.cat([self.cls_token[0], patches]) + self.pos_embed[0]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class BertAttention(nn.Module):
    def __init__(self, width: int, other: int, heads: int) -> None:
        super().__init__()
        linear = {
            "query": nn.Linear(width, width),
            "key": nn.Linear(other, width),
            "value": nn.Linear(other, width),
        }
        self.self = nn.ModuleDict(linear)
        self.output = BertOutput(width, width)
        self.heads = heads

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        query, key, value = self.self["query"](x), self.self["key"](other), self.self["value"](other)
        return self.output(attend(query, key, value, self.heads), x)


class BertOutput(nn.Module):
    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


class BertLayer(nn.Module):
    def __init__(self, width: int, other: int, inner: int, heads: int) -> None:
        super().__init__()
        self.attention = BertAttention(width, width, heads)
        self.crossattention = BertAttention(width, other, heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = BertOutput(inner, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.attention(x, x)
        x = self.crossattention(x, seen)
        return self.output(nn.functional.gelu(self.intermediate["dense"](x)), x)


class Bert(nn.Module):
    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        text, width = config.text_config, config.text_config.hidden_size
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(text.vocab_size, width),
                "position_embeddings": nn.Embedding(text.max_position_embeddings, width),
                "LayerNorm": nn.LayerNorm(width, eps=1e-12),
            }
        )
        self.embeddings.register_buffer("position_ids", torch.arange(text.max_position_embeddings)[None])
        layer = (width, config.vision_config.hidden_size, text.intermediate_size, text.num_attention_heads)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(BertLayer(*layer) for _ in range(text.num_hidden_layers))}
        )

    def forward(self, words: Tensor, seen: Tensor) -> Tensor:
        x = self.embeddings["word_embeddings"](words)
        x = x + self.embeddings["position_embeddings"].weight[: len(words)]
        x = self.embeddings["LayerNorm"](x)
        for layer in self.encoder["layer"]:
            x = layer(x, seen)
        return x


class Original(nn.Module):
    """The checkpoint's modules, those of BLIP's contrastive loss too, which the score does not use."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.blip = nn.ModuleDict(
            {
                "visual_encoder": Vit(config),
                "text_encoder": Bert(config),
                "vision_proj": nn.Linear(config.vision_config.hidden_size, 256),
                "text_proj": nn.Linear(width, 256),
            }
        )
        layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(),
            nn.Linear(1024, 128),
            nn.Dropout(),
            nn.Linear(128, 64),
            nn.Dropout(),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )
        self.mlp = nn.ModuleDict({"layers": layers})

    @torch.no_grad()
    def score(self, image: Tensor, prompt: str) -> float:
        """Of an image uint8 [3, H, W] and a prompt of `WORDS`, in the type of the weights."""
        kind, side = self.mlp["layers"][0].weight.dtype, 32
        seen = self.blip["visual_encoder"](torch.from_numpy(cropped(image, side)).permute(2, 0, 1).to(kind))
        words = [WORDS.index(word) if word in WORDS else 3 for word in prompt.split()][: LENGTH - 2]
        read = self.blip["text_encoder"](torch.tensor([1, *words, 2]), seen)
        return (self.mlp["layers"](read[0]).item() - 0.16717362830052426) / 1.0333394966054072


def original(config: BlipConfig, seed: int = 0) -> Original:
    """Make a network with random weights."""
    torch.manual_seed(seed)
    model = Original(config).eval()
    randomise(model)
    return model


def cropped(image: Tensor, side: int) -> NDArray[np.float64]:
    """Map uint8 [3, H, W] to [side, side, 3] like torchvision's Resize, CenterCrop and Normalize."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    short = min(picture.size)
    picture = picture.resize(tuple(side * edge // short for edge in picture.size), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture) / 255
    top, left = (round((edge - side) / 2) for edge in pixels.shape[:2])
    return (pixels[top : top + side, left : left + side] - PIXEL_MEAN) / PIXEL_STD
