"""The `aesthetic` reward: the beauty of a picture by LAION's aesthetic predictor."""

from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from marble_cli.pretrained import check_tensors, loading
from marble_cli.rewards.testing.pictures import draw_noise, photograph
from marble_reward_clip.clip import PUBLISHED, Clip, clip_source, preprocessing


class Predictor(nn.Module):
    """Maps embeddings [B, D] of length 1 to scores [B] by linear layers with only dropout between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        scores: Tensor = self.layers(embeddings)[:, 0]
        return scores


class Aesthetic:
    """The beauty of the picture, whatever its prompt: LAION's aesthetic predictor v2; about 1 to 10."""

    license = "Apache-2.0; weights MIT (openai/clip-vit-*) and Apache-2.0 (predictor)"
    citation = "LAION-5B, arXiv 2210.08402; github.com/christophschuhmann/improved-aesthetic-predictor"
    loads: ClassVar = {"model": PUBLISHED}

    def __init__(
        self,
        model: str = "openai/clip-vit-large-patch14",
        predictor: str = "ttj/sac-logos-ava1-l14-linearMSE",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load the CLIP model whose embeddings the predictor was trained on, and the predictor.

        Args:
            model: the CLIP model: a folder or a repository of the Hugging Face hub.
            predictor: a folder or repository with the predictor's weights in model.safetensors.
            device: where CLIP computes; the predictor is small and stays on the CPU.
            dtype: precision of CLIP; the predictor computes in float32.

        Raises:
            OSError: either cannot be found or fetched, is incomplete, or has no safetensors weights.
        """
        self.clip = Clip(model, device, dtype)
        self.preprocess = preprocessing(model)
        self.predictor = load_predictor(predictor, self.clip.model.config.projection_dim)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; resized, cropped and normalised as the CLIP model's image processor
                says.

        Returns:
            [B] float32 on the CPU; infinite, as of a failure, where the model overflowed.
        """
        scores: Tensor = self.predictor(self.clip.images(images, self.preprocess))
        return scores.masked_fill(scores.isnan(), torch.inf)

    @staticmethod
    def examples() -> list[Any]:
        """Return a pair: a photograph above noise."""
        return [((photograph(), ""), (draw_noise(), ""))]


def load_predictor(source: str, width: int) -> Predictor:
    """Load a predictor for embeddings of `width` numbers from a folder or a hub repository.

    Raises:
        OSError: the predictor cannot be found or fetched, or does not fit.
    """
    source = clip_source(source)
    predictor = Predictor(width)
    expected = f"model.safetensors with five layers on {width} numbers"
    with loading(f"the aesthetic predictor {source!r}", expected):
        weights = load_file(str(cached_file(source, "model.safetensors")))
        check_tensors(weights, predictor.state_dict())
        predictor.load_state_dict(weights)
    return predictor.eval().requires_grad_(False)
