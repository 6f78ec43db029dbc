"""`marble generate`: images, or videos, of given prompts from any target."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from marble_cli.config.enums import Switch
from marble_cli.config.evaluation import resolve_evaluation
from marble_cli.config.schema import ModelConfig
from marble_cli.data.conditions import Condition
from marble_cli.data.prompts import Prompt
from marble_cli.errors import RequestError
from marble_cli.evaluate.target import Models, resolve_target
from marble_cli.files import check_writable, writing
from marble_cli.optional import require
from marble_cli.policy.source import count_pictures
from marble_cli.rollout.collect import evaluation_rollout
from marble_cli.seeds import noise
from marble_cli.videos import write_mp4


@torch.no_grad()
def generate(
    target: str,
    prompts: list[str],
    output: Path,
    seed: int,
    overrides: Sequence[str] = (),
    images: Sequence[Path] = (),
) -> list[Path]:
    """Draw one image per prompt, write `000.png`, `001.png`, ... into `output`, and return the files.

    Of a model that draws videos, the files are `000.mp4` and so on.

    Args:
        target: a run, a checkpoint, a LoRA, or `base`.
        prompts: of the images.
        output: the folder of the files.
        seed: of the noise.
        overrides: as in `marble train`.
        images: for a model of image editing: one picture for all prompts, or as many for each, in order.

    Raises:
        RequestError: the target, an override, a picture or `output` is wrong, or no video can be written.
    """
    models = Models(overrides, [resolve_target(target)])
    (chosen,) = models.targets
    if chosen.model is not None and chosen.model.compile is Switch.auto:  # a few pictures take less time
        chosen = replace(chosen, model=replace(chosen.model, compile=Switch.false))
    rows = _with_pictures(prompts, images, chosen.model or models.config.model)
    check_writable(output, "--output ")
    if (chosen.model or models.config.model).frames is not None:
        require("imageio_ffmpeg", "marble generate with a model of videos")
    policy = models.hold(chosen)
    rollout = evaluation_rollout(policy, models.config.rollout, resolve_evaluation(models.config))
    rollout.prepare(rows)
    files = []
    for index, prompt in enumerate(rows):
        start = noise(seed, "generate", 0, [index], rollout.policy.latent_shape)
        x0 = rollout.draw(rollout.encode([prompt]), slice(1), start, chosen.adapter)
        (drawn,), (finite,) = rollout.policy.decode(x0)
        if not finite:
            raise RequestError(
                f"{target} drew values that are not finite (NaN or infinity), and no picture, of "
                f"{prompt.text!r}. Expected model.precision=bf16 or fp32 if it is fp16, or an earlier "
                "checkpoint."
            )
        fps = rollout.policy.fps
        file = output / f"{index:03d}.{'png' if fps is None else 'mp4'}"
        with writing(file, "Choose another --output."):
            output.mkdir(parents=True, exist_ok=True)
            if fps is None:
                Image.fromarray(drawn.permute(1, 2, 0).numpy()).save(file)
            else:
                write_mp4(file, drawn, fps)
        files.append(file)
    return files


def _with_pictures(prompts: Sequence[str], images: Sequence[Path], model: ModelConfig) -> list[Prompt]:
    """Give each prompt its pictures, if the model starts from some.

    Raises:
        RequestError: there are pictures for a model that takes none, too few, too many, or faulty ones.
    """
    least, most = count_pictures(model, fetch=True)
    if most == 0 and images:
        raise RequestError(
            f"--image {images[0]}: {model.path} starts from no picture. Expected a model of image "
            "editing, or no --image."
        )
    if not least and not images:
        return [Prompt(text) for text in prompts]
    each, rest = divmod(len(images), len(prompts))
    if len(images) == 1:
        each, rest = 1, 0
    if rest or not each or (most is not None and each > most):
        several = "" if most == 1 else ", or several times if each prompt has equally many pictures"
        raise RequestError(
            f"{len(images)} pictures for {len(prompts)} prompts: {model.path} starts from a picture. "
            f"Expected --image FILE once, or once per --prompt{several}."
        )
    pictures = tuple(Condition("--image", path) for path in images)
    if faults := [fault for picture in pictures if (fault := picture.find_fault())]:
        raise RequestError(faults[0])
    rows = [pictures] * len(prompts)
    if len(images) > 1:
        rows = [pictures[start : start + each] for start in range(0, len(pictures), each)]
    return [Prompt(text, images=own) for text, own in zip(prompts, rows, strict=True)]
