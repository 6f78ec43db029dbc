"""EditReward written out in float64, by the names of the published weights.

Scores one edit at a time, with both whole chats and without padding. Sources: EditReward, arXiv 2509.26346;
Qwen2.5-VL, arXiv 2502.13923.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import gelu, silu

from .tiny_models import TOKENS

PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PATCH, TOKEN, WINDOW = 14, 28, 56  # pixels


def fitted(height: int, width: int, pixels: int) -> tuple[int, int]:
    """Edges that 28 divides; at most `pixels` pixels of a larger picture, at least those of a smaller."""
    rounded = [round(edge / TOKEN) * TOKEN for edge in (height, width)]
    scale = math.sqrt(pixels / (height * width))
    if math.prod(rounded) > pixels:
        rounded = [max(TOKEN, math.floor(edge * scale / TOKEN) * TOKEN) for edge in (height, width)]
    elif math.prod(rounded) < pixels:
        rounded = [math.ceil(edge * scale / TOKEN) * TOKEN for edge in (height, width)]
    return rounded[0], rounded[1]


class Original:
    """The network and its two encoders, with 2 heads for pictures and 4 for text (2 of keys)."""

    def __init__(self, weights: Mapping[str, Tensor], questions: Sequence[str], pixels: int) -> None:
        self.weights = {name: tensor.double() for name, tensor in weights.items()}
        self.questions, self.pixels = questions, pixels

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, name: str, x: Tensor) -> Tensor:
        return self.weights[f"{name}.weight"] * x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()

    def gated(self, name: str, x: Tensor) -> Tensor:
        gate, up = (self.linear(f"{name}.{part}_proj", x) for part in ("gate", "up"))
        return self.linear(f"{name}.down_proj", silu(gate) * up)

    def score(self, before: Tensor, after: Tensor, instruction: str) -> float:
        """Of an edit between images uint8 [3, H, W]: the mean of both questions' first outputs."""
        seen = [self.see(picture) for picture in (before, after)]
        first, second = (self.ask(seen, head, instruction)[0].item() for head in (0, 1))
        return (first + second) / 2

    def ask(self, seen: Sequence[Tensor], head: int, instruction: str) -> Tensor:
        """Return both outputs of a head."""
        chat = ["<|im_start|>", "system", "You", "are", "a", "helpful", "assistant.", "<|im_end|>"]
        chat += ["<|im_start|>", "user"]
        for picture in seen:
            chat += ["<|vision_start|>", *["<|image_pad|>"] * len(picture), "<|vision_end|>"]
        text, end = self.questions[head].split("<|Reward|>")
        words = text.format(text_prompt=instruction).split()
        question = ["[UNK]" if word.startswith("<|") else word for word in words]
        tokens = [*chat, *question, "<|Reward|>", *end.split(), "<|im_end|>", "<|im_start|>", "assistant"]
        ids = torch.tensor([TOKENS.index(token) if token in TOKENS else 0 for token in tokens])
        x = self.weights["model.language_model.embed_tokens.weight"][ids]
        x[ids == TOKENS.index("<|image_pad|>")] = torch.cat([*seen])
        for layer in ("model.language_model.layers.0", "model.language_model.layers.1"):
            x = x + self.read(f"{layer}.self_attn", self.norm(f"{layer}.input_layernorm", x))
            x = x + self.gated(f"{layer}.mlp", self.norm(f"{layer}.post_attention_layernorm", x))
        y = self.norm("model.language_model.norm", x)[tokens.index("<|Reward|>")]
        for layer in (0, 3):
            y = self.linear(f"rm_heads.head_{head}.{layer}", y).relu()
        return self.linear(f"rm_heads.head_{head}.5", y)

    def read(self, name: str, x: Tensor) -> Tensor:
        """Attend to earlier tokens; 2 heads share keys and values."""
        query, key, value = (self.linear(f"{name}.{part}_proj", x) for part in "qkv")
        size, places = 12, torch.arange(len(x), dtype=torch.float64)
        angles = places[:, None] * 1e6 ** (-torch.arange(6, dtype=torch.float64) / 6)
        hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        heads = []
        for head in range(4):
            mine = slice(head * size, (head + 1) * size)
            shared = slice(head // 2 * size, (head // 2 + 1) * size)
            fit = turned(query[:, mine], angles) @ turned(key[:, shared], angles).T / math.sqrt(size)
            heads.append(fit.masked_fill(hidden, -math.inf).softmax(1) @ value[:, shared])
        return self.linear(f"{name}.o_proj", torch.cat(heads, 1))

    def see(self, image: Tensor) -> Tensor:
        """Return a picture's tokens: patches in squares of four, each square merged into one.

        In the first layer a patch attends to those in its window of 56 x 56 pixels alone.
        """
        patches, places = self.patches(image)
        x = patches @ self.weights["model.visual.patch_embed.proj.weight"].flatten(1).T
        frequencies = 1e4 ** (-torch.arange(4, dtype=torch.float64) / 4)
        angles = (places[:, :, None] * frequencies).flatten(1)
        windows = places // (WINDOW // PATCH)
        apart = (windows[:, None] != windows[None]).any(2)
        for block, hidden in (("model.visual.blocks.0", apart), ("model.visual.blocks.1", apart & False)):
            query, key, value = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x)).chunk(3, 1)
            heads = []
            for mine in (slice(0, 16), slice(16, 32)):
                fit = turned(query[:, mine], angles) @ turned(key[:, mine], angles).T / 4
                heads.append(fit.masked_fill(hidden, -math.inf).softmax(1) @ value[:, mine])
            x = x + self.linear(f"{block}.attn.proj", torch.cat(heads, 1))
            x = x + self.gated(f"{block}.mlp", self.norm(f"{block}.norm2", x))
        merged = self.norm("model.visual.merger.ln_q", x).reshape(len(x) // 4, -1)
        return self.linear(
            "model.visual.merger.mlp.2", gelu(self.linear("model.visual.merger.mlp.0", merged))
        )

    def patches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Patches of a picture, each twice over, and their rows and columns."""
        height, width = fitted(*image.shape[1:], self.pixels)
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) / 255
        pixels = torch.from_numpy((pixels - PIXEL_MEAN) / PIXEL_STD)
        found, places = [], []
        for top in range(0, height // PATCH, 2):
            for left in range(0, width // PATCH, 2):
                for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                    patch = pixels[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                    found.append(patch.permute(2, 0, 1)[:, None].expand(-1, 2, -1, -1).flatten())
                    places.append([row, column])
        return torch.stack(found), torch.tensor(places, dtype=torch.float64)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (i, i + size / 2) of [n, size] by angles [n, size / 2]."""
    first, second = x.chunk(2, 1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], 1)
