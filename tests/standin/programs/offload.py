"""Count peak memory with and without `model.offload=blocks`, at Stable Diffusion 3.5 Medium's true size."""

import json

import torch

from scripts.bench.sd35m import REWARDS, step_config
from scripts.bench.steps import step_job
from tests.standin.counters import count
from tests.standin.programs.full_size import IMAGES, in_parts, make


def main() -> None:
    """Print each step's peak, with the weights, and its copies and waits, as JSON."""
    found = {}
    for offload in ("none", "blocks"):
        settings = (f"model.offload={offload}", "model.gradient_checkpointing=true", "model.compile=false")
        scene = make(step_config(False, *settings))
        held = torch.cuda.memory_allocated()
        for name, refresh in (("plain", False), ("refresh", True)):
            counts = count(step_job(in_parts(scene, IMAGES // 3), REWARDS, refresh=refresh, outside=True))
            found[f"{name}, {offload}"] = {
                "peak": held + counts.peak_bytes,
                "copies": counts.host_to_device,
                "waits": counts.waits,
            }
        del scene
        torch.cuda.empty_cache()
    print("FOUND " + json.dumps(found))


main()
