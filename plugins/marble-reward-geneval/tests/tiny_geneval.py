"""Small random models of the classes that the `geneval` reward loads, written to folders.

Some of their weights are scaled up, so that they find different objects in different places with high scores.
An untrained detector would find nothing.
"""

import json
from pathlib import Path

import numpy as np
import torch
from marble_reward_geneval.classes import CLASSES
from marble_reward_geneval.detector import Detector
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    ResNetConfig,
    SwinConfig,
)

from marble_cli.rewards.testing.pictures import photograph

# COCO's own names of three of GenEval's classes.
COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
LABELS = [COCO_NAMES.get(name, name) for name in CLASSES]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_mask2former(folder: Path, side: int = 64, seed: int = 0) -> Path:
    """Write a Mask2Former with Swin, 12 queries and COCO's 80 labels, for pictures of `side` pixels."""
    torch.manual_seed(seed)
    backbone = SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        image_size=side,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=12,
        id2label=dict(enumerate(LABELS)),
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        model.class_predictor.weight.normal_(std=1.2)
        model.model.pixel_level_module.decoder.mask_projection.weight.normal_(std=1.0)
        model.model.transformer_module.queries_features.weight.normal_(std=3.0)
    model.save_pretrained(folder)
    _write_processor(folder, "Mask2FormerImageProcessor", side, size_divisor=32)
    return folder


def write_detr(folder: Path, side: int = 64, seed: int = 0) -> Path:
    """Write a DETR with a ResNet, 10 queries and COCO's 80 labels, numbered up to 90 as usual."""
    torch.manual_seed(seed)
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    labels = {0: "N/A"} | {number + 1: label for number, label in enumerate(LABELS)}
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=10,
        id2label=labels,
        init_std=0.2,
    )
    model = DetrForObjectDetection(config).eval()
    with torch.no_grad():
        model.model.query_position_embeddings.weight.normal_(std=3.0)
        model.class_labels_classifier.weight.normal_(std=1.0)
    model.save_pretrained(folder)
    _write_processor(folder, "DetrImageProcessor", side)
    return folder


def label_for_examples(folder: Path) -> None:
    """Exchange a detector's labels, so that it sees a cat and no dog on the reward's photograph.

    Labels of random models mean nothing.
    """
    picture = torch.from_numpy(np.array(photograph())).permute(2, 0, 1)[None]
    found = next(Detector(str(folder), "cpu", torch.float32, 1)(picture, 0.3))
    counts = {name: sum(thing.score > 0.3 for thing in things) for name, things in found.items()}
    rarest = min((name for name in counts if counts[name]), key=counts.__getitem__)
    absent = next(name for name in LABELS if name not in counts)
    config = json.loads((folder / "config.json").read_text())
    for name, other in (("cat", rarest), ("dog", absent)):
        swapped = {name: other, other: name}
        config["id2label"] = {key: swapped.get(label, label) for key, label in config["id2label"].items()}
    config["label2id"] = {label: int(key) for key, label in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))


def write_clip(folder: Path, side: int = 32, seed: int = 0) -> Path:
    """Write a CLIP model whose tokenizer knows the words of GenEval's texts."""
    torch.manual_seed(seed)
    texts = (
        "a photo of object red orange yellow green blue purple pink brown black white - colored computer tv"
    )
    words = ["<start>", "<end>", *dict.fromkeys([*texts.split(), *" ".join(LABELS).split()])]
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **small,
        "vocab_size": len(words),
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {**small, "image_size": side, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
        unk_token="<end>",
        model_max_length=16,
    ).save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def _write_processor(folder: Path, kind: str, side: int, **more: int) -> None:
    processor = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": side, "longest_edge": 2 * side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        **more,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
