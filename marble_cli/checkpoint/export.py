"""`marble export`: a checkpoint's LoRA as a folder that plain diffusers loads with `load_lora_weights`."""

import shutil
from pathlib import Path

from marble_cli.checkpoint import store
from marble_cli.errors import RequestError
from marble_cli.folder import check_writable, writing


def export(target: str, directory: Path) -> Path:
    """Copy the verified moving-average LoRA of `target` to `directory`; returns the written file.

    Raises:
        CheckpointError: the checkpoint is damaged or there is none.
        StorageError: there is no room for it.
        RequestError: `directory` already holds a LoRA, or `target` is the base model.
    """
    if target == "base":
        raise RequestError(
            "export base: the base model has no LoRA to export. Expected a checkpoint or a run."
        )
    checkpoint = store.resolve(target)
    store.load(checkpoint)
    file = directory / store.WEIGHTS
    if file.exists():
        raise RequestError(f"{file} exists and is not overwritten. Choose another folder.")
    check_writable(directory, "")
    source = checkpoint / "ema" / store.WEIGHTS
    with writing(file, "Choose another folder.", source.stat().st_size):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            return Path(shutil.copyfile(source, file))
        except OSError:
            file.unlink(missing_ok=True)
            raise
