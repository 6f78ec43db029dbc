"""HPSv3's network: Qwen2-VL and a small head at one token of the text."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel, Qwen2VLPreTrainedModel

# From the names of the published weights, which are those of transformers 4.45, to names of transformers 5.
RENAMED = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(?!visual\.|language_model\.)", "model.language_model."),
)


class HPSv3Model(Qwen2VLPreTrainedModel):
    """Scores pictures for the questions about them: mean and spread of a preference."""

    _keep_in_fp32_modules_strict = {"rm_head"}  # noqa: RUF012

    def __init__(self, config: Qwen2VLConfig) -> None:
        """Draw random weights; `load_network` of `reward.py` loads published ones."""
        super().__init__(config)
        width = config.text_config.hidden_size  # type: ignore[union-attr]
        self.model = Qwen2VLModel(config)
        self.rm_head = nn.Sequential(
            nn.Linear(width, 1024),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Return the head's two outputs for one picture, read at the last token.

        Args:
            input_ids: [length] tokens, with image tokens where the picture belongs.
            pixel_values: [patches, numbers of a patch].
            image_grid_thw: [1, 3] numbers of patches: 1, rows, columns.

        Returns:
            [2] float32: mean and spread.
        """
        # As in training, tokens are numbered one by one. Qwen2-VL numbers a picture's by row and column.
        places = torch.arange(len(input_ids), device=input_ids.device).expand(3, 1, -1)
        tokens = self.model(
            input_ids=input_ids[None],
            position_ids=places,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            use_cache=False,
        ).last_hidden_state
        preference: Tensor = self.rm_head(tokens[0, -1].float())
        return preference


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published weights to those of `HPSv3Model`; the language model's output has no place there."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    renamed.pop("lm_head.weight", None)
    return renamed
