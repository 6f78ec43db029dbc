"""Whether a tokenizer belongs to its text encoder: transformers makes an empty one of a folder without a vocabulary.

Rewards may import this, as those that come with marble do.
"""

from typing import Any

ENDLESS = 10**9  # transformers' own stand-in for no length at all is 1e30
SMALL = 1000  # tokens: a vocabulary may be half of a small encoder's, as those of random models are


def check_tokenizer(tokenizer: Any, vocabulary: int, where: str, positions: int | None = None) -> None:
    """Refuse a tokenizer that cannot be the one that a text encoder was trained with.

    Args:
        tokenizer: of transformers, of any kind.
        vocabulary: the encoder's `vocab_size`, which may be padded.
        where: the folder or repository that the tokenizer was loaded from.
        positions: tokens that the encoder has positions for, where the tokenizer's `model_max_length` must respect them.

    Raises:
        ValueError: the tokenizer has no words, or far fewer than the encoder; or its greatest length is not said, or more
            than the encoder takes. The message names `where` and the files that are missing.
    """
    files = sorted(set(tokenizer.vocab_files_names.values()))
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    words = set(tokenizer.get_vocab()) - added - set(tokenizer.all_special_tokens)
    if len(words) < 2:  # sentencepiece has its mark of a blank even so
        raise ValueError(
            f"the tokenizer of {where} has no vocabulary: {' and '.join(files)} missing or empty there"
        )
    size = len(tokenizer)
    if size < vocabulary / 4 or (size < vocabulary / 2 and vocabulary - size > SMALL):
        raise ValueError(
            f"the tokenizer of {where} knows {size:,} tokens, and its text encoder {vocabulary:,}: it belongs to another "
            f"model, or its vocabulary ({', '.join(files)}) is cut short"
        )
    longest = tokenizer.model_max_length
    if longest > ENDLESS and "model_max_length" not in tokenizer.init_kwargs:
        raise ValueError(
            f"the tokenizer of {where} has no model_max_length: tokenizer_config.json is missing there, or does not name it"
        )
    if positions is not None and longest > positions:
        raise ValueError(
            f"the tokenizer of {where} has model_max_length={longest}, and its text encoder positions for {positions} "
            "tokens. Set that in its tokenizer_config.json"
        )
