"""Step folders as the first release wrote them: B as trained, and alpha in the header alone."""

import json
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file

from marble_cli.checkpoint import manifest, store


def header(rank: int, alpha: int, targets: list[str]) -> dict[str, str]:
    """All fields of peft's LoraConfig, as the installed release has them."""
    config: dict[str, Any] = LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=targets
    ).to_dict()
    plain = {
        f"transformer.{key}": sorted(value) if isinstance(value, set) else value
        for key, value in config.items()
        if value is None or isinstance(value, str | int | float | bool | list | dict | set)
    }
    return {"lora_adapter_metadata": json.dumps(plain, sort_keys=True, default=str)}


def rewrite_in_format_1(folder: Path) -> None:
    """Make a checkpoint of a LoRA one of format 1, with the same content."""
    state, trained, average = store.load(folder)
    origin = state.info["origin"]
    entries = header(origin["rank"], origin["alpha"], origin["target_modules"])
    del origin["family"]
    for name, tensors in (("lora", trained), ("ema", average)):
        save_file(tensors, folder / name / store.WEIGHTS["lora"], entries)
    for name, tensors in state.tensors.items():
        save_file(tensors, folder / f"{name}.safetensors", {"format": "pt"})
    names = [str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")]
    listing = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": manifest._digest(folder / name)}
        for name in names
    }
    content = {"format_version": 1, "step": state.step, "info": state.info, "files": listing}
    (folder / manifest.NAME).write_text(json.dumps(content | {"sha256": manifest.own_digest(content)}))
