"""The `editreward` reward: how people would rate an edit of a picture, by a vision-language model."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2VLImageProcessorPil
from transformers.utils.hub import cached_file

from marble_cli.pretrained import check_tensors, loading, resolve_source
from marble_cli.rewards.testing.pictures import draw_noise, draw_shape
from marble_cli.tokenizers import check_tokenizer
from marble_reward_editreward.chat import read_question, read_template
from marble_reward_editreward.model import EditRewardModel, rename
from marble_reward_editreward.prompt import FOLLOWING, QUALITY, REWARD_TOKEN

WEIGHTS = "model.safetensors"
PIXELS = 256 * 28 * 28  # of a picture, about: 448 x 448 if it is square


class EditReward:
    """How people would rate the edit, its faithfulness and its quality: EditReward; about -3 to 2."""

    license = "Apache-2.0; weights as their page says (TIGER-Lab/EditReward-*), trained on CC BY-NC 4.0 data"
    citation = "EditReward, arXiv 2509.26346; Qwen2.5-VL, arXiv 2502.13923"
    loads: ClassVar = {"model": {"TIGER-Lab/EditReward-Qwen2.5-VL-7B": 7_753_117_796}}

    def __init__(
        self,
        model: str = "TIGER-Lab/EditReward-Qwen2.5-VL-7B",
        base: str = "Qwen/Qwen2.5-VL-7B-Instruct",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Load the model and its tokenizer.

        Args:
            model: a folder or a repository of the Hugging Face hub with EditReward's model.safetensors.
            base: a folder or repository with the configuration, the tokenizer and the chat template of the
                model that it was trained from: Qwen2.5-VL-7B-Instruct or MiMo-VL-7B-SFT-2508. Its weights are
                not used.
            device: where to compute.
            dtype: precision of Qwen2.5-VL; the heads compute in float32. The published weights are bfloat16.

        Raises:
            OSError: a file cannot be found or fetched, or the files do not belong together.
        """
        source, base = resolve_source(model), resolve_source(base)
        expected = "config.json, tokenizer and chat template of Qwen2.5-VL"
        with loading(f"the configuration and tokenizer {base!r}", expected):
            config: Any = Qwen2_5_VLConfig.from_pretrained(base)
            tokenizer: Any = AutoTokenizer.from_pretrained(base)
            check_tokenizer(tokenizer, config.text_config.vocab_size, base)
            tokenizer.add_tokens(REWARD_TOKEN, special_tokens=True)
            template = read_template(base, tokenizer)
            self.questions = [
                read_question(text, tokenizer, template, config) for text in (FOLLOWING, QUALITY)
            ]
        with loading(f"EditReward {source!r}", f"{WEIGHTS}, trained from the base model {base!r}"):
            self.model = load_network(source, config, len(tokenizer), dtype).to(device)
        vision = config.vision_config
        self.merged = vision.spatial_merge_size**2  # patches of a token
        self.preprocess = Qwen2VLImageProcessorPil(
            size={"shortest_edge": PIXELS, "longest_edge": PIXELS},
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str], conditions: Tensor) -> Tensor:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W], the edited pictures; resized to about 200,704 pixels, with edges that
                28 divides.
            prompts: B instructions.
            conditions: uint8 [B, 3, H, W], the pictures that they were edited from.

        Returns:
            Means of the preference, averaged over both questions, [B] float32 on the CPU; infinite, as of a
            failure, where the model overflowed.

        Raises:
            TypeError: the images are not uint8.
            ValueError: one edge is more than 200 times as long as the other.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images of type {images.dtype}; expected torch.uint8, 0 to 255")
        edits = zip(conditions, images, prompts, strict=True)
        scores = torch.stack([self._score(*edit) for edit in edits]).cpu()
        return scores.masked_fill(scores.isnan(), torch.inf)

    def _score(self, before: Tensor, after: Tensor, instruction: str) -> Tensor:
        """Score an edit by itself: without padding, neighbours cannot change a score."""
        pictures = self.preprocess([before, after], return_tensors="pt").to(self.model.device)
        count = len(pictures["pixel_values"]) // 2 // self.merged
        picture = [self.model.config.image_token_id] * count
        means = []
        for head, question in enumerate(self.questions):
            tokens = torch.tensor(question.tokens(picture, instruction), device=self.model.device)
            means.append(self.model(tokens, **pictures, head=head)[0])
        return torch.stack(means).mean()

    @staticmethod
    def examples() -> list[Any]:
        """Return pairs of edits: a circle that became red as asked, above a blue one and above noise."""
        before, prompt = draw_shape("blue", "circle"), "Make the circle red."
        better: Any = (draw_shape("red", "circle"), prompt, {}, before)
        return [(better, (worse, prompt, {}, before)) for worse in (before, draw_noise())]


def load_network(source: str, config: Any, vocabulary: int, dtype: torch.dtype) -> Any:
    """Load an `EditRewardModel` in evaluation mode and without gradients.

    Args:
        source: a folder or a hub repository.
        config: a Qwen2_5_VLConfig, that of the base model.
        vocabulary: number of the tokenizer's tokens; the weights have an embedding for each.
        dtype: precision of the weights, except for the heads'.

    Raises:
        Exception: of many kinds; see `loading`. A ValueError if a tensor is missing or has another shape.
    """
    config.text_config.vocab_size = vocabulary
    weights = rename(load_file(str(cached_file(source, WEIGHTS))))
    with torch.device("meta"):
        check_tensors(weights, EditRewardModel(config).state_dict())
    load: Any = EditRewardModel.from_pretrained
    return load(None, config=config, state_dict=weights, dtype=dtype).eval().requires_grad_(False)
