"""EditReward's network: Qwen2.5-VL and two small heads at one token of the text."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2_5_VLPreTrainedModel

# From names of tensors before transformers 4.52 to later ones.
RENAMED = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(?!visual\.|language_model\.)", "model.language_model."),
)


class EditRewardModel(Qwen2_5_VLPreTrainedModel):
    """Scores edits for questions about them: mean and uncertainty of a preference, by a head per question."""

    _keep_in_fp32_modules_strict = {"rm_heads"}  # noqa: RUF012

    def __init__(self, config: Qwen2_5_VLConfig) -> None:
        """Draw random weights; `load_network` of `reward.py` loads published ones."""
        super().__init__(config)
        width = config.text_config.hidden_size  # type: ignore[union-attr]
        self.model = Qwen2_5_VLModel(config)
        self.rm_heads = nn.ModuleDict({f"head_{place}": _head(width) for place in range(2)})
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, pixel_values: Tensor, image_grid_thw: Tensor, head: int) -> Tensor:
        """Return a head's two outputs for one question about two pictures, read at the last token.

        Args:
            input_ids: [length] tokens, with image tokens where the pictures belong.
            pixel_values: [patches of both pictures, numbers of a patch].
            image_grid_thw: [2, 3] numbers of patches of each picture: 1, rows, columns.
            head: 0 for the question about following, 1 for the one about quality.

        Returns:
            [2] float32: the mean, and the logarithm of its uncertainty.
        """
        # As in training, tokens are numbered one by one. Qwen2.5-VL numbers a picture's by row and column.
        places = torch.arange(len(input_ids), device=input_ids.device).expand(3, 1, -1)
        tokens = self.model(
            input_ids=input_ids[None],
            position_ids=places,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            use_cache=False,
        ).last_hidden_state
        preference: Tensor = self.rm_heads[f"head_{head}"](tokens[0, -1].float())
        return preference


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights to those of `EditRewardModel`; the language model's output has no place there."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    renamed.pop("lm_head.weight", None)
    return renamed
