"""`marble export`: a checkpoint's weights as a folder that plain diffusers loads.

A LoRA is for `load_lora_weights`, a whole transformer for `from_pretrained(..., subfolder="transformer")`.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marble_cli.checkpoint import store
from marble_cli.checkpoint.manifest import REMEDY
from marble_cli.errors import CheckpointError, RequestError
from marble_cli.folder import check_writable, write_whole, writing


def export(target: str, directory: Path) -> Path:
    """Copy the verified moving average of `target` to `directory`; returns the written file of weights.

    Raises:
        CheckpointError: the checkpoint is damaged or there is none.
        StorageError: there is no room for it.
        RequestError: `directory` already holds such a file, or `target` is the base model.
    """
    if target == "base":
        raise RequestError(
            "export base: nothing was trained of the base model. Expected a checkpoint or a run."
        )
    checkpoint = store.resolve(target)
    state, _, _ = store.load(checkpoint)
    weights, average = store.weight_files(state.train)
    source, file = checkpoint / average, directory / Path(weights).name
    if state.train == "full":
        config, file = transformer_config(state.info, checkpoint), directory / weights
    if file.exists():
        raise RequestError(f"{file} exists and is not overwritten. Choose another folder.")
    check_writable(directory, "")
    with writing(file, "Choose another folder.", source.stat().st_size):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, file)
        except OSError:
            file.unlink(missing_ok=True)
            raise
    if state.train == "full":
        write_whole(file.with_name("config.json"), json.dumps(config, indent=2) + "\n")
    return file


def transformer_config(info: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint of a whole transformer knows of its architecture, as diffusers' config.json says it.

    Raises:
        CheckpointError: that is nothing, or no such configuration.
    """
    origin = info.get("origin")
    config = origin.get("transformer") if isinstance(origin, dict) else None
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(name, str) or not name.isidentifier():
        raise CheckpointError(
            f"{checkpoint} is damaged: its transformer's configuration is {str(config)[:60]!r}. "
            f"Expected an object with the class of the transformer. {REMEDY}"
        )
    return config
