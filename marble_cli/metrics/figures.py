"""Draw the pictures of a run: reward curves and image grids."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from marble_cli.errors import StorageError
from marble_cli.files import writing
from marble_cli.metrics.captions import caption, fonts
from marble_cli.metrics.history import series
from marble_cli.metrics.jsonl import read_rows

if TYPE_CHECKING:  # curves need no torch, which takes seconds to import
    from torch import Tensor

log = logging.getLogger("marble")

# Okabe and Ito's palette, distinguishable with any colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TILES = 12  # prompts in a grid at most
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.dpi": 130,
}


@contextmanager
def styled(texts: Iterable[str]) -> Iterator[None]:
    """Apply the common style, with fonts for the letters of `texts`; close new figures at the end."""
    before = plt.get_fignums()
    try:
        with plt.rc_context(STYLE | fonts(texts)):
            yield
    finally:
        for number in set(plt.get_fignums()) - set(before):
            plt.close(number)


def try_to_draw(file: Path, consequence: str, draw: Callable[[], object]) -> None:
    """Draw `file`; if that fails, delete it and warn.

    Args:
        file: the picture that `draw` writes.
        consequence: the last sentence of the warning, e.g. that the run continues.
        draw: draws the picture.
    """
    try:
        with writing(file, consequence):
            draw()
    except StorageError as error:
        log.warning("%s", error)
    except Exception as error:  # matplotlib may raise anything; a picture must not stop a run
        log.warning("%s could not be drawn: %s: %s. %s", file, type(error).__name__, error, consequence)
    else:
        return
    file.unlink(missing_ok=True)


def curves(metrics: Path, output: Path) -> Path:
    """Draw each reward's mean over steps (training batches and held-out prompts) and the balance's shares."""
    rows = read_rows(metrics)
    train = [row for row in rows if row["phase"] == "train"]
    held_out = [row for row in rows if row["phase"] == "eval"]
    names = list(dict.fromkeys(k.split("/")[1] for row in train for k in row if k.startswith("reward/")))
    columns = 3
    height = (len(names) + columns) // columns
    with styled(names):
        figure, axes = plt.subplots(height, columns, figsize=(10, 2.7 * height), squeeze=False)
        panels = list(axes.flat)
        for index, (name, panel) in enumerate(zip(names, panels, strict=False)):
            color = COLORS[index % len(COLORS)]
            panel.plot(
                *series(train, f"reward/{name}/mean"), color=color, alpha=0.35, lw=1, label="training batch"
            )
            panel.plot(
                *series(held_out, f"reward/{name}/mean"),
                color=color,
                lw=2,
                marker="o",
                ms=4,
                label="held out",
            )
            panel.set_title(caption(name, 34, 2), color=color)
            panel.set_xlabel("step")
        shares = panels[len(names)]
        for index, name in enumerate(names):
            steps, values = series(train, f"balance/alpha/{name}")
            shares.plot(steps, values, color=COLORS[index % len(COLORS)], lw=1.5)
        shares.set_title("share in the balance, alpha")
        shares.set_xlabel("step")
        panels[0].legend(frameon=False, fontsize=7)
        for panel in panels[len(names) + 1 :]:
            panel.axis("off")
        figure.tight_layout()
        figure.savefig(output)
    return output


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, evenly spaced."""
    return list(range(0, count, max(1, -(-count // most))))


def on_white(images: Sequence["Tensor"]) -> "Tensor":
    """Stack images uint8 [3, H, W] of any sizes, with white beside those that are smaller than others."""
    import torch

    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    stacked = torch.full((len(images), 3, height, width), 255, dtype=torch.uint8)
    for place, image in zip(stacked, images, strict=True):
        top, left = (height - image.shape[1]) // 2, (width - image.shape[2]) // 2
        place[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return stacked


TO_EDIT = "to edit"  # label of the pictures that images were edited from


def image_grid(
    rows: Sequence[tuple[str, "Tensor | Sequence[Tensor]"]],
    captions: list[str],
    output: Path,
    columns: int = 6,
) -> Path:
    """Draw labelled rows of images, with one column per prompt, of `TILES` prompts at most.

    Images wider than three times their height, such as strips of frames, are drawn three times as wide.

    Args:
        rows: (label, N images uint8 [3, H, W]); the same N prompts in every row.
        captions: the N prompts.
        output: the PNG file.
        columns: the number of prompts per block; further blocks are drawn below.
    """
    tiles = spread(len(captions), TILES)
    captions = [captions[i] for i in tiles]
    tile, title, left = 1.5, 0.5, 0.3  # inches
    if max(image.shape[2] / image.shape[1] for image in rows[0][1]) > 3:
        columns, tile = columns // 3, 3 * tile
    blocks = -(-len(tiles) // columns)
    high = tile * max(images[i].shape[1] / images[i].shape[2] for _, images in rows for i in tiles)
    width, height = left + tile * columns, blocks * (high * len(rows) + title)
    with styled([*captions, *(label for label, _ in rows)]):
        figure = plt.figure(figsize=(width, height))
        for place, (index, prompt) in enumerate(zip(tiles, captions, strict=True)):
            block, column = divmod(place, columns)
            for line, (label, images) in enumerate(rows):
                below = (blocks - block) * (high * len(rows) + title) - title - (line + 1) * high
                area = (
                    (left + column * tile) / width,
                    below / height,
                    0.97 * tile / width,
                    0.97 * high / height,
                )
                panel = figure.add_axes(area)
                panel.axis("off")
                panel.imshow(np.asarray(images[index].permute(1, 2, 0)), interpolation="nearest")
                if line == 0:
                    panel.set_title(
                        caption(prompt, 26, 4),
                        fontsize=6.5,
                        loc="center",
                        weight="normal",
                        pad=3,
                    )
                if column == 0:
                    panel.text(
                        -0.09 / tile,
                        0.5,
                        caption(label, 24, 1),
                        transform=panel.transAxes,
                        rotation=90,
                        va="center",
                        ha="right",
                        fontsize=7,
                    )
        figure.savefig(output)
    return output
