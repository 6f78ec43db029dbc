"""Check that a tokenizer belongs to its text encoder.

transformers creates an empty tokenizer, without an error, from a folder that has no vocabulary. Reward
plugins may import this module, as the rewards that ship with marble do.
"""

import json
from typing import Any

UNLIMITED = 10**9  # transformers uses 1e30 where no greatest length is given
SMALL = 1000  # tokens; the vocabularies of small random models may be half the encoder's


def check_tokenizer(tokenizer: Any, vocabulary: int, where: str, positions: int | None = None) -> None:
    """Refuse a tokenizer that cannot belong to the text encoder.

    Args:
        tokenizer: any tokenizer of transformers.
        vocabulary: the encoder's `vocab_size`, which may be padded.
        where: the folder or repository that the tokenizer was loaded from.
        positions: the number of tokens that the encoder has positions for, if the tokenizer's
            `model_max_length` must not exceed it.

    Raises:
        ValueError: the tokenizer has no words, or far fewer than the encoder; or far fewer merges than words;
            or its greatest length is missing, or exceeds the encoder's. The message names `where` and the
            missing files.
    """
    files = sorted(set(tokenizer.vocab_files_names.values()))
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    words = set(tokenizer.get_vocab()) - added - set(tokenizer.all_special_tokens)
    if len(words) < 2:  # an empty sentencepiece tokenizer still has its mark for a space
        raise ValueError(
            f"the tokenizer of {where} has no vocabulary: {' and '.join(files)} missing or empty there"
        )
    size = len(tokenizer)
    if size < vocabulary / 4 or (size < vocabulary / 2 and vocabulary - size > SMALL):
        raise ValueError(
            f"the tokenizer of {where} knows {size:,} tokens, and its text encoder {vocabulary:,}: it "
            f"belongs to another model, or its vocabulary ({', '.join(files)}) is cut short"
        )
    merges = _count_merges(tokenizer)
    if merges is not None and merges < (len(words) - SMALL) / 2:
        raise ValueError(
            f"the tokenizer of {where} has {merges:,} merges for {len(words):,} words, which it would read "
            f"as single letters: {' or '.join(files)} is cut short there"
        )
    longest = tokenizer.model_max_length
    if longest > UNLIMITED and "model_max_length" not in tokenizer.init_kwargs:
        raise ValueError(
            f"the tokenizer of {where} has no model_max_length: tokenizer_config.json is missing there, or "
            "does not name it"
        )
    if positions is not None and longest > positions:
        raise ValueError(
            f"the tokenizer of {where} has model_max_length={longest}, and its text encoder positions for "
            f"{positions} tokens. Set that in its tokenizer_config.json"
        )


def _count_merges(tokenizer: Any) -> int | None:
    """Return the number of merges by which a tokenizer builds words (BPE), None for other kinds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE":  # others are large to write out
        return None
    return len(json.loads(backend.to_str())["model"]["merges"])
