"""Hold a model's sizes and what a training pass of it costs."""

from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from functools import cached_property
from operator import add, sub

from marble_cli.policy.decoding import Decoding


@dataclass(frozen=True)
class PassCost:
    """Hold what a training pass costs per image and time."""

    forward: int  # FLOP of a velocity
    backward: int  # FLOP of its gradient in the trained weights
    kept: int  # bytes of activations from the forward pass to the backward pass
    kept_checkpointed: int  # the same with gradient checkpointing, while the largest block is computed again

    def __add__(self, other: "PassCost") -> "PassCost":
        return PassCost(*map(add, astuple(self), astuple(other)))

    def __sub__(self, other: "PassCost") -> "PassCost":
        return PassCost(*map(sub, astuple(self), astuple(other)))

    def __mul__(self, count: int) -> "PassCost":
        return PassCost(*(figure * count for figure in astuple(self)))


@dataclass(frozen=True)
class Drawing:
    """Hold what drawing images of one size takes.

    Attributes:
        count_velocity: counts the peak bytes of one image's velocity without a gradient.
        decoding: of its latents.
    """

    count_velocity: Callable[[], int] = field(repr=False, compare=False)
    decoding: Decoding

    def peak(self, batch: int, device: str) -> int:
        """Return the most bytes that a batch takes: first each velocity, then its decoding."""
        return max(batch * self.count_velocity(), self.decoding.peak(batch, device))


@dataclass(frozen=True)
class ModelSize:
    """Hold the sizes that a run's plan needs."""

    network: int  # parameters of the network that is trained
    trained: int  # parameters that are trained
    tokens: int  # per image
    vae: int  # parameters
    encoders: int  # parameters of the text encoders
    rounded: int  # of the network's parameters, those that quantisation rounds
    encoders_rounded: int  # of the text encoders' parameters, those that quantisation rounds
    blocks: int  # repeated blocks of the network
    in_blocks: int  # of the network's parameters, those of its blocks
    largest_block: int  # parameters
    most_kept: int  # bytes that `cost.kept` stays well below
    count_cost: Callable[[], PassCost] = field(repr=False, compare=False)
    drawing: Drawing  # of a run's images
    judged: Drawing  # of images that are evaluated
    # FLOP of decoding a video; None for a model of pictures
    count_decoding: Callable[[], int] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def cost(self) -> PassCost:
        """What a training pass costs, counted when it is first asked for: a large model takes seconds."""
        return self.count_cost()
