"""A model whose memory and time can be counted by hand."""

from marble_cli.policy.decoding import Decoding
from marble_cli.policy.model_size import Drawing, ModelSize, PassCost

DECODING = Decoding(
    decoded=100, at_once=lambda device: {"cpu": 1, "cuda": 3}[device], count=lambda together: 5_000 * together
)
DRAWING = Drawing(count_velocity=lambda: 1_000, decoding=DECODING)
SIZE = ModelSize(
    network=1_000_000,
    trained=10_000,
    tokens=16,
    vae=250_000,
    encoders=175_000,
    rounded=800_000,
    encoders_rounded=100_000,
    blocks=4,
    in_blocks=900_000,
    largest_block=300_000,
    most_kept=180_000,
    count_cost=lambda: PassCost(
        forward=32_000_000, backward=40_000_000, kept=90_000, kept_checkpointed=30_000
    ),
    drawing=DRAWING,
    judged=DRAWING,
)
