"""A small random EditReward in the published layout, with its base model's configuration and tokenizer."""

from pathlib import Path

import torch
from marble_reward_editreward.model import EditRewardModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig

from marble_cli.rewards.registry import build
from marble_cli.rewards.testing.fitting import prefer_examples

WORDS = [
    "[UNK]",
    "the",
    "red",
    "blue",
    "cup",
    "Make",
    "Following",
    "Realism**,",
    "instruction",
    "END",
    "user",
]
MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TOKENS = [*WORDS, *MARKS, "<|Reward|>"]  # the last is added by the reward
# As the published one for a first message of the user.
CHAT = (
    "{% for message in messages %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
)


def editreward_config() -> Qwen2_5_VLConfig:
    """Two layers an encoder, of different widths; the first for pictures sees windows of four tokens."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 48,
        "intermediate_size": 40,
        "num_heads": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    }
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
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, **marks)


def write_editreward(folder: Path, seed: int = 0) -> None:
    """Write model.safetensors, config.json and the tokenizer; the network prefers the reward's examples."""
    config = editreward_config()
    config.save_pretrained(folder)
    config.text_config.vocab_size = len(TOKENS)
    torch.manual_seed(seed)
    model = EditRewardModel(config)
    randomise(model)
    weights = {**model.state_dict(), "lm_head.weight": torch.randn(len(TOKENS), 48)}
    write_tokenizer(folder)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    options = {"model": str(folder), "base": str(folder), "dtype": "float32"}
    reward = build("editreward", "editreward", options, "cpu")
    for name, head in reward.plugin.model.rm_heads.items():
        prefer_examples(reward, head[5])
        weights[f"rm_heads.{name}.5.weight"] = head[5].weight
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def randomise(model: torch.nn.Module) -> None:
    """Draw every parameter, biases and norms too, far enough from zero for pictures and prompts to matter."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.normal_(parameter, mean=float("norm" in name or "ln_q" in name), std=0.2)


def write_tokenizer(folder: Path, chat: str | None = CHAT) -> None:
    """Write a tokenizer of `WORDS` with Qwen2.5-VL's marks."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(MARKS)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        eos_token="<|im_end|>",
        model_max_length=32768,
        chat_template=chat,
    ).save_pretrained(folder)
