"""The conversion of published weights against CLIP written out under open_clip's names."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from marble_reward_clip import convert
from marble_reward_clip.clip import Clip
from marble_reward_clip.hpsv2 import HpsV2
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from .reference import pictures
from .tiny_models import clip_config, write_predictor, write_tokenizer


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = {"c_fc": nn.Linear(width, inner), "gelu": nn.GELU(), "c_proj": nn.Linear(inner, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, inner) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(
        self, side: int, patch: int, width: int, layers: int, heads: int, inner: int, out: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, inner)
        self.proj = nn.Parameter(torch.randn(width, out))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """A CLIP with the architecture and the names of open_clip, sized like a transformers configuration."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        text, vision = config.text_config, config.vision_config
        self.visual = Visual(
            vision.image_size,
            vision.patch_size,
            vision.hidden_size,
            vision.num_hidden_layers,
            vision.num_attention_heads,
            vision.intermediate_size,
            config.projection_dim,
        )
        self.transformer = Transformer(
            text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size
        )
        self.token_embedding = nn.Embedding(text.vocab_size, text.hidden_size)
        self.positional_embedding = nn.Parameter(torch.randn(text.max_position_embeddings, text.hidden_size))
        self.ln_final = nn.LayerNorm(text.hidden_size)
        self.text_projection = nn.Parameter(torch.randn(text.hidden_size, config.projection_dim))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def texts(self, tokens: Tensor, end: int) -> Tensor:
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        later = torch.full((length, length), -torch.inf).triu(1)
        x = self.ln_final(self.transformer(x, later))
        return x[torch.arange(len(x)), (tokens == end).int().argmax(dim=1)] @ self.text_projection


def open_clip(config: CLIPConfig) -> OpenClip:
    """Random in every parameter, biases and norms too, and far from zero, so that nothing may be mixed up."""
    torch.manual_seed(0)
    model = OpenClip(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> CLIPConfig:
    """Replace ViT-H-14 by a small architecture with the same activation."""
    config = clip_config(hidden_act=convert.vit_h_14().vision_config.hidden_act, num_attention_heads=4)
    monkeypatch.setattr(convert, "vit_h_14", lambda: config)
    return config


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer", 77)
    return tmp_path / "tokenizer"


@torch.no_grad()
def test_converted_model_embeds_like_the_original(
    small: CLIPConfig, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = open_clip(small)
    checkpoint, folder = tmp_path / "HPS_v2.1_compressed.pt", tmp_path / "models" / "hpsv2"
    torch.save({"epoch": 1, "state_dict": original.state_dict()}, checkpoint)
    assert convert.main(["hpsv2", str(checkpoint), str(folder), "--tokenizer", str(tokenizer)]) == 0
    assert capsys.readouterr().out == f"wrote {folder}\n"

    converted = CLIPModel.from_pretrained(folder, use_safetensors=True)
    pixels, tokens = torch.randn(3, 3, 32, 32), torch.tensor([[0, 2, 3, 5, 1], [0, 4, 1, 1, 1]])
    images = nn.functional.normalize(original.visual(pixels))
    texts = nn.functional.normalize(original.texts(tokens, end=1))
    found = converted(input_ids=tokens, pixel_values=pixels)
    torch.testing.assert_close(found.image_embeds, images, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.text_embeds, texts, rtol=1e-5, atol=1e-6)
    assert converted.logit_scale == original.logit_scale

    clip = Clip(str(folder), "cpu", torch.float32)
    torch.testing.assert_close(clip.texts(["a red cup", "blue"]), texts, rtol=1e-5, atol=1e-6)
    assert HpsV2(str(folder))(pictures(2, 40, 30), ["a cup", ""]).isfinite().all()


@torch.no_grad()
def test_another_activation_changes_the_embeddings(small: CLIPConfig) -> None:
    original, pixels = open_clip(small), torch.randn(2, 3, 32, 32)
    weights = convert.from_open_clip(original.state_dict())
    images = nn.functional.normalize(original.visual(pixels))
    differences = {}
    for activation in ("gelu", "quick_gelu"):
        model = CLIPModel(clip_config(hidden_act=activation, num_attention_heads=4)).eval()
        model.load_state_dict(weights)
        seen = model.visual_projection(model.vision_model(pixels).pooler_output)
        differences[activation] = (nn.functional.normalize(seen) - images).abs().max().item()
    assert differences["gelu"] < 1e-6
    assert differences["quick_gelu"] > 1e-4


def test_architecture_has_every_tensor_of_open_clips_vit_h_14() -> None:
    """Also compares the number of parameters with the published one."""
    config = convert.vit_h_14()
    with torch.device("meta"):
        original, ours = OpenClip(config).state_dict(), CLIPModel(config).state_dict()
    converted = convert.from_open_clip(original)
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }
    assert sum(tensor.numel() for tensor in ours.values()) == 986_109_441
    assert config.vision_config.hidden_size // config.vision_config.num_attention_heads == 80
    assert config.text_config.hidden_size // config.text_config.num_attention_heads == 64
    assert (config.text_config.vocab_size, config.text_config.eos_token_id) == (49408, 49407)
    assert config.vision_config.hidden_act == config.text_config.hidden_act == "gelu"
    assert config.vision_config.layer_norm_eps == config.text_config.layer_norm_eps == nn.LayerNorm(1).eps


def test_a_converted_predictor_holds_the_same_layers(tmp_path: Path) -> None:
    write_predictor(tmp_path / "original", width=768)
    weights = load_file(tmp_path / "original" / "model.safetensors")
    torch.save(weights, tmp_path / "predictor.pth")
    assert convert.main(["aesthetic", str(tmp_path / "predictor.pth"), str(tmp_path / "new")]) == 0
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert convert.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    return err


def test_a_missing_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "absent.pt' cannot be loaded: [Errno 2] No such file" in refusal(
        ["hpsv2", str(tmp_path / "absent.pt"), str(tmp_path / "new")], capsys
    )


def test_checkpoint_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    for model, lacks in (("hpsv2", "it lacks 910 of 910 tensors"), ("aesthetic", "it lacks 9 of 10 tensors")):
        assert lacks in refusal([model, str(tmp_path / "other.pt"), str(tmp_path / "new")], capsys)
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": np.random.default_rng(0)}, tmp_path / "object.pt")
    said = refusal(["hpsv2", str(tmp_path / "object.pt"), str(tmp_path / "new")], capsys)
    assert "cannot be loaded: it is no torch file, or holds more than tensors." in said


def test_nonempty_folder_is_refused_and_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_predictor(tmp_path / "full", width=768)
    torch.save(load_file(tmp_path / "full" / "model.safetensors"), tmp_path / "predictor.pth")
    said = refusal(["aesthetic", str(tmp_path / "predictor.pth"), str(tmp_path / "full")], capsys)
    assert "is not empty. Name a new folder." in said
