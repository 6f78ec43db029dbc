"""ImageReward's network: BLIP's two encoders and a small head, saved and loaded as a transformers model."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipPreTrainedModel, BlipTextModel, BlipVisionModel

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of raw scores, as measured by the authors


class ImageRewardModel(BlipPreTrainedModel):
    """Scores pictures for prompts; the text encoder attends to the picture."""

    config_class = BlipConfig
    _keep_in_fp32_modules_strict = {"head"}  # noqa: RUF012

    def __init__(self, config: BlipConfig) -> None:
        """Draw random weights; `from_pretrained` loads a folder."""
        super().__init__(config)
        text: Any = config.text_config
        vision: Any = config.vision_config
        self.vision_model = BlipVisionModel(vision)
        self.text_model = BlipTextModel(text, add_pooling_layer=False)
        self.head = nn.Sequential(
            nn.Linear(text.hidden_size, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Score a batch.

        Args:
            pixel_values: [B, 3, side, side].
            input_ids: [B, length] tokens of the prompts.
            attention_mask: [B, length], 0 at padding.

        Returns:
            Standardised scores [B] float32.
        """
        patches = self.vision_model(pixel_values).last_hidden_state
        tokens = self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=patches,
            encoder_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device),
            is_decoder=False,
        ).last_hidden_state
        raw: Tensor = self.head(tokens[:, 0].float())[:, 0]
        return (raw - MEAN) / STD


def published_config() -> BlipConfig:
    """Return the architecture of ImageReward v1.0: BLIP with a ViT-L/16 at 224 px and BERT's base encoder."""
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    text = {
        "vocab_size": 30524,
        "hidden_size": 768,
        "encoder_hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    return BlipConfig(text_config=text, vision_config=vision, architectures=["ImageRewardModel"])
