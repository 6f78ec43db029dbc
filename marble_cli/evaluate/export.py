"""Export any target: what a run trained, or a LoRA of another program in another format."""

from collections.abc import Sequence
from pathlib import Path

from marble_cli.checkpoint import lora, store
from marble_cli.checkpoint.export import export, write_lora
from marble_cli.checkpoint.formats import ExportFormat
from marble_cli.errors import RequestError
from marble_cli.evaluate.target import resolve_target, run_config
from marble_cli.paths import expand
from marble_cli.policy.source import find_family, model_file, read_json


def export_target(target: str, directory: Path, form: ExportFormat, overrides: Sequence[str] = ()) -> Path:
    """Write the weights of `target` to `directory`; return the file of weights.

    Args:
        target: a run or a checkpoint, or the file, folder or hub id of a LoRA.
        directory: where to write.
        form: the loader that is to read the file.
        overrides: as in `marble train`; those of `model` name the model of a LoRA from elsewhere.

    Raises:
        CheckpointError: the weights are missing or damaged, or do not fit the model.
        RequestError: `directory` already holds such a file, the format cannot hold the weights, `target` is
            base, a whole transformer from elsewhere, or a run beside overrides.
    """
    if target == "base" or store.is_checkpoint(expand("", target)):
        if overrides:
            raise RequestError(
                f"override {overrides[0]!r}: {target} states its own model. Expected overrides only for a "
                "LoRA from elsewhere."
            )
        return export(target, directory, form)
    found = resolve_target(target)
    model = run_config(overrides).model
    fitted = found.fitted(model)
    if fitted.weights is None or fitted.provenance["train"] != "lora":
        raise RequestError(
            f"{target} is a whole transformer that diffusers reads as it is. Expected a LoRA, a run or a "
            "checkpoint."
        )
    family = find_family(model, read_json(model_file(model, "model_index.json"))).__name__
    return write_lora(lora.of_one_rank(fitted.weights), family, directory, form)
