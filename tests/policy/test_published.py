"""Published models are planned at their true size from the configurations in the package."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from marble_cli.policy.size import model_size
from marble_cli.policy.source import ASSETS, read_json
from tests.policy.families.pipelines import configured

# The choice of conf/model, and the network's parameters in billions, as model cards and papers state them.
STATED = {
    "stabilityai/stable-diffusion-3-medium-diffusers": ("sd3", 2.0),
    # Without its table of positions, which is no parameter.
    "stabilityai/stable-diffusion-3.5-medium": ("sd3", 2.5 - 384**2 * 1536 / 1e9),
    "stabilityai/stable-diffusion-3.5-large": ("sd3", 8.1),
    "black-forest-labs/FLUX.1-dev": ("flux", 12),
    "black-forest-labs/FLUX.1-Kontext-dev": ("flux_kontext", 12),
    "black-forest-labs/FLUX.2-dev": ("flux2", 32),
    "black-forest-labs/FLUX.2-klein-base-4B": ("flux2_klein", 3.9),
    "black-forest-labs/FLUX.2-klein-base-9B": ("flux2_klein", 9),
    "Qwen/Qwen-Image": ("qwen_image", 20),
    "Qwen/Qwen-Image-Edit-2509": ("qwen_image_edit", 20),
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": ("sana", 1.6),
    "Tongyi-MAI/Z-Image": ("z_image", 6),
    "lodestones/Chroma1-HD": ("chroma", 8.9),
    "Alpha-VLLM/Lumina-Image-2.0": ("lumina2", 2.6),
    "stabilityai/stable-diffusion-xl-base-1.0": ("sdxl", 2.6),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("sd15", 0.86),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("wan", 1.42),  # 1.3 in its name
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": ("wan", 14.3),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ("wan", 5),
}


def folder_of(path: str) -> Path:
    return ASSETS / "models" / path.replace("/", "--")


@pytest.mark.parametrize("path", STATED)
def test_network_has_the_stated_number_of_parameters(path: str) -> None:
    choice, billions = STATED[path]
    drawn = torch.random.get_rng_state()
    size = model_size(replace(configured(choice), path=path))
    assert torch.equal(torch.random.get_rng_state(), drawn), "no weight was made"
    assert size is not None
    assert size.network / 1e9 == pytest.approx(billions, rel=0.035)
    assert 0 < size.trained < 0.02 * size.network
    assert size.in_blocks < size.network


def test_z_image_and_turbo_differ_in_their_shift_alone() -> None:
    one, other = (folder_of(f"Tongyi-MAI/Z-Image{kind}") for kind in ("", "-Turbo"))
    differing = {
        file.relative_to(one) for file in one.rglob("*.json")
        if read_json(file) != read_json(other / file.relative_to(one))
    }  # fmt: skip
    assert differing == {Path("scheduler/scheduler_config.json")}
    shifts = [read_json(folder / "scheduler/scheduler_config.json")["shift"] for folder in (one, other)]
    assert shifts == [6.0, 3.0]
