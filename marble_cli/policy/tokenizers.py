"""Read and check the tokenizers of a pipeline before its weights are loaded."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family
from marble_cli.policy.processors import PROCESSORS
from marble_cli.tokenizers import check_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def read_tokenizers(
    folder: Path, model: ModelConfig, family: type[Family], index: Mapping[str, Any]
) -> "dict[str, PreTrainedTokenizerBase]":
    """Read the tokenizers of the pipeline in `folder`, by their names in its model_index.json.

    Raises:
        ValueError: a tokenizer cannot be read; the message names its folder.
    """
    return {
        name: _read_tokenizer(folder / name, *kind)
        for name, kind in index.items()
        if name.startswith("tokenizer") and name not in family.left_out(model) and kind[0] is not None
    }


def _read_tokenizer(folder: Path, library: str, name: str) -> "PreTrainedTokenizerBase":
    tokenizer_class: Any = PROCESSORS.get(name) or getattr(importlib.import_module(library), name)
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing, which holds a tokenizer ({name})")
    try:
        tokenizer: PreTrainedTokenizerBase = tokenizer_class.from_pretrained(str(folder))
    except Exception as error:  # the tokenizers library raises Exception itself
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"the tokenizer ({name}) in {folder} cannot be read: {reason}") from error
    return tokenizer


def check_tokenizers(
    tokenizers: "Mapping[str, PreTrainedTokenizerBase]",
    encoders: "Mapping[str, PretrainedConfig]",
    where: str,
) -> None:
    """Check that every tokenizer belongs to its text encoder.

    Args:
        tokenizers: by name, e.g. `tokenizer_2`.
        encoders: configurations of the text encoders by name, e.g. `text_encoder_2`.
        where: the pipeline's folder or id.

    Raises:
        ValueError: see `check_tokenizer`.
    """
    for name, given in tokenizers.items():
        tokenizer = own_tokenizer(given)
        config = encoders[name.replace("tokenizer", "text_encoder")]
        text = config.get_text_config()
        # Pipelines cut prompts by the tokenizer's model_max_length for CLIP only.
        positions = text.max_position_embeddings if text.model_type.startswith("clip") else None
        check_tokenizer(tokenizer, text.vocab_size, f"{where}/{name}", positions)


def own_tokenizer(tokenizer: Any) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a processor of texts and pictures, which FLUX.2's pipeline has in its place."""
    found: PreTrainedTokenizerBase = getattr(tokenizer, "tokenizer", tokenizer)
    return found
