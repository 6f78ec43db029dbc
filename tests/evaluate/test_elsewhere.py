"""LoRAs and transformers that other programs wrote, judged and drawn as those programs do."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import peft
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.config.compose import dump
from marble_cli.config.schema import RunConfig
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.evaluate.export import export_target
from marble_cli.evaluate.generate import generate
from marble_cli.evaluate.target import resolve_target
from marble_cli.policy.load import load_policy
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import initial_progress, pack
from marble_cli.seeds import noise
from tests.random_runs import write_random_run

TARGETS = ["to_q", "to_v", "add_k_proj", "to_out.0"]


def pixels(file: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()


@pytest.fixture(scope="module")
def run(
    run_config: Callable[..., RunConfig],
    randomise: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run with a checkpoint of random weights; alpha / rank is 3."""
    folder = tmp_path_factory.mktemp("runs") / "own"
    config = run_config(f"run.dir={folder}")
    write_random_run(config, randomise)
    return folder


def test_an_exported_lora_is_judged_and_drawn_as_its_run(
    run: Path, base_overrides: list[str], tmp_path: Path
) -> None:
    """In every format of an export; these are judged together."""
    folders = [tmp_path / form.value for form in ExportFormat]
    files = [export(str(run), folder, ExportFormat(folder.name)) for folder in folders]
    report = evaluate(str(run), [*map(str, folders), "base"], ["evaluation.prompts=1"], None)
    *same, base = report.comparisons
    assert len(same) == len(files) == 3
    for comparison in same:
        assert all(r.difference == pytest.approx(0.0, abs=1e-6) for r in comparison.rewards)
    assert any(abs(r.difference or 0.0) > 1e-6 for r in base.rewards)

    def picture(target: Path, *more: str) -> bytes:
        return generate(str(target), ["a red cup"], tmp_path, 0, list(more))[0].read_bytes()

    own = picture(run)
    assert [picture(file, *base_overrides) == own for file in files] == [True] * 3


def load_plain(folder: Path) -> Any:
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"))
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def plain(pipeline: Any) -> Tensor:
    """One picture [3, 16, 16], 0 to 255, that diffusers draws from the noise of `generate(..., seed=7)`."""
    images = pipeline(
        "a red cup", num_inference_steps=3, guidance_scale=1.0, max_sequence_length=0, height=16, width=16,
        latents=noise(7, "generate", 0, [0], (4, 4, 4)), output_type="pt",
    ).images  # fmt: skip
    return images[0] * 255


def add_lora(transformer: Any, config: peft.LoraConfig) -> Any:
    """Wrap a transformer in peft's model with random weights."""
    model = peft.get_peft_model(transformer, config)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw))
    return model


def as_diffusers(model: Any, folder: Path) -> None:
    """With alpha in the file's header."""
    settings = model.peft_config["default"].to_dict()
    stated = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights")
    header = {f"transformer.{key}": settings[key] for key in stated}
    header["transformer.target_modules"] = sorted(settings["target_modules"])
    entries = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(header)}
    save_file(renamed(model, "transformer."), folder / "pytorch_lora_weights.safetensors", entries)


def as_peft(model: Any, folder: Path) -> None:
    """With alpha in adapter_config.json."""
    model.save_pretrained(folder)


def as_kohya(model: Any, folder: Path) -> None:
    """With alpha in a tensor of every layer, and flat names."""
    tensors = dict[str, Tensor]()
    for key, value in renamed(model, "").items():
        layer, part = re.fullmatch(r"(.*)\.lora_([AB])\.weight", key).groups()  # type: ignore[union-attr]
        flat = "lora_unet_" + layer.replace(".", "_")
        tensors[f"{flat}.lora_{'down' if part == 'A' else 'up'}.weight"] = value
        tensors[f"{flat}.alpha"] = torch.tensor(float(alpha_of(model, layer)))
    save_file(tensors, folder / "any_name.safetensors")


def as_comfyui(model: Any, folder: Path) -> None:
    """With scale 1: alpha / rank is multiplied into B."""
    tensors = renamed(model, "diffusion_model.")
    for key, value in tensors.items():
        if "lora_B" in key:
            layer = key.removeprefix("diffusion_model.").removesuffix(".lora_B.weight")
            tensors[key] = value * (alpha_of(model, layer) / value.shape[1])
    save_file(tensors, folder / "comfy.safetensors")


def renamed(model: Any, prefix: str) -> dict[str, Tensor]:
    state = peft.get_peft_model_state_dict(model)
    return {prefix + key.removeprefix("base_model.model."): value.clone() for key, value in state.items()}


def alpha_of(model: Any, layer: str) -> float:
    config = model.peft_config["default"]
    return next((v for k, v in config.alpha_pattern.items() if layer.endswith(k)), config.lora_alpha)


