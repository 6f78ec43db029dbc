"""Count the peak memory of decoding at published sizes, and what the plan says of it; print them as JSON."""

import json
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from marble_cli.config.compose import compose
from marble_cli.policy.decoding import decode_in_parts, decoded_at_once
from marble_cli.policy.size import assemble, make_skeleton, model_size
from marble_cli.policy.source import config_folder, find_family, list_networks, read_json
from tests.standin.counters import count

# Overrides, and how many pictures or videos.
CASES = {
    "SD3.5 Medium, 8 of 512 px": (("model=sd3", "model.resolution=512"), 8),
    "FLUX.1-dev, 3 of 1,024 px": (("model=flux", "model.resolution=1024"), 3),
    "FLUX.1-dev, 1 of 2,048 px": (("model=flux", "model.resolution=2048"), 1),
    "Qwen-Image, 8 of 512 px": (("model=qwen_image", "model.resolution=512"), 8),
    "Z-Image, 8 of 512 px": (("model=z_image", "model.resolution=512"), 8),
    "Wan 2.1, 33 frames of 832x480": (("model=wan", "model.frames=33"), 1),
    "Wan 2.1, 3 of 9 frames of 256x256": (("model=wan", "model.frames=9", "model.resolution=256x256"), 3),
}


class _Convolutions(TorchDispatchMode):
    """Allocate a convolution's output and nothing else.

    Without cuDNN, which wants a driver, torch would allocate columns for a matrix product.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.convolution.default:
            return func(*args, **(kwargs or {}))
        shapes = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args]
        return torch.empty_like(func(*shapes), device=args[0].device)


def decode(overrides: tuple[str, ...], pictures: int) -> dict[str, int]:
    """Return the allocator's peak, beyond the VAE and the latents, and the plan's."""
    model = compose(["~preset", "data.root=.", "run.dir=unused", *overrides]).model
    size, folder = model_size(model), config_folder(model.path)
    assert size is not None
    assert folder is not None
    index = read_json(folder / "model_index.json")
    family = find_family(model, index)
    configs = {name: read_json(folder / name / "config.json") for name in list_networks(model, family, index)}
    parts = {name: make_skeleton(config, *index[name]) for name, config in configs.items()}
    nn.Module.to(parts["vae"], torch.bfloat16).to_empty(device="cuda")  # past the warnings of diffusers' own
    made = family(assemble(index, parts), model)
    x0 = torch.zeros(pictures, *made.latent_shape, dtype=torch.bfloat16, device="cuda")
    with torch.no_grad(), _Convolutions():
        found = count(lambda: decode_in_parts(made, x0, decoded_at_once(made, model, "cuda")))
    return {"peak": found.peak_bytes, "plan": size.drawing.peak(pictures, "cuda")}


def main() -> None:
    """Print each case's peaks."""
    print("FOUND " + json.dumps({name: decode(*case) for name, case in CASES.items()}))


if __name__ == "__main__":
    main()
