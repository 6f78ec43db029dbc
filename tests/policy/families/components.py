"""Make tiny random parts of pipelines: tokenizers, text encoders and a VAE."""

import json
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace
from tokenizers.trainers import BpeTrainer


def learn_merges(text: str, specials: list[str], splitter: Any) -> tuple[dict[str, int], list[Any]]:
    """Vocabulary and merges of a byte-pair encoding that knows the words of `text`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = splitter
    alphabet = sorted({*ByteLevel.alphabet(), "▁"})
    trainer = BpeTrainer(
        vocab_size=1000, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def t5() -> tuple[Any, Any]:
    """Encoder of width 16 and its tokenizer of letters."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((a, -3.0) for a in letters)]
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config), T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def qwen_tokenizer(text: str) -> Any:
    from transformers import Qwen2Tokenizer

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary, merges = learn_merges(text, specials, ByteLevel(add_prefix_space=False))
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=specials[1:])


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]


def picture_processor(tokenizer: Any) -> Any:
    """Qwen's processor; its tokens of vision are added to the tokenizer."""
    from transformers import Qwen2VLImageProcessor

    tokenizer.add_special_tokens({"additional_special_tokens": VISION})
    return published("Qwen2VLProcessor")(Qwen2VLImageProcessor(), tokenizer)


def published(name: str) -> Any:
    """A class of marble's that a pipeline is saved with under the name in published pipelines."""
    from marble_cli.policy.processors import PROCESSORS

    return type(name, (PROCESSORS[name],), {"__module__": "transformers"})


def gemma2(text: str) -> tuple[Any, Any]:
    """Model of width 16 and its tokenizer, which knows the words of `text`."""
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocabulary, merges = learn_merges(text, specials, Metaspace(prepend_scheme="never"))
    config = Gemma2Config(
        vocab_size=1000,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
    )
    return Gemma2Model(config), GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)


def autoencoder_kl(shrinks: int = 4) -> Any:
    """A VAE that shrinks by 4 or 8."""
    from diffusers import AutoencoderKL

    levels = shrinks.bit_length()
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4, *(8,) * (levels - 1)),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.3,
        shift_factor=0.1,
    )
