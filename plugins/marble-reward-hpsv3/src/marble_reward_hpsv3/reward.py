"""The `hpsv3` reward: how much people prefer a picture for its prompt, by a vision-language model."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLImageProcessorPil
from transformers.utils.hub import cached_file

from marble_cli.pretrained import check_tensors, loading, resolve_source
from marble_cli.rewards.testing.pictures import prompt_examples
from marble_cli.tokenizers import check_tokenizer
from marble_reward_hpsv3.model import HPSv3Model, rename
from marble_reward_hpsv3.prompt import AFTER_PICTURE, BEFORE_PICTURE, INSTRUCTION, REWARD_TOKEN

WEIGHTS = "HPSv3.safetensors"
PIXELS = 256 * 28 * 28  # of a picture, about: 448 x 448 if it is square


class HPSv3:
    """How much people prefer the picture for its prompt: HPSv3; about 10 for pictures of good models."""

    license = "Apache-2.0; weights Apache-2.0 (MizzenAI/HPSv3)"
    citation = "HPSv3, arXiv 2508.03789; Qwen2-VL, arXiv 2409.12191"
    loads: ClassVar = {"model": {"MizzenAI/HPSv3": 7_748_610_610}}
    examples = staticmethod(prompt_examples)

    def __init__(
        self,
        model: str = "MizzenAI/HPSv3",
        base: str = "Qwen/Qwen2-VL-7B-Instruct",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Load the model and its tokenizer.

        Args:
            model: a folder or a repository of the Hugging Face hub with HPSv3.safetensors.
            base: a folder or repository with the configuration and the tokenizer of Qwen2-VL-7B-Instruct.
                Its weights are not used.
            device: where to compute.
            dtype: precision of Qwen2-VL; the head computes in float32. The published weights are bfloat16.

        Raises:
            OSError: a file cannot be found or fetched, or the files do not belong together.
        """
        source, base = resolve_source(model), resolve_source(base)
        with loading(f"the configuration and tokenizer {base!r}", "config.json and Qwen2-VL's tokenizer"):
            config: Any = Qwen2VLConfig.from_pretrained(base)
            self.tokenizer = AutoTokenizer.from_pretrained(base)
            check_tokenizer(self.tokenizer, config.text_config.vocab_size, base)
            self.tokenizer.add_tokens(REWARD_TOKEN, special_tokens=True)
        with loading(f"HPSv3 {source!r}", f"{WEIGHTS}, trained from the base model {base!r}"):
            self.model = load_network(source, config, len(self.tokenizer), dtype).to(device)
        vision = config.vision_config
        self.preprocess = Qwen2VLImageProcessorPil(
            size={"shortest_edge": PIXELS, "longest_edge": PIXELS},
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
        )

    @torch.no_grad()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score a batch.

        Args:
            images: uint8 [B, 3, H, W]; resized to about 200,704 pixels, with edges that 28 divides.
            prompts: B prompts.

        Returns:
            Means of the preference, [B] float32 on the CPU; infinite, as of a failure, where the model
            overflowed.

        Raises:
            TypeError: the images are not uint8.
            ValueError: one edge is more than 200 times as long as the other.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images of type {images.dtype}; expected torch.uint8, 0 to 255")
        scores = torch.stack([self._score(*pair) for pair in zip(images, prompts, strict=True)]).cpu()
        return scores.masked_fill(scores.isnan(), torch.inf)

    def _score(self, image: Tensor, prompt: str) -> Tensor:
        """Score a picture by itself, some 800 tokens: without padding, neighbours cannot change a score."""
        picture = self.preprocess(image, return_tensors="pt").to(self.model.device)
        tokens = self.tokens(prompt, len(picture["pixel_values"]))
        scores: Tensor = self.model(torch.tensor(tokens, device=self.model.device), **picture)
        return scores[0]

    def tokens(self, prompt: str, patches: int) -> list[int]:
        """Return the tokens of the question about a picture, up to the token at which the score is read.

        What the chat has after that token cannot change the score. Marks such as <|im_end|> are text in a
        prompt.

        Args:
            prompt: of the picture.
            patches: number of the picture's patches; Qwen2-VL merges squares of them into tokens.
        """
        config = self.model.config
        merged = patches // config.vision_config.spatial_merge_size**2
        before, after, mark = (
            self.tokenizer.encode(text, add_special_tokens=False)
            for text in (BEFORE_PICTURE, AFTER_PICTURE, REWARD_TOKEN)
        )
        question = self.tokenizer.encode(
            INSTRUCTION.replace("{prompt}", prompt), add_special_tokens=False, split_special_tokens=True
        )
        return [*before, *[config.image_token_id] * merged, *after, *question, *mark]


def load_network(source: str, config: Any, vocabulary: int, dtype: torch.dtype) -> Any:
    """Load an `HPSv3Model` in evaluation mode and without gradients.

    Args:
        source: a folder or a hub repository.
        config: a Qwen2VLConfig, that of the base model.
        vocabulary: number of the tokenizer's tokens; the weights have an embedding for each.
        dtype: precision of the weights, except for the head's.

    Raises:
        Exception: of many kinds; see `loading`. A ValueError if a tensor is missing or has another shape.
    """
    config.text_config.vocab_size = vocabulary
    weights = rename(load_file(str(cached_file(source, WEIGHTS))))
    with torch.device("meta"):
        check_tensors(weights, HPSv3Model(config).state_dict())
    load: Any = HPSv3Model.from_pretrained
    return load(None, config=config, state_dict=weights, dtype=dtype).eval().requires_grad_(False)
