"""Leave images out of training, and weigh the others so that the step's gradient keeps its meaning.

A loss of the step is sum_i (p_i P_i + q_i N_i). In other words, image i has the terms

    (p_i - q_i)/2 (P_i - N_i)   the signal, in which rewards have their say: zero for an image of a dead group
    (p_i + q_i)/2 (P_i + N_i)   the shared term, a pull towards the behaviour policy, and with it the KL term

`ImageWeights` are factors of these terms. As they depend on the image alone, losses may be mixed before or
after they are weighed, so that amortised steps stay exact.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marble_cli.objective.coefficients import Coefficients


@dataclass(frozen=True)
class ImageWeights:
    """Factors [n] float64 of every image's terms; all three are zero if it is not trained on."""

    signal: Tensor
    shared: Tensor
    kl: Tensor

    @property
    def trained(self) -> Tensor:
        """[n] bool, true for the images that are trained on."""
        return self.signal > 0

    def weigh(self, losses: Coefficients) -> Coefficients:
        """Return the coefficients [n] or [R, n] with which images weigh these factors."""
        signal = (losses.p - losses.q) / 2 * self.signal
        shared = (losses.p + losses.q) / 2 * self.shared
        return Coefficients(shared + signal, shared - signal)

    def gated(self, opened: Tensor) -> "ImageWeights":
        """Multiply the factors of the KL term by `opened` [n]."""
        return replace(self, kl=self.kl * opened)

    def sampled(self, drawn: Tensor, probabilities: Tensor) -> "ImageWeights":
        """Keep the images that were `drawn` [n] bool, over the `probabilities` [n] of that."""
        factor = torch.where(drawn, 1.0 / probabilities, 0.0)
        return ImageWeights(self.signal * factor, self.shared * factor, self.kl * factor)


def drop(dropped: Tensor, scored: Tensor) -> ImageWeights | None:
    """Leave out images without signal; None if that leaves nothing out or nothing over.

    The signal of the others keeps its factor 1: `n_k` counts dropped images too, so the part of every
    reward's gradient that the reward has a say in is that of all images. Shared terms and the KL term become
    means over the images that are left, so that their strength does not depend on how many are dropped.

    Args:
        dropped: [n] bool, images without advantage in any reward.
        scored: [n] bool, images that any reward applies to; some of them are left.
    """
    kept = (~dropped).double()
    if dropped.all() or not dropped.any():
        return None
    return ImageWeights(kept, kept * _ratio(scored, kept), kept * _ratio(torch.ones_like(scored), kept))


def alike(count: int) -> ImageWeights:
    """Weigh so many images by 1."""
    one = torch.ones(count, dtype=torch.float64)
    return ImageWeights(one, one, one)


def _ratio(images: Tensor, kept: Tensor) -> Tensor:
    """Return the number of these images over that of the kept ones among them."""
    return images.sum() / (images * kept).sum()
