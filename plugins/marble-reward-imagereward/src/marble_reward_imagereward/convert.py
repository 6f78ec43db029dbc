"""From the published ImageReward.pt to a folder that the reward loads: python -m marble_reward_imagereward.convert --help.

This command, run once by hand, is all that reads a pickled file, and it does so with torch's restricted unpickler,
which makes tensors and plain containers only. What it writes is safetensors.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from marble_reward_imagereward.loading import loading
from marble_reward_imagereward.model import ImageRewardModel, published_config

TOKENIZER = "google-bert/bert-base-uncased"

# The published names that differ from ours, in order; each holds for a part of a name.
RENAMED = (
    (r"^mlp\.layers\.", "head."),
    (r"^blip\.text_encoder\.", "text_model."),
    (r"^blip\.visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.norm(1|2)\.", r"\1.layer_norm\2."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^(vision_model\.encoder\.layers\.\d+)\.attn\.qkv\.", r"\1.self_attn.qkv."),
)


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published weights under the names of `ImageRewardModel`; names that are not its keep theirs."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def read(checkpoint: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the checkpoint that `expected` names, under these names.

    The projections of BLIP's contrastive loss, which the score does not use, are left out.

    Raises:
        OSError: there is no such file, or it lacks a tensor, or one has another shape.
    """
    with loading(
        f"the checkpoint {str(checkpoint)!r}",
        "the weights of ImageReward v1.0",
        "Download it again, or name the right one.",
    ):
        try:
            weights = rename(torch.load(checkpoint, map_location="cpu", weights_only=True))
        except UnpicklingError as error:  # whose message advises to let the file run code
            raise ValueError("it is no torch file, or holds more than tensors") from error
        for name, tensor in expected.items():
            if name not in weights:
                raise ValueError(f"it holds no {name}")
            if weights[name].shape != tensor.shape:
                raise ValueError(f"{name} has shape {[*weights[name].shape]}, not {[*tensor.shape]}")
    return {name: weights[name].contiguous() for name in expected}


def convert(checkpoint: Path, folder: Path, tokenizer: str) -> None:
    """Write the folder of the published checkpoint.

    Args:
        checkpoint: ImageReward.pt.
        folder: written: config.json, model.safetensors and the tokenizer.
        tokenizer: a folder or hub repository with BERT's uncased tokenizer; the checkpoint holds none.

    Raises:
        OSError: the checkpoint, the tokenizer or the folder is not as expected.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{str(folder)!r} is not empty. Name a new folder.")
    config = published_config()
    with torch.device("meta"):
        expected = ImageRewardModel(config).state_dict()
    weights = read(checkpoint, expected)
    with loading(
        f"the tokenizer of {tokenizer!r}",
        "the files of BERT's uncased tokenizer",
        "Where the hub cannot be reached, fetch them elsewhere with `hf download` and give the folder.",
    ):
        words = AutoTokenizer.from_pretrained(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    words.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert what the command line names; 0, or 2 if it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m marble_reward_imagereward.convert",
        description="Turn the published pickled weights into a folder of safetensors, once; the reward reads no "
        "pickled file.",
    )
    parser.add_argument("checkpoint", type=Path, help="ImageReward.pt of THUDM/ImageReward")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument(
        "--tokenizer",
        default=TOKENIZER,
        help="a folder or hub repository with BERT's uncased tokenizer (%(default)s)",
    )
    asked = parser.parse_args(arguments)
    try:
        convert(asked.checkpoint, asked.folder, asked.tokenizer)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {asked.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
