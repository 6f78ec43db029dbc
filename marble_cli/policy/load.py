"""From the configuration to a policy on its device."""

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download

from marble_cli.config.schema import ModelConfig
from marble_cli.distributed.layout import PlaceModel, place_whole
from marble_cli.errors import RequestError
from marble_cli.policy.files import check_weights
from marble_cli.policy.pipeline import PipelinePolicy
from marble_cli.policy.source import (
    DTYPES,
    check_fit,
    find_family,
    local_folder,
    networks,
    read_json,
    reading,
    tell_revision,
)
from marble_cli.policy.tokenizers import check_tokenizers, read_tokenizers


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU of this process where there is one, else the CPU; a GPU has its number.

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
    # A bare `cuda` is another GPU in another thread: each has its own current GPU, the first to begin with.
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device(name)


def load_policy(model: ModelConfig, seed: int, place: PlaceModel = place_whole) -> PipelinePolicy:
    """Load the frozen model and give it what is trained, a LoRA drawn from `seed`; `place` puts it on its device.

    Raises:
        RequestError: the folder or hub id holds no pipeline of a supported family, or cannot be reached; or the
            resolution does not fit it.
        ConfigError: the guidance, the precision, the length of prompts or the LoRA targets do not fit it.
    """
    _quiet()
    device = pick_device(model.device)
    folder = local_folder(model.path)
    tell_revision(model)
    with reading(model):
        index = read_json(_index(model, folder))
        family = find_family(model, index)
        tokenizers: dict[str, Any] = {}  # those of the hub come with the pipeline
        if folder is not None:
            for name in networks(model, family, index):
                read_json(
                    folder / name / "config.json"
                )  # without it transformers makes do with another shape
            check_weights(folder, model, family, index)
            tokenizers = read_tokenizers(folder, model, family, index)
        pipeline = DiffusionPipeline.from_pretrained(
            str(folder or model.path),
            revision=model.revision,
            variant=model.variant,
            dtype=DTYPES[model.precision],
            use_safetensors=True,
            # diffusers wants to be told of most components that a pipeline was saved without.
            **dict.fromkeys((*family.left_out(model), *(k for k, v in index.items() if v == [None, None]))),
            **tokenizers,
        )
        parts = {name: part for name, part in pipeline.components.items() if part is not None}
        check_tokenizers(
            {name: part for name, part in parts.items() if name.startswith("tokenizer")},
            {name: part.config for name, part in parts.items() if name.startswith("text_encoder")},
            str(folder or model.path),
        )
    check_fit(model, family, pipeline.transformer.config)
    pipeline.set_progress_bar_config(disable=True)
    return PipelinePolicy(pipeline, family(pipeline, model), model, device, seed, place)


def _index(model: ModelConfig, folder: Path | None) -> Path:
    """The model_index.json of the pipeline, fetched where it is on the hub."""
    if folder is not None:
        return folder / "model_index.json"
    return Path(hf_hub_download(model.path, "model_index.json", revision=model.revision))


def _quiet() -> None:
    """The libraries' own progress bars would tear the run's view apart."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
