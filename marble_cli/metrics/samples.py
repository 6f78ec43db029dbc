"""Keep single images of evaluations with their scores under `samples/`, and read them back.

A video is kept as an MP4 file, if one can be written, and as a strip of frames in the place of its image.
`samples/step-00000010/samples.json` describes the images of that folder. It is written last, so that a folder
without it is not whole.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from marble_cli.files import write_whole
from marble_cli.videos import find_mp4_problem, write_mp4

INDEX = "samples.json"
LARGEST = 512  # pixels of the longer side; larger images are made smaller
WIDEST = 1024  # pixels of the width of a strip of frames
LOSSLESS = 128  # pixels of the longer side up to which lossy compression would show
QUALITY = 80  # of WebP


@dataclass(frozen=True)
class Sample:
    """One image of an evaluation.

    Attributes:
        index: the place of its prompt among the held-out prompts.
        prompt: the prompt.
        source: the name of the prompt's source.
        scores: the score by reward, of the rewards that scored the image.
        image: uint8 [H, W, 3], to be written.
        condition: uint8 [H, W, 3], the picture that the image was edited from, if there is one.
        video: uint8 [F, 3, H, W], the frames of which the image is a strip, with their number per second.
    """

    index: int
    prompt: str
    source: str
    scores: dict[str, float]
    image: np.ndarray
    condition: np.ndarray | None = None
    video: tuple[Tensor, int] | None = None


@dataclass(frozen=True)
class KeptSample:
    """One image of an evaluation on the disk; the attributes are those of `Sample`."""

    index: int
    prompt: str
    source: str
    scores: dict[str, float]
    file: Path
    condition: Path | None = None
    strip: bool = False  # whether it is one of a video's frames


def folder_of(samples: Path, step: int) -> Path:
    """Return the folder of the images of the evaluation after `step`."""
    return samples / f"step-{step:08d}"


def keep_samples(samples: Path, step: int, images: Sequence[Sample], *, first: bool) -> None:
    """Write the images of an evaluation, and delete those of all others but the first and this one.

    Args:
        samples: the folder `samples` of a run; made if it does not exist.
        step: the last finished step.
        images: what to keep.
        first: whether later evaluations are compared with this one. If so, it replaces all earlier ones.
    """
    folder = folder_of(samples, step)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        _write(folder, step, images, first=first)
    except BaseException:  # a full disk, or a signal
        shutil.rmtree(folder, ignore_errors=True)
        raise
    for other in samples.glob(f"step-*/{INDEX}"):
        if other.parent != folder and (first or not _is_first(other)):
            shutil.rmtree(other.parent, ignore_errors=True)


def _write(folder: Path, step: int, images: Sequence[Sample], *, first: bool) -> None:
    rows = []
    for sample in images:
        name = f"{sample.index:05d}"
        _write_picture(folder / f"{name}.webp", sample.image, LARGEST if sample.video is None else WIDEST)
        row = {"index": sample.index, "prompt": sample.prompt, "source": sample.source}
        rows.append({**row, "scores": sample.scores, "file": f"{name}.webp"})
        if sample.condition is not None:
            _write_picture(folder / f"{name}-condition.webp", sample.condition)
            rows[-1]["condition"] = f"{name}-condition.webp"
        if sample.video is not None:
            rows[-1]["strip"] = True
            if find_mp4_problem() is None:
                write_mp4(mp4_of(folder, sample.index), *sample.video)
    write_whole(folder / INDEX, json.dumps({"step": step, "first": first, "samples": rows}, indent=1) + "\n")


def mp4_of(folder: Path, index: int) -> Path:
    """Return the MP4 file of a video in the folder of an evaluation."""
    return folder / f"{index:05d}.mp4"


def _write_picture(file: Path, image: np.ndarray, largest: int = LARGEST) -> None:
    picture = Image.fromarray(image)
    picture.thumbnail((largest, largest))
    picture.save(file, quality=QUALITY, lossless=max(picture.size) <= LOSSLESS)


def _is_first(index: Path) -> bool:
    try:
        return bool(json.loads(index.read_text(encoding="utf-8"))["first"])
    except (OSError, ValueError, KeyError, TypeError):  # damaged, so of no use to anybody
        return False


def read_samples(samples: Path, step: int) -> list[KeptSample]:
    """Read the images of the evaluation after `step`; none if they were not kept or are damaged."""
    folder = folder_of(samples, step)
    try:
        rows: list[dict[str, Any]] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["samples"]
        kept = [
            KeptSample(
                int(row["index"]), str(row["prompt"]), str(row["source"]), dict(row["scores"]),
                folder / Path(row["file"]).name,
                folder / Path(row["condition"]).name if "condition" in row else None,
                bool(row.get("strip")),
            )
            for row in rows
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        sample for sample in kept if sample.file.is_file() and (sample.condition or sample.file).is_file()
    ]
