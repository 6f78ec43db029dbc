"""Run the example of docs/explanation/tiny.md: the embedded pipeline in plain diffusers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from torch import Tensor

from marble_cli.checkpoint import store
from marble_cli.checkpoint.export import export
from marble_cli.config.compose import compose, dump
from marble_cli.evaluate.generate import generate
from marble_cli.policy.load import load_policy
from marble_cli.policy.source import EMBEDDED
from marble_cli.run.build import build_optimizer
from marble_cli.run.state import initial_progress, pack
from marble_cli.seeds import noise

DOCS = Path(__file__).resolve().parents[2] / "docs"
PROMPT = 'a red sign that says "47"'


@pytest.fixture
def run(randomise: Callable[..., None], tmp_path: Path) -> Path:
    """A run of the embedded model with random LoRA weights."""
    config = compose(["~preset", "model.device=cpu", "rollout.steps=8", f"run.dir={tmp_path / 'run'}"])
    policy: Any = load_policy(config.model, 0)
    randomise(policy, scale=0.05)
    progress = initial_progress(policy)
    progress.step = 1
    optimizer = build_optimizer(config, policy)
    store.save(tmp_path / "run", *pack(policy, optimizer, progress), keep_last=1, best=False)
    (tmp_path / "run" / "config.yaml").write_text(dump(config))
    return tmp_path / "run"


def drawn(pipeline: StableDiffusion3Pipeline, latents: Tensor, **arguments: Any) -> Tensor:
    """One picture [3, 64, 64], 0 to 255, by eight of Euler's steps from `latents`."""
    images = pipeline(
        PROMPT, num_inference_steps=8, guidance_scale=1.0, latents=latents, output_type="pt", **arguments
    ).images
    return images[0] * 255


def test_example_of_the_page_draws_the_image_that_marble_draws(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(str(run), tmp_path / "lora")
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "explanation" / "tiny.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    pipeline, image = names["pipeline"], names["image"]
    assert image.size == (64, 64)
    dtypes = {
        p.dtype
        for part in pipeline.components.values()
        if isinstance(part, torch.nn.Module)
        for p in part.parameters()
    }
    assert dtypes == {torch.float32}
    latents = noise(5, "generate", 0, [0], (8, 8, 8))

    def ours(target: str, *overrides: str) -> Tensor:
        (file,) = generate(target, [PROMPT], tmp_path, 5, ["rollout.solver=euler", *overrides])
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()

    trained, base = ours(str(run)), ours("base", "~preset", "model.device=cpu", "rollout.steps=8")
    assert (drawn(pipeline, latents, max_sequence_length=0) - trained).abs().max() <= 1
    assert (drawn(pipeline, latents) - trained).abs().mean() > 0.5
    assert (base - trained).abs().mean() > 5
    pipeline.unload_lora_weights()
    assert (drawn(pipeline, latents, max_sequence_length=0) - base).abs().max() <= 1


def test_embedded_weights_are_exact_in_half_precision() -> None:
    """So loading them in float32 loses nothing."""
    from safetensors.torch import load_file

    for file in sorted(EMBEDDED.rglob("*.safetensors")):
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, tensor.half().to(tensor.dtype)), f"{name} of {file}"
