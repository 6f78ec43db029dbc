"""The files of a LoRA act alike with and without alpha, and give back what was trained to the bit."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from marble_cli.checkpoint import lora, store, tensor_files
from marble_cli.checkpoint.comfyui import check_mapped
from marble_cli.checkpoint.export import export
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.errors import CheckpointError, RequestError
from tests.checkpoint.damage import relist, rewrite

SCALES = [2.0, 0.5, 1.0, 3.0, 48 / 32, 1 / 3, 7 / 24, 1e-3, 1000 / 3]
FILES = ("lora/pytorch_lora_weights.safetensors", "ema/pytorch_lora_weights.safetensors")


def trained(seed: int, rank: int = 3) -> dict[str, Tensor]:
    """Two layers with weights of every size down to the smallest that float32 has."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for layer in ("blocks.0.attn.to_q", "blocks.1.attn.to_out.0"):
        sizes = 10.0 ** torch.randint(-44, 3, (50, rank), generator=draw).double()
        state[f"transformer.{layer}.lora_A.weight"] = torch.randn(rank, 20, generator=draw)
        state[f"transformer.{layer}.lora_B.weight"] = (
            torch.randn(50, rank, generator=draw).double() * sizes
        ).float()
    return state


def saved(run: Path, scale: float) -> Path:
    state = store.TrainerState(1, {"behaviour": {"a": torch.ones(1)}, "optimizer": {}}, {}, scale=scale)
    return store.save(run, state, trained(0), trained(1), keep_last=1, best=False)


@pytest.mark.parametrize("scale", SCALES)
def test_files_hold_the_folded_lora_and_load_returns_the_trained_one(tmp_path: Path, scale: float) -> None:
    folder = saved(tmp_path, scale)
    state, *weights = store.load(folder)
    assert state.scale == scale
    assert state.tensors["optimizer"] == {}
    for name, before, after in zip(FILES, (trained(0), trained(1)), weights, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        written = load_file(folder / name)
        for key in before:
            if key.endswith("lora_A.weight"):
                up = key.replace("lora_A", "lora_B")
                wanted = scale * before[up].double() @ before[key].double()
                got = written[up].double() @ written[key].double()
                torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize(("scale", "kept"), [(2.0, 0), (1.0, 0), (4.0, 0), (3.0, 4), (1 / 3, 4)])
def test_tensor_is_kept_twice_only_if_folding_rounds_it(tmp_path: Path, scale: float, kept: int) -> None:
    assert len(load_file(saved(tmp_path, scale) / "optimizer.safetensors")) == kept


def test_scale_that_halves_subnormal_numbers_loses_nothing(tmp_path: Path) -> None:
    assert saved(tmp_path, 0.5)
    assert any(
        "lora_B" in key for key in load_file(tmp_path / "checkpoints/step-00000001/optimizer.safetensors")
    )


def test_headers_hold_what_every_peft_knows_and_equal_weights_are_equal_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "first", 1.5)
    for name in FILES:
        with safe_open(folder / name, "pt") as content:
            header = content.metadata()
        assert header.keys() == {"format", "lora_adapter_metadata"}
        assert header["format"] == "pt"
        settings = json.loads(header["lora_adapter_metadata"])
        assert settings == {
            "transformer.r": 3,
            "transformer.lora_alpha": 3,
            "transformer.target_modules": ["blocks.0.attn.to_q", "blocks.1.attn.to_out.0"],
        }
        fields = {field.name for field in dataclasses.fields(LoraConfig)}
        assert {key.removeprefix("transformer.") for key in settings} <= fields
    contents = [(folder / name).read_bytes() for name in FILES]
    for again in range(8):  # safetensors alone would write one of two orders, by chance
        other = saved(tmp_path / str(again), 1.5)
        assert [(other / name).read_bytes() for name in FILES] == contents


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 10**5,
        '{"transformer.r": 0, "transformer.lora_alpha": 1}',
        '{"transformer.r": 2, "transformer.lora_alpha": null}',
        '{"transformer.r": 2}',
        '{"transformer.r": 2, "transformer.lora_alpha": -4}',
        '{"transformer.r": 2, "transformer.lora_alpha": Infinity}',
    ],
)
def test_header_without_usable_numbers_states_no_scale(text: str) -> None:
    assert lora.stated_scale({"lora_adapter_metadata": text}) is None
    assert lora.stated_scale({}) is None


def test_strings_of_a_header_survive_their_sorting(tmp_path: Path) -> None:
    entries = {"z": 'quotes " and \\ and é\n\t\x01', "a": "雪", "lora_adapter_metadata": "{}"}
    tensor_files.write(tmp_path / "x.safetensors", {"ünï": torch.arange(3.0)}, entries)
    tensors, header = tensor_files.read(tmp_path / "x.safetensors")
    assert header == entries | {"format": "pt"}
    assert tensors["ünï"].tolist() == [0, 1, 2]


