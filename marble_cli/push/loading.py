"""Write the Python code that loads a published LoRA in plain diffusers and draws as evaluations do."""

import json
from typing import Any

from marble_cli.config.embedded import WORLDS
from marble_cli.config.enums import OdeSolver, Precision
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.resolution import read_resolution
from marble_cli.config.schema import RunConfig
from marble_cli.push.base_model import BaseModel

DTYPES = {Precision.bf16: "torch.bfloat16", Precision.fp16: "torch.float16"}
# Families whose `guidance_scale` is an input of the transformer, by the class in `policy.families`.
TRUE_CFG = ("Flux", "FluxKontext", "QwenImage", "QwenImageEdit", "QwenImageEditPlus")
# Families without another text encoder than CLIP, by the same.
CLIP_ALONE = ("SDXL", "SD15")
# Families whose pipelines need a picture to start from, by the same.
EDITING = ("FluxKontext", "QwenImageEdit", "QwenImageEditPlus")
# What limits guidance, with the values that do not; Z-Image's pipeline alone has these arguments.
BOUNDS = {"cfg_normalization": 0.0, "cfg_truncation": 1.0}
SOLVERS = {OdeSolver.euler: "EulerDiscreteScheduler", OdeSolver.dpm2: "DPMSolverMultistepScheduler"}


def loading_code(config: RunConfig, family: str, base: BaseModel, repo: str, prompt: str) -> str:
    """Return the imports, and a line each: the pipeline, its solver if need be, the LoRA, a picture or video.

    Args:
        config: of the run.
        family: the class in `policy.families` of the model.
        base: the model, as published.
        repo: the hub id of the LoRA.
        prompt: of the picture or video.
    """
    model = config.model
    imports = ["from diffusers import DiffusionPipeline"]
    place = _quoted(base.id or f"path/to/{base.name}")
    if model.path in WORLDS:
        imports.insert(0, "from importlib.resources import files\n")
        place = f'str(files("marble_cli") / "assets/{model.path}/pipeline")'
    loaded: dict[str, Any] = {}
    if base.id is not None:
        loaded |= {key: _quoted(value) for key in ("revision", "variant") if (value := getattr(model, key))}
    if model.precision in DTYPES:
        imports.insert(0, "import torch")
        loaded["torch_dtype"] = DTYPES[model.precision]
    if family == "SD3" and model.max_sequence_length == 0:
        loaded |= {"text_encoder_3": None, "tokenizer_3": None}
    drawn, solver = call_arguments(config, family), []
    if family in CLIP_ALONE:  # published pipelines have one of many solvers
        name = SOLVERS[resolve_evaluation(config).solver]
        imports[-1] += f", {name}"
        solver = [f"pipeline.scheduler = {name}.from_config(pipeline.scheduler.config)"]
    given = _quoted(prompt)
    if family in EDITING:
        imports.append("from diffusers.utils import load_image")
        given = f'prompt={given}, image=load_image("picture.png")'
    shown = ["image = {}.images[0]"]
    if model.frames is not None:
        imports.append("from diffusers.utils import export_to_video")
        rate = "24 if pipeline.vae.config.patch_size else 16"
        shown = ["frames = {}.frames[0]", f'export_to_video(frames, "video.mp4", fps={rate})']
    call = f"pipeline({_listed(given, drawn)})"
    return "\n".join([
        *imports,
        "",
        f"pipeline = DiffusionPipeline.from_pretrained({_listed(place, loaded)})",
        *solver,
        f"pipeline.load_lora_weights({_quoted(repo)})",
        *(line.format(call) for line in shown),
    ])  # fmt: skip


def call_arguments(config: RunConfig, family: str) -> dict[str, Any]:
    """Return the arguments of the family's pipeline that draw as evaluations do, by its own scheduler."""
    model, evaluation = config.model, resolve_evaluation(config)
    size = read_resolution(evaluation.resolution)
    arguments: dict[str, Any] = {"num_inference_steps": evaluation.steps}
    arguments |= {"height": size.height, "width": size.width}
    arguments |= {} if model.frames is None else {"num_frames": model.frames}
    guided = evaluation.guidance_scale > 1
    if family == "Flux2":  # which knows no other guidance than the distilled one
        arguments |= {} if model.guidance is None else {"guidance_scale": model.guidance}
    elif family in TRUE_CFG:
        arguments["true_cfg_scale"] = evaluation.guidance_scale if guided else 1.0
        arguments |= {"negative_prompt": '""'} if guided else {}
        arguments |= {} if model.guidance is None else {"guidance_scale": model.guidance}
    else:
        off = 0.0 if family == "ZImage" else 1.0
        arguments["guidance_scale"] = evaluation.guidance_scale if guided else off
    if family == "ZImage" and guided:
        arguments |= {key: getattr(config.rollout, key) for key in BOUNDS}
    if family == "Sana":
        arguments["use_resolution_binning"] = False
    if family == "FluxKontext":
        arguments |= {"max_area": size.pixels, "_auto_resize": False}
    return arguments | ({} if family in CLIP_ALONE else {"max_sequence_length": model.max_sequence_length})


def missing_bounds(config: RunConfig, family: str) -> dict[str, float]:
    """Return the bounds of guidance that evaluations draw with, and the family's pipeline cannot."""
    if family == "ZImage" or resolve_evaluation(config).guidance_scale <= 1:
        return {}
    found = {key: getattr(config.rollout, key) for key in BOUNDS}
    return {key: value for key, value in found.items() if value != BOUNDS[key]}


def _listed(first: str, named: dict[str, Any]) -> str:
    return ", ".join([first, *(f"{key}={value}" for key, value in named.items())])


def _quoted(text: str) -> str:
    """Quote a text for Python; no text can end the card's block of code."""
    return json.dumps(text).replace("`", "\\u0060")