@pytest.mark.parametrize("write", [as_diffusers, as_peft, as_kohya, as_comfyui])
def test_a_lora_of_plain_peft_draws_what_plain_diffusers_draws(
    pipeline_folder: Path, base_overrides: list[str], tmp_path: Path, write: Callable[[Any, Path], None]
) -> None:
    """Layers differ in rank and alpha; marble's own settings of the LoRA are others."""
    pipeline = load_plain(pipeline_folder)
    config = peft.LoraConfig(
        r=3, lora_alpha=2, target_modules=TARGETS, rank_pattern={"to_v": 5}, alpha_pattern={"to_v": 4}
    )
    model = add_lora(pipeline.transformer, config)
    write(model, tmp_path)
    pipeline.transformer = model.base_model.model

    def ours(target: str, name: str) -> Tensor:
        overrides = [*base_overrides, "rollout.solver=euler"]
        return pixels(generate(target, ["a red cup"], tmp_path / name, 7, overrides)[0])

    drawn, base = ours(str(tmp_path), "with"), ours("base", "without")
    assert (plain(pipeline) - drawn).abs().max() <= 0.51
    assert (base - drawn).abs().mean() > 2


@pytest.mark.parametrize("form", list(ExportFormat))
@pytest.mark.parametrize("write", [as_diffusers, as_kohya])
def test_an_export_of_a_foreign_lora_adds_the_same_to_every_layer(
    pipeline_folder: Path,
    base_overrides: list[str],
    tmp_path: Path,
    write: Callable[[Any, Path], None],
    form: ExportFormat,
) -> None:
    """Ranks and alphas differ by layer; in the exported file they do not."""
    config = peft.LoraConfig(
        r=3, lora_alpha=2, target_modules=TARGETS, rank_pattern={"to_v": 5}, alpha_pattern={"to_v": 4}
    )
    model = add_lora(load_plain(pipeline_folder).transformer, config)
    write(model, tmp_path)
    file = export_target(str(tmp_path), tmp_path / "out", form, base_overrides)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(file).items():
        layer, part = re.fullmatch(r"(?:\w+\.)*?(transformer_blocks.*)\.lora_([AB])\.weight", key).groups()  # type: ignore[union-attr]
        pairs.setdefault(layer, {})[part] = value
    added = {
        name: layer.get_delta_weight("default")
        for name, layer in model.base_model.model.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    assert pairs.keys() == added.keys()
    for layer, pair in pairs.items():
        assert pair["A"].shape[0] == pair["B"].shape[1] == 5
        torch.testing.assert_close(pair["B"] @ pair["A"], added[layer], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("write", [as_diffusers, as_peft])
def test_a_lora_that_changed_its_base_is_refused(
    pipeline_folder: Path, base_overrides: list[str], tmp_path: Path, write: Callable[[Any, Path], None]
) -> None:
    """PiSSA subtracts its start from the model's weights."""
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=TARGETS, init_lora_weights="pissa")
    write(add_lora(load_plain(pipeline_folder).transformer, config), tmp_path)
    with pytest.raises(CheckpointError, match="is no plain LoRA: init_lora_weights=pissa changed"):
        generate(str(tmp_path), ["a red cup"], tmp_path / "drawn", 7, base_overrides)


def test_an_export_refuses_what_it_would_ignore(run: Path, pipeline_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="states its own model. Expected overrides only for a LoRA"):
        export_target(str(run), tmp_path / "out", ExportFormat.diffusers, ["model=sd3"])
    with pytest.raises(RequestError, match="is a whole transformer that diffusers reads as it is"):
        export_target(str(pipeline_folder / "transformer"), tmp_path / "out", ExportFormat.diffusers)
    assert not (tmp_path / "out").exists()


def test_a_whole_transformer_is_drawn_as_plain_diffusers_does(
    pipeline_folder: Path, base_overrides: list[str], tmp_path: Path
) -> None:
    pipeline = load_plain(pipeline_folder)
    with torch.no_grad():
        for parameter in pipeline.transformer.parameters():
            parameter.mul_(1.1)
    pipeline.transformer.save_pretrained(tmp_path / "own" / "transformer")
    overrides = [*base_overrides, "rollout.solver=euler"]
    for place in ("own", "own/transformer"):
        (file,) = generate(str(tmp_path / place), ["a red cup"], tmp_path / "drawn", 7, overrides)
        assert (pixels(file) - plain(pipeline)).abs().max() <= 0.51
    file = tmp_path / "own" / "transformer" / "config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"sample_size": 4, "dual_attention_layers": None}))
    generate(str(tmp_path / "own"), ["a red cup"], tmp_path / "drawn", 7, overrides)
    heads, width = "num_attention_heads", "attention_head_dim"  # of the same product
    for other in ({heads: written[width], width: written[heads]}, {"num_layers": 3}):
        file.write_text(json.dumps(written | other))
        with pytest.raises(
            CheckpointError, match=rf"config.json has ({'|'.join(other)})=\d+, and the model's has"
        ):
            generate(str(tmp_path / "own"), ["a red cup"], tmp_path / "drawn", 7, overrides)


LAYER = "transformer.transformer_blocks.0.attn.to_q"
FITS = {f"{LAYER}.lora_A.weight": torch.ones(2, 16), f"{LAYER}.lora_B.weight": torch.ones(16, 2)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 9)}, r"to_q.lora_A.weight is \[2, 9\]"),
        ({f"{LAYER}.lora_B.weight": torch.ones(16, 3)}, r"is \[2, 16\], and the model's layer takes \[3"),
        ({"text_encoder.x.lora_A.weight": torch.ones(2, 8)}, r"text_encoder.x\S+ \[2, 8\] belongs to no"),
        ({f"{LAYER}.lora_magnitude_vector": torch.ones(16)}, r"magnitude_vector \[16\] belongs to no"),
        ({"transformer.other.lora_A.weight": torch.ones(2, 16)}, r"transformer.other\S+ \[2, 16\] belongs"),
        ({f"{LAYER}.lora_B.weight": None}, r"has .*lora_A.weight and lacks .*lora_B.weight"),
        (dict.fromkeys(FITS), "holds no LoRA"),
        ({f"{LAYER}.alpha": torch.ones(2)}, "cannot be read as a LoRA of this model"),
        ({"other.alpha": torch.ones(())}, r"has other.alpha \[\] and lacks the two matrices"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_first_tensor(
    base_overrides: list[str], tmp_path: Path, change: dict[str, Tensor | None], said: str
) -> None:
    tensors = {key: value for key, value in (FITS | change).items() if value is not None}
    save_file(tensors, tmp_path / "strange.safetensors")
    with pytest.raises(CheckpointError, match=said) as error:
        generate(str(tmp_path / "strange.safetensors"), ["a"], tmp_path / "drawn", 0, base_overrides)
    assert error.value.exit_code == 2
    assert "strange.safetensors" in str(error.value)
    assert not (tmp_path / "drawn").exists()


def test_a_hub_id_names_a_lora_and_its_revision(
    tmp_path: Path, base_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, as tests reach no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    folder = tmp_path / "models--somebody--lora" / "snapshots" / commit
    folder.mkdir(parents=True)
    save_file(FITS, folder / "weights.safetensors")
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    for spec in ("somebody/lora", f"somebody/lora@{commit}"):
        assert resolve_target(spec).elsewhere == folder / "weights.safetensors"
        assert resolve_target(spec).label == spec
    assert generate("somebody/lora", ["a"], tmp_path / "drawn", 0, base_overrides)
    with pytest.raises(CheckpointError, match="somebody/other is no path here, and as a hub id"):
        resolve_target("somebody/other")


def test_a_folder_must_name_one_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        save_file(FITS, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"holds several files of weights: one.safetensors, two"):
        resolve_target(str(tmp_path))
    assert resolve_target(str(tmp_path / "two.safetensors")).elsewhere == tmp_path / "two.safetensors"
    (tmp_path / "old.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CheckpointError, match="pickled"):
        resolve_target(str(tmp_path / "old.bin"))
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    with pytest.raises(CheckpointError, match="runs/frist is neither a checkpoint"):
        resolve_target("runs/frist")  # a misspelt path is not asked of the hub
    Path("runs/floor=0/checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"one of the runs in it, such as runs/floor=0\."):
        resolve_target("runs")


def test_targets_of_other_settings_are_compared(
    run: Path, run_config: Callable[..., RunConfig], randomise: Callable[..., None], tmp_path: Path
) -> None:
    """A run of another rank, a LoRA and the base model, each against the same run."""
    config = run_config("model.lora.rank=3", f"run.dir={tmp_path / 'wide'}")
    policy: Any = load_policy(config.model, 0)
    randomise(policy, seed=5)
    state = pack(policy, build_optimizer(config, policy), initial_progress(policy))
    store.save(tmp_path / "wide", *state, keep_last=1, best=False)
    (tmp_path / "wide" / "config.yaml").write_text(dump(config))
    save_file(FITS, tmp_path / "weights.safetensors")
    others = [str(tmp_path / "wide"), str(tmp_path / "weights.safetensors"), "base", str(run)]
    report = evaluate(str(run), others, [], None)
    alone = {r.name: r.mean for r in evaluate(str(tmp_path / "wide"), [], [], None).rewards}
    wide, foreign, base, same = ({r.name: r for r in each.rewards} for each in report.comparisons)
    assert {name: result.reference for name, result in wide.items()} == pytest.approx(alone)
    assert base["colorfulness"].reference != foreign["colorfulness"].reference
    assert all(result.difference == 0.0 for result in same.values())
    with pytest.raises(RequestError, match="model.lora.alpha was 6 and is 7 here"):
        evaluate(str(run), others, ["model.lora.alpha=7"], None)