def test_tensors_kept_for_another_lora_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, 3.0)
    kept = load_file(folder / "optimizer.safetensors")
    key = sorted(kept)[0]
    name = key.split("|")[1]
    others = {k: value for k, value in kept.items() if k != key}
    strange = kept | {f"other|{name}": kept[key].clone()}
    for tensors in ({}, others, strange, kept | {key: kept[key][:1]}):
        tensor_files.write(folder / "optimizer.safetensors", tensors, {})
        relist(folder, "optimizer.safetensors")
        with pytest.raises(
            CheckpointError, match=r"optimizer.safetensors .* does not fit the LoRA in (ema|lora)/"
        ):
            store.load(folder)


def without_b(tensors: dict[str, Tensor]) -> None:
    tensors.pop("transformer.blocks.0.attn.to_q.lora_B.weight")


def another_rank(tensors: dict[str, Tensor]) -> None:
    for part, shape in (("A", (2, 20)), ("B", (50, 2))):
        tensors[f"transformer.blocks.0.attn.to_q.lora_{part}.weight"] = torch.ones(shape)


def a_vector(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.blocks.0.attn.to_q.lora_A.weight"] = torch.ones(3)


def an_alpha(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.blocks.0.attn.to_q.alpha"] = torch.ones(())


@pytest.mark.parametrize("harm", [dict.clear, without_b, another_rank, a_vector, an_alpha])
@pytest.mark.parametrize("form", list(ExportFormat))
def test_export_of_something_else_than_a_lora_is_refused(
    tmp_path: Path, harm: Callable[[dict[str, Tensor]], None], form: ExportFormat
) -> None:
    folder = saved(tmp_path, 2.0)
    tensors = load_file(folder / FILES[1])
    harm(tensors)
    tensor_files.write(folder / FILES[1], tensors, {})
    relist(folder, FILES[1])
    with pytest.raises(CheckpointError, match=f"{FILES[1]} is not a LoRA of one rank"):
        export(str(tmp_path), tmp_path / "exported", form)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("scale", [0.0, -2.0, True, "2", None, 2, 10**400])
def test_impossible_scale_is_refused(tmp_path: Path, scale: object) -> None:
    folder = saved(tmp_path, 2.0)
    rewrite(folder, lambda content: content.update(scale=scale))
    with pytest.raises(CheckpointError, match=r"scale is .*, not a number above 0"):
        store.load(folder)


def test_scale_that_takes_weights_out_of_range_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, 2.0)
    rewrite(folder, lambda content: content.update(scale=2.0**-900))
    with pytest.raises(CheckpointError, match="its scale .* makes .*infinite"):
        store.load(folder)


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ADDED = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
# By family, layers that ComfyUI's loader maps, and layers that it does not map.
COMFYUI = {
    "SD3": (
        [f"transformer_blocks.23.attn.{name}" for name in ATTENTION + ADDED]
        + [f"transformer_blocks.0.attn2.{name}" for name in ATTENTION]
        + ["transformer_blocks.1.ff.net.0.proj", "transformer_blocks.1.ff_context.net.2", "norm_out.linear"],
        ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.add_q_proj", "x_embedder"],
    ),
    "Flux": (
        [f"transformer_blocks.18.attn.{name}" for name in ATTENTION + ADDED]
        + [f"single_transformer_blocks.37.attn.{name}" for name in ATTENTION[:3]]
        + ["single_transformer_blocks.0.proj_mlp", "transformer_blocks.1.norm1_context.linear", "x_embedder"],
        ["single_transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn2.to_q"],
    ),
    "QwenImage": (
        [f"transformer_blocks.59.attn.{name}" for name in ATTENTION + ADDED]
        + ["transformer_blocks.0.img_mlp.net.0.proj", "transformer_blocks.0.txt_mod.1", "img_in"],
        ["transformer_blocks.0.ff.net.2", "x_embedder"],
    ),
    "ZImage": (
        [f"{part}.1.attention.{name}" for part in ("context_refiner", "noise_refiner") for name in ATTENTION]
        + ["layers.0.feed_forward.w2", "layers.29.adaLN_modulation.0"],
        ["layers.0.attention.add_q_proj", "transformer_blocks.0.attn.to_q"],
    ),
}


@pytest.mark.parametrize("family", COMFYUI)
def test_comfyui_gets_layers_that_it_maps_and_no_others(family: str) -> None:
    mapped, others = COMFYUI[family]
    check_mapped(mapped, family)
    check_mapped(mapped, None)
    for name in others:
        with pytest.raises(
            RequestError, match=rf"does not map the layer {name} \(1 of {len(mapped) + 1} layers\)"
        ):
            check_mapped([*mapped, name], family)


@pytest.mark.parametrize(
    "layers",
    [
        ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_q"],
        ["transformer_blocks.0.attn2.to_q"],
    ],
)
def test_comfyui_export_of_sana_is_refused(layers: list[str]) -> None:
    """Also if its layers have the names of another family's."""
    with pytest.raises(RequestError, match="ComfyUI's loader does not map a LoRA of Sana") as error:
        check_mapped(layers, "Sana")
    assert error.value.exit_code == 2


def test_sana_is_refused_for_an_older_checkpoint_too() -> None:
    with pytest.raises(RequestError, match=r"does not map the layer transformer_blocks.0.attn1.to_q"):
        check_mapped(["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn2.to_q"], None)
