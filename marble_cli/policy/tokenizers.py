"""The tokenizers of a pipeline, read and checked before its weights are."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marble_cli.config.schema import ModelConfig
from marble_cli.policy.base import Family
from marble_cli.tokenizers import check_tokenizer


def read_tokenizers(
    folder: Path, model: ModelConfig, family: type[Family], index: Mapping[str, Any]
) -> dict[str, Any]:
    """The tokenizers of the pipeline in `folder` by the names that the pipeline gives them.

    Raises:
        ValueError: one cannot be read; the message names its folder.
    """
    return {
        name: _read(folder / name, *kind)
        for name, kind in index.items()
        if name.startswith("tokenizer") and name not in family.left_out(model) and kind[0] is not None
    }


def _read(folder: Path, library: str, name: str) -> Any:
    kind = getattr(importlib.import_module(library), name)
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing, which holds a tokenizer ({name})")
    try:
        return kind.from_pretrained(str(folder))
    except Exception as error:  # the libraries of tokenizers raise Exception itself
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"the tokenizer ({name}) in {folder} cannot be read: {reason}") from error


def check_tokenizers(tokenizers: Mapping[str, Any], encoders: Mapping[str, Any], where: str) -> None:
    """Every tokenizer belongs to its text encoder.

    Args:
        tokenizers: by name, e.g. `tokenizer_2`.
        encoders: configurations of the text encoders by name, e.g. `text_encoder_2`.
        where: the pipeline's folder or id.

    Raises:
        ValueError: see `check_tokenizer`.
    """
    for name, tokenizer in tokenizers.items():
        config = encoders[name.replace("tokenizer", "text_encoder")]
        text = config.get_text_config()
        clip = text.model_type.startswith(
            "clip"
        )  # pipelines cut prompts for it, and for no other, by model_max_length
        positions = text.max_position_embeddings if clip else None
        check_tokenizer(tokenizer, text.vocab_size, f"{where}/{name}", positions)
