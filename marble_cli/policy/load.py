"""Load a pipeline from the configuration and put it on its device as a policy."""

import warnings
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline

from marble_cli.config.schema import ModelConfig
from marble_cli.distributed.layout import PlaceModel, place_whole
from marble_cli.errors import RequestError
from marble_cli.policy.diffusers_types import Pipeline
from marble_cli.policy.files import check_weights
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.processors import read_processors
from marble_cli.policy.source import (
    DTYPES,
    check_model_settings,
    explain_load_errors,
    find_family,
    list_networks,
    local_folder,
    model_file,
    read_json,
    warn_unused_revision,
)
from marble_cli.policy.tokenizers import check_tokenizers, read_tokenizers


def pick_device(name: str) -> torch.device:
    """Return the device that `model.device` names; a GPU's index is always set.

    `auto` is this process's GPU if there is one, else the CPU.

    Raises:
        RequestError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f"model.device={name}: {reason}. Expected auto, cpu, cuda or cuda:N.") from error
    # The current GPU belongs to a thread, so a bare `cuda` could mean another GPU in another thread.
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def load_policy(model: ModelConfig, seed: int, place: PlaceModel = place_whole) -> PipelinePolicy:
    """Load the frozen model and add the weights that are trained.

    Args:
        model: the configuration group.
        seed: draws the LoRA's initial weights.
        place: puts the network on its device, for instance in shards.

    Raises:
        RequestError: the folder or hub id holds no pipeline of a supported family, or cannot be reached; or
            the resolution does not fit it.
        ConfigError: the guidance, the precision, the length of prompts or the LoRA targets do not fit it.
    """
    _disable_progress_bars()
    device = pick_device(model.device)
    folder = local_folder(model.path)
    warn_unused_revision(model)
    with explain_load_errors(model), warnings.catch_warnings():
        # Of diffusers' own transformer of Chroma (0.42).
        warnings.filterwarnings("ignore", ".FluxPosEmbed. is deprecated", FutureWarning)
        index = read_json(model_file(model, "model_index.json"))
        family = find_family(model, index)
        tokenizers: dict[str, Any] = {}  # a pipeline from the hub brings its own
        if folder is not None:
            for name in list_networks(model, family, index):
                # Without this file transformers would silently build a network of default shape.
                read_json(folder / name / "config.json")
            check_weights(folder, model, family, index)
            tokenizers = read_tokenizers(folder, model, family, index)
        processors = read_processors(model, folder, index)
        # diffusers warns about most components that a pipeline was saved without, unless they are given as
        # None.
        absent = [name for name, kind in index.items() if kind == [None, None]]
        pipeline = DiffusionPipeline.from_pretrained(
            str(folder or model.path),
            revision=model.revision,
            variant=model.variant,
            dtype=DTYPES[model.precision],
            use_safetensors=True,
            **dict.fromkeys((*family.left_out(model), *absent)),
            **{**tokenizers, **dict.fromkeys(processors)},
        )
        pipeline.register_modules(**processors)
        _check_loaded_tokenizers(pipeline, str(folder or model.path))
    check_model_settings(model, family, getattr(pipeline, family.network).config)
    pipeline.set_progress_bar_config(disable=True)
    return PipelinePolicy(pipeline, family(pipeline, model), model, device, seed, place)


def _check_loaded_tokenizers(pipeline: Pipeline, where: str) -> None:
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    check_tokenizers(
        {name: part for name, part in parts.items() if name.startswith("tokenizer")},
        {name: part.config for name, part in parts.items() if name.startswith("text_encoder")},
        where,
    )


def _disable_progress_bars() -> None:
    """Disable the libraries' progress bars, which would break up the run's own display."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
