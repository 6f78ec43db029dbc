"""Convert published pickled weights to a folder that a reward loads.

Usage: python -m marble_reward_clip.convert --help. Only this command, run once by hand, reads a pickled file.
It uses torch's restricted unpickler, which creates only tensors and plain containers, and writes safetensors.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from marble_cli.pretrained import check_empty, check_tensors, loading, read_pickled, resolve_source
from marble_reward_clip.aesthetic import Predictor

TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
FILE = "Download it again, or name the right one."
EMBEDDING = 768  # numbers in an embedding of CLIP ViT-L/14

# From open_clip's names to those of transformers' CLIPModel.
NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
# A matrix of `x @ projection` in open_clip, the weight of a linear layer in transformers.
TRANSPOSED = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)(weight|bias)")
PARTS = {
    "ln_1.": "layer_norm1",
    "ln_2.": "layer_norm2",
    "attn.out_proj.": "self_attn.out_proj",
    "mlp.c_fc.": "mlp.fc1",
    "mlp.c_proj.": "mlp.fc2",
}
PACKED = "attn.in_proj_"  # rows of query, key and value, in this order


def vit_h_14() -> CLIPConfig:
    """Return the architecture of HPS v2: open_clip's ViT-H-14, whose activation is the exact GELU."""
    common = {"hidden_act": "gelu", "num_attention_heads": 16, "projection_dim": 1024}
    text = {**common, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision = {
        **common,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "image_size": 224,
        "patch_size": 14,
    }
    return CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=1024, architectures=["CLIPModel"]
    )


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of open_clip's CLIP to those of transformers' CLIPModel; drop unknown names."""
    return dict(pair for name, tensor in state.items() for pair in _renamed(name, tensor))


def _renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if name in NAMES:
        yield NAMES[name], tensor
    elif name in TRANSPOSED:
        yield TRANSPOSED[name], tensor.T.contiguous()
    elif match := BLOCK.fullmatch(name):
        visual, layer, part, kind = match.groups()
        block = f"{'vision_model' if visual else 'text_model'}.encoder.layers.{layer}"
        if part == PACKED:
            for short, rows in zip("qkv", tensor.chunk(3), strict=True):
                yield f"{block}.self_attn.{short}_proj.{kind}", rows.contiguous()
        elif part in PARTS:
            yield f"{block}.{PARTS[part]}.{kind}", tensor


def convert_hpsv2(checkpoint: Path, folder: Path, tokenizer: str) -> None:
    """Write the CLIPModel folder of an HPS v2 or v2.1 checkpoint.

    Args:
        checkpoint: the published .pt file.
        folder: gets config.json, model.safetensors and the tokenizer.
        tokenizer: a folder or hub repository with CLIP's tokenizer, which the checkpoint lacks.

    Raises:
        OSError: the checkpoint or the tokenizer is not as expected.
    """
    config = vit_h_14()
    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    weights = from_open_clip(read_checkpoint(checkpoint))
    with loading(f"the checkpoint {str(checkpoint)!r}", "the weights of an open_clip ViT-H-14", FILE):
        check_tensors(weights, expected)
    source = resolve_source(tokenizer)
    with loading(f"the tokenizer of {source!r}", "the files of CLIP's tokenizer"):
        words = AutoTokenizer.from_pretrained(source)
    write_weights(weights, folder)
    config.save_pretrained(folder)
    words.save_pretrained(folder)


def convert_aesthetic(checkpoint: Path, folder: Path) -> None:
    """Write the folder of the aesthetic predictor sac+logos+ava1-l14-linearMSE.

    Raises:
        OSError: the checkpoint is not as expected.
    """
    weights = read_checkpoint(checkpoint)
    expected = Predictor(EMBEDDING).state_dict()
    with loading(f"the checkpoint {str(checkpoint)!r}", f"five linear layers on {EMBEDDING} numbers", FILE):
        check_tensors(weights, expected)
    write_weights({name: weights[name] for name in expected}, folder)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a pickled checkpoint, by name.

    Raises:
        OSError: there is no such file, or it holds something else.
    """
    with loading(f"the checkpoint {str(path)!r}", "a file of torch tensors by name", FILE):
        state = read_pickled(path)
        state = state.get("state_dict", state)
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def write_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """Write model.safetensors, as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert the checkpoint that the command line names; return 0, or 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m marble_reward_clip.convert",
        description="Convert published pickled weights to safetensors; rewards read no pickled file.",
    )
    models = parser.add_subparsers(dest="model", required=True)
    hpsv2 = models.add_parser("hpsv2", help="HPS_v2.1_compressed.pt of xswu/HPSv2")
    aesthetic = models.add_parser("aesthetic", help="sac+logos+ava1-l14-linearMSE.pth")
    for command in (hpsv2, aesthetic):
        command.add_argument("checkpoint", type=Path, help="the published file")
        command.add_argument("folder", type=Path, help="a new folder")
    hpsv2.add_argument(
        "--tokenizer",
        default=TOKENIZER,
        help="a folder or hub repository with CLIP's tokenizer (%(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        check_empty(options.folder)
        if options.model == "hpsv2":
            convert_hpsv2(options.checkpoint, options.folder, options.tokenizer)
        else:
            convert_aesthetic(options.checkpoint, options.folder)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
