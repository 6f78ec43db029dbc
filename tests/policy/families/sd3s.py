"""Make tiny random pipelines of the three structures that Stable Diffusion 3 is published in."""

from typing import Any

from tests.models import make_pipeline, make_transformer
from tests.policy.families.components import t5


def sd3() -> Any:
    """As SD3.5-Large: norms of queries and keys. The pipeline of the other tests, with T5."""
    pipeline = make_pipeline()
    encoder, tokenizer = t5()
    pipeline.register_modules(text_encoder_3=encoder, tokenizer_3=tokenizer)
    return pipeline


def sd35_medium() -> Any:
    """The first block attends to the picture a second time, and there are more positions."""
    pipeline = sd3()
    pipeline.register_modules(transformer=make_transformer(dual_attention_layers=(0,), pos_embed_max_size=8))
    return pipeline


def sd3_medium() -> Any:
    """There are no norms of queries and keys, and T5 is left out."""
    pipeline = make_pipeline()
    pipeline.register_modules(transformer=make_transformer(qk_norm=None))
    return pipeline
