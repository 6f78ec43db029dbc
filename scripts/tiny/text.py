"""The tiny model's tokenizer and the configuration of its text encoders."""

import json
from typing import Any

from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

TOKENS = 16  # prompt length; the longest prompt of the world has 15 tokens
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = 1_400
END_OF_WORD = "</w>"


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """Make a CLIP tokenizer with byte-pair merges that are learned from captions."""
    clip: Any = CLIPTokenizer(vocab={END: 0}, merges=[])._tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        initial_alphabet=ByteLevel.alphabet(),
        end_of_word_suffix=END_OF_WORD,
        show_progress=False,
    )
    learner.train_from_iterator([caption.replace('"', ' " ') for caption in captions], trainer)
    model = json.loads(learner.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for character in ByteLevel.alphabet():
        vocabulary.setdefault(character + END_OF_WORD, len(vocabulary))
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=TOKENS,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Tokenize captions to int64 [N, TOKENS]."""
    ids: Tensor = tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int, projection: int) -> CLIPTextConfig:
    """Return the configuration of a text encoder with four heads and embeddings of `projection` numbers."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=projection,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
