"""A model whose memory and time can be counted by hand."""

from marble_cli.policy.base import ModelSize, PassCost

SIZE = ModelSize(
    transformer=1_000_000,
    trained=10_000,
    tokens=16,
    frozen_bytes=5_000_000,
    encoder_bytes=700_000,
    copied_bytes=0,
    blocks=4,
    cost=PassCost(forward=32_000_000, backward=40_000_000, kept=90_000, kept_checkpointed=30_000),
)
