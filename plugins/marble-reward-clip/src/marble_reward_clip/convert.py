"""From published pickled weights to a folder that a reward loads: python -m marble_reward_clip.convert --help.

This command, run once by hand, is all that reads a pickled file, and it does so with torch's restricted unpickler,
which makes tensors and plain containers only. What it writes is safetensors.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from marble_reward_clip.aesthetic import Predictor
from marble_reward_clip.loading import check_tensors, loading, locate

TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
FILE = "Download it again, or name the right one."
EMBEDDING = 768  # numbers in an embedding of CLIP ViT-L/14

# open_clip's names, and those of transformers' CLIPModel.
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
TRANSPOSED = {  # used as `x @ projection` there, as a linear layer here
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
PACKED = "attn.in_proj_"  # query, key and value on top of each other


def vit_h_14() -> CLIPConfig:
    """The architecture of HPS v2: open_clip's ViT-H-14, whose activation is the exact GELU."""
    common = {"hidden_act": "gelu", "num_attention_heads": 16, "projection_dim": 1024}
    text = {**common, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision = {
        **common, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "image_size": 224,
        "patch_size": 14,
    }  # fmt: skip
    return CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=1024, architectures=["CLIPModel"]
    )


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of open_clip's CLIP under the names of transformers' CLIPModel; names that are not its are left out."""
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
        folder: written: config.json, model.safetensors and the tokenizer.
        tokenizer: a folder or hub repository with CLIP's tokenizer; checkpoints hold none.

    Raises:
        OSError: the checkpoint or the tokenizer is not as expected.
    """
    config = vit_h_14()
    with torch.device("meta"):
        expected = CLIPModel(config).state_dict()
    weights = from_open_clip(read_checkpoint(checkpoint))
    with loading(f"the checkpoint {str(checkpoint)!r}", "the weights of an open_clip ViT-H-14", FILE):
        check_tensors(weights, expected)
    source = locate(tokenizer)
    with loading(f"the tokenizer of {source!r}", "the files of CLIP's tokenizer"):
        words = AutoTokenizer.from_pretrained(source)
    write(weights, folder)
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
    write({name: weights[name] for name in expected}, folder)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint, by name.

    Raises:
        OSError: there is none, or it holds something else.
    """
    with loading(f"the checkpoint {str(path)!r}", "a file of torch tensors by name", FILE):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:  # whose message advises to let the file run code
            raise ValueError("it is no torch file, or holds more than tensors") from error
        state = state.get("state_dict", state)
        return {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def check_new(folder: Path) -> None:
    """Nothing is written over.

    Raises:
        OSError: there is something in the folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{str(folder)!r} is not empty. Name a new folder.")


def write(weights: dict[str, Tensor], folder: Path) -> None:
    """Save the weights, as transformers does."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert what the command line names; 0, or 2 if it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m marble_reward_clip.convert",
        description="Turn published pickled weights into a folder of safetensors, once; rewards read no pickled file.",
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
    asked = parser.parse_args(arguments)
    try:
        check_new(asked.folder)
        if asked.model == "hpsv2":
            convert_hpsv2(asked.checkpoint, asked.folder, asked.tokenizer)
        else:
            convert_aesthetic(asked.checkpoint, asked.folder)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {asked.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
