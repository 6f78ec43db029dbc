"""A small random ImageReward, as a folder that the reward loads."""

from pathlib import Path

import torch
from marble_reward_imagereward.model import ImageRewardModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BlipConfig, PreTrainedTokenizerFast

from marble_cli.rewards.registry import build
from marble_cli.rewards.testing.fitting import prefer_examples

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "blue", "cup", "kite", "and", "two"]


def imagereward_config(side: int = 32) -> BlipConfig:
    """Two layers an encoder, of different widths."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": side,
        "patch_size": 8,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    text = {
        "vocab_size": len(WORDS),
        "hidden_size": 24,
        "encoder_hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "sep_token_id": 2,
    }
    return BlipConfig(text_config=text, vision_config=vision, architectures=["ImageRewardModel"])


def write_imagereward(folder: Path, seed: int = 0) -> None:
    """Write a model that prefers the reward's examples, and its tokenizer (of `WORDS`)."""
    torch.manual_seed(seed)
    model = ImageRewardModel(imagereward_config())
    randomise(model)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    reward = build("imagereward", "imagereward", {"model": str(folder)}, "cpu")
    prefer_examples(reward, reward.plugin.model.head[7])
    reward.plugin.model.save_pretrained(folder)


def randomise(model: torch.nn.Module) -> None:
    """Draw every parameter, biases and norms too, far enough from zero for pictures and prompts to matter."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
        else:
            torch.nn.init.normal_(parameter, mean=float("norm" in name.lower()), std=0.2)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of `WORDS` with BERT's special tokens and padding."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
