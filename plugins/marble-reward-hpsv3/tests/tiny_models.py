"""A small random HPSv3 in the published layout, with the base model's configuration and tokenizer."""

from pathlib import Path

import torch
from marble_reward_hpsv3.model import HPSv3Model
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig

from marble_cli.rewards.registry import build
from marble_cli.rewards.testing.fitting import prefer_examples

WORDS = ["[UNK]", "a", "red", "blue", "cup", "kite", "and", "two", "image", "night", "meadow", "END", "user"]
MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TOKENS = [*WORDS, *MARKS, "<|Reward|>"]  # the last is added by the reward


def hpsv3_config() -> Qwen2VLConfig:
    """Two layers an encoder, of different widths; each text layer has fewer keys than queries."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "mlp_ratio": 2}
    text = {
        "vocab_size": 2 * len(TOKENS),  # the published base has more embeddings than tokens, too
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
        "bos_token_id": None,
        "eos_token_id": TOKENS.index("<|im_end|>"),
    }
    marks = {
        "image_token_id": TOKENS.index("<|image_pad|>"),
        "video_token_id": TOKENS.index("<|video_pad|>"),
        "vision_start_token_id": TOKENS.index("<|vision_start|>"),
        "vision_end_token_id": TOKENS.index("<|vision_end|>"),
    }
    return Qwen2VLConfig(vision_config=vision, text_config=text, **marks)


def write_hpsv3(folder: Path, seed: int = 0) -> None:
    """Write HPSv3.safetensors, config.json and the tokenizer; the network prefers the reward's examples."""
    config = hpsv3_config()
    config.save_pretrained(folder)
    config.text_config.vocab_size = len(TOKENS)
    torch.manual_seed(seed)
    model = HPSv3Model(config)
    randomise(model)
    weights = {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("model.") if name.startswith("model.visual.") else name
        weights[name.replace("model.language_model.", "model.")] = tensor
    weights["lm_head.weight"] = torch.randn(len(TOKENS), 48)
    write_tokenizer(folder)
    save_file(weights, folder / "HPSv3.safetensors", {"format": "pt"})
    options = {"model": str(folder), "base": str(folder), "dtype": "float32"}
    reward = build("hpsv3", "hpsv3", options, "cpu")
    last = reward.plugin.model.rm_head[5]
    prefer_examples(reward, last)
    save_file(weights | {"rm_head.5.weight": last.weight}, folder / "HPSv3.safetensors", {"format": "pt"})


def randomise(model: torch.nn.Module) -> None:
    """Draw every parameter, biases and norms too, far enough from zero for pictures and prompts to matter."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.normal_(parameter, mean=float("norm" in name or "ln_q" in name), std=0.2)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of `WORDS` with Qwen2-VL's marks."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(MARKS)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="<|im_end|>", model_max_length=32768
    ).save_pretrained(folder)
