"""A model whose memory and time can be counted by hand."""

from marble_cli.policy.base import ModelSize

SIZE = ModelSize(
    transformer=1_000_000,
    trained=10_000,
    tokens=16,
    frozen_bytes=5_000_000,
    encoder_bytes=700_000,
    blocks=4,
    features=100,
)
