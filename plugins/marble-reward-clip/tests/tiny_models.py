"""Small random models of the real classes, as folders that the rewards load."""

import json
from pathlib import Path
from typing import Any

import torch
from marble_reward_clip.aesthetic import Predictor
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from marble_cli.rewards.registry import build
from marble_cli.rewards.testing.fitting import prefer_examples

WORDS = ["<start>", "<end>", "a", "red", "blue", "cup", "kite", "and", "two"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_config(side: int = 32, length: int = 77, **common: Any) -> CLIPConfig:
    """Two layers a tower, of different widths; `common` goes to both."""
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16, **common}
    text = {
        **small,
        "hidden_size": 24,
        "intermediate_size": 48,
        "vocab_size": len(WORDS),
        "max_position_embeddings": length,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {
        **small,
        "hidden_size": 32,
        "intermediate_size": 64,
        "image_size": side,
        "patch_size": 8,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=16, architectures=["CLIPModel"])


def write_clip(folder: Path, config: CLIPConfig | None = None, seed: int = 0) -> None:
    """Write a CLIPModel with its tokenizer (of `WORDS`) and its image processor."""
    config = config or clip_config()
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(folder)
    write_tokenizer(folder, config.text_config.max_position_embeddings)
    write_image_processor(folder, config.vision_config.image_size)


def write_tokenizer(folder: Path, length: int) -> None:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
        unk_token="<end>",
        model_max_length=length,
    ).save_pretrained(folder)


def write_image_processor(folder: Path, side: int) -> None:
    """Write CLIP's published preprocessor_config.json for another side."""
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def write_predictor(folder: Path, width: int = 16, seed: int = 0, clip: Path | None = None) -> None:
    """Write LAION's aesthetic predictor for embeddings of `width` numbers.

    On those of the model `clip` it prefers the reward's examples.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights = Predictor(width).state_dict()
    # With torch's own initial weights, the product of the layers would be almost zero.
    for tensor in weights.values():
        tensor.normal_(std=tensor.shape[-1] ** -0.5)
    save_file(weights, folder / "model.safetensors")
    if clip:
        options = {"model": str(clip), "predictor": str(folder)}
        reward = build("aesthetic", "aesthetic", options, "cpu")
        prefer_examples(reward, reward.plugin.predictor.layers[7])
        save_file(reward.plugin.predictor.state_dict(), folder / "model.safetensors")
