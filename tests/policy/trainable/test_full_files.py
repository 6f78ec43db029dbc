"""Files of runs that train all weights: checkpoints, exports for plain diffusers, and evaluations."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from PIL import Image
from safetensors.torch import load_file

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export, transformer_config
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.config.compose import dump
from marble_cli.config.schema import ModelConfig, RunConfig
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.evaluate.evaluate import evaluate
from marble_cli.evaluate.generate import generate
from marble_cli.evaluate.target import resolve_target
from marble_cli.policy.load import load_policy
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import initial_progress, pack
from marble_cli.seeds import noise
from tests.policy.weights import have_same_weights, nudge

TRAINED = Path("transformer") / store.WEIGHTS["full"]


@pytest.fixture(scope="module")
def run(run_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a checkpoint whose trained, average and behaviour weights all differ."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = run_config(
        "model.train=full", "rollout.solver=euler", "model.precision=fp32", f"run.dir={folder}"
    )
    policy: Any = load_policy(config.model, 0)
    nudge(policy)
    progress = initial_progress(policy)
    progress.step = 1
    nudge(policy, seed=1)
    store.save(folder, *pack(policy, build_optimizer(config, policy), progress), keep_last=1, best=False)
    (folder / "config.yaml").write_text(dump(config))
    return folder


def test_checkpoint_files_have_diffusers_names(run: Path, plain: Any) -> None:
    folder = run / "checkpoints" / "step-00000001"
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors"))
    assert names == [
        "behaviour.safetensors",
        f"ema/{store.WEIGHTS['full']}",
        "optimizer.safetensors",
        str(TRAINED),
    ]
    trained, ema = load_file(folder / TRAINED), load_file(folder / "ema" / store.WEIGHTS["full"])
    assert trained.keys() == ema.keys() == plain.state_dict().keys()
    assert not any(torch.equal(trained[name], ema[name]) for name, _ in plain.named_parameters())
    assert load_file(folder / "behaviour.safetensors").keys() == dict(plain.named_parameters()).keys()
    origin = json.loads((folder / "state.json").read_text())["info"]["origin"]
    assert origin["train"] == "full"
    assert "rank" not in origin
    assert str(run.parent) not in json.dumps(origin["transformer"])


def test_exported_transformer_draws_the_same_picture_in_diffusers(
    run: Path, pipeline_folder: Path, tmp_path: Path
) -> None:
    (picture,) = generate(str(run), ["a red cup"], tmp_path / "pictures", seed=7)
    file = export(str(run), tmp_path / "exported")
    assert file == tmp_path / "exported" / TRAINED
    transformer = SD3Transformer2DModel.from_pretrained(
        tmp_path / "exported", subfolder="transformer", local_files_only=True
    )
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        pipeline_folder, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    latents = noise(7, "generate", 0, [0], (4, 4, 4))
    arguments: dict[str, Any] = {
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "height": 16,
        "width": 16,
        "max_sequence_length": 0,
    }
    base = pipeline("a red cup", latents=latents, output_type="pt", **arguments).images[0]
    pipeline.transformer = transformer
    image = pipeline("a red cup", latents=latents, output_type="pt", **arguments).images[0]
    drawn = torch.from_numpy(np.asarray(Image.open(picture)).copy()).permute(2, 0, 1)
    assert (drawn - 255 * image).abs().max() < 0.51
    assert (drawn - 255 * base).abs().max() > 5


def test_export_refuses_to_overwrite_or_to_lack_a_configuration(run: Path, tmp_path: Path) -> None:
    export(str(run), tmp_path)
    with pytest.raises(RequestError, match="exists and is not overwritten"):
        export(str(run), tmp_path)
    for origin in (None, [], {}, {"transformer": []}, {"transformer": {"_class_name": "../x"}}):
        with pytest.raises(CheckpointError, match="step-1 is damaged: its transformer's configuration"):
            transformer_config({"origin": origin}, Path("step-1"))


@pytest.mark.parametrize("form", [ExportFormat.peft, ExportFormat.comfyui])
def test_export_in_a_format_for_loras_is_refused(run: Path, tmp_path: Path, form: ExportFormat) -> None:
    said = f"--format {form.value}: .*holds a whole transformer.* Expected --format diffusers"
    with pytest.raises(RequestError, match=said) as error:
        export(str(run), tmp_path / "exported", form)
    assert error.value.exit_code == 2
    assert not (tmp_path / "exported").exists()


def test_evaluation_compares_with_the_frozen_model(run: Path, full: ModelConfig) -> None:
    report = evaluate(str(run), ["base"], ["trainer.eval_prompts=1"], None)
    alone = {r.name: r.mean for r in evaluate("base", [str(run)], ["trainer.eval_prompts=1"], None).rewards}
    for result in report.rewards:
        assert result.difference != 0.0
        assert result.reference == alone[result.name]
    policy = load_policy(full, 0)
    resolve_target(str(run)).put_into(policy)
    ema = load_file(run / "checkpoints" / "step-00000001" / "ema" / store.WEIGHTS["full"])
    assert have_same_weights(policy.trained_state(), ema)


@pytest.mark.parametrize(
    ("of", "for_", "said"),
    [
        ("full", "lora", "holds a whole network, and model.train=lora needs a LoRA"),
        ("lora", "full", "holds a LoRA, and model.train=full needs a whole network"),
    ],
)
def test_checkpoint_of_the_other_kind_is_refused(
    run_config: Callable[..., RunConfig], tmp_path: Path, of: str, for_: str, said: str
) -> None:
    """By what the folder's manifest lists, whatever is said in it."""
    policy: Any = load_policy(run_config(f"model.train={of}").model, 0)
    state, trained, ema = pack(policy, build_optimizer(run_config(), policy), initial_progress(policy))
    for info in (state.info, {}):
        store.save(tmp_path, replace(state, info=info), trained, ema, keep_last=1, best=False)
        other = load_policy(run_config(f"model.train={for_}").model, 0)
        with pytest.raises(CheckpointError, match=f"{said}. Expected model.train={of}"):
            resolve_target(str(tmp_path)).put_into(other)
