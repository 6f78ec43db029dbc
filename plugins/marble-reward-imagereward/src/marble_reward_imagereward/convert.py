"""Convert the published ImageReward.pt to a folder that the reward loads.

Usage: python -m marble_reward_imagereward.convert --help. Only this command, run once by hand, reads a
pickled file. It uses torch's restricted unpickler, which creates only tensors and plain containers, and
writes safetensors.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from marble_cli.pretrained import check_empty, check_tensors, loading, read_pickled, resolve_source
from marble_reward_imagereward.model import ImageRewardModel, published_config

TOKENIZER = "google-bert/bert-base-uncased"

# From published names to ours: regular expressions and replacements, applied in this order.
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
    """Rename the published weights to those of `ImageRewardModel`; unknown names stay as they are."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def read_checkpoint(checkpoint: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the tensors that `expected` names from the published checkpoint.

    Leaves out the projections of BLIP's contrastive loss, which the score does not use.

    Raises:
        OSError: there is no such file, or a tensor is missing or has another shape.
    """
    remedy = "Download it again, or name the right one."
    with loading(f"the checkpoint {str(checkpoint)!r}", "the weights of ImageReward v1.0", remedy):
        weights = rename(read_pickled(checkpoint))
        check_tensors(weights, expected)
    return {name: weights[name].contiguous() for name in expected}


def convert(checkpoint: Path, folder: Path, tokenizer: str) -> None:
    """Write the model folder of the published checkpoint.

    Args:
        checkpoint: ImageReward.pt.
        folder: gets config.json, model.safetensors and the tokenizer.
        tokenizer: a folder or hub repository with BERT's uncased tokenizer, which the checkpoint lacks.

    Raises:
        OSError: the checkpoint, the tokenizer or the folder is not as expected.
    """
    check_empty(folder)
    config = published_config()
    with torch.device("meta"):
        expected = ImageRewardModel(config).state_dict()
    weights = read_checkpoint(checkpoint, expected)
    source = resolve_source(tokenizer)
    with loading(f"the tokenizer of {source!r}", "the files of BERT's uncased tokenizer"):
        words = AutoTokenizer.from_pretrained(source)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    words.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert the checkpoint that the command line names; return 0, or 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m marble_reward_imagereward.convert",
        description="Convert the published pickled weights to safetensors; the reward reads no pickled file.",
    )
    parser.add_argument("checkpoint", type=Path, help="ImageReward.pt of THUDM/ImageReward")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument(
        "--tokenizer",
        default=TOKENIZER,
        help="a folder or hub repository with BERT's uncased tokenizer (%(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        convert(options.checkpoint, options.folder, options.tokenizer)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
