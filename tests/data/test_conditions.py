"""Rows name pictures to start from; they are read, made upright, and fitted to the run's resolution."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from marble_cli.data.conditions import Condition, fit_picture
from marble_cli.data.prompts import Prompt
from marble_cli.errors import DataError

Reader = Callable[..., list[Prompt]]


def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_rows(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_rows_name_pictures_below_the_root(tmp_path: Path, read: Reader) -> None:
    (tmp_path / "in").mkdir()
    picture().save(tmp_path / "in" / "a.png")
    write_rows(tmp_path, {"prompt": "make it blue", "image": "in/a.png", "x": 1}, {"prompt": "a cup"})
    first, second = read("p.jsonl")
    assert first.metadata == {"x": 1}
    assert second.image is None
    assert first.image is not None
    expected = torch.from_numpy(np.array(picture())).permute(2, 0, 1)
    torch.testing.assert_close(first.image.pixels(24, 16), expected, rtol=0, atol=0)
    assert first.where == first.image.where == f"{tmp_path / 'p.jsonl'}, line 1"


def test_another_key_or_none_names_the_picture(tmp_path: Path, read: Reader) -> None:
    picture().save(tmp_path / "a.png")
    write_rows(tmp_path, {"prompt": "a", "image": "a.png", "from": "a.png"})
    (other,), (none,) = read("p.jsonl", image_key="from"), read("p.jsonl", image_key=None)
    assert other.image is not None
    assert other.metadata == {"image": "a.png"}
    assert none.image is None
    assert none.metadata == {"image": "a.png", "from": "a.png"}


def test_prompts_differ_by_text_and_by_the_content_of_the_picture(tmp_path: Path, read: Reader) -> None:
    for name, seed in (("a", 0), ("copy", 0), ("b", 1)):
        picture(seed=seed).save(tmp_path / f"{name}.png")
    write_rows(tmp_path, *({"prompt": "a", "image": f"{name}.png"} for name in ("a", "copy", "b")))
    one, copy, other = (prompt.key for prompt in read("p.jsonl"))
    assert one == copy
    assert one != other
    assert one[0] == other[0] == "a"


@pytest.mark.parametrize(("size", "box"), [((48, 16), (16, 0, 32, 16)), ((16, 48), (0, 16, 16, 32))])
def test_pictures_cover_the_resolution_and_lose_their_edges(
    size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """A picture of two flat colours, its middle and its ends, keeps the middle alone."""
    image = Image.new("RGB", size, "red")
    image.paste((0, 0, 255), box)
    fitted = fit_picture(torch.from_numpy(np.array(image)).permute(2, 0, 1), 8, 8)
    assert fitted.shape == (3, 8, 8)
    assert fitted.dtype is torch.uint8
    torch.testing.assert_close(
        fitted[:, 2:-2, 2:-2].float().mean((1, 2)), torch.tensor([0.0, 0.0, 255.0]), rtol=0, atol=1
    )


def test_a_picture_that_changed_is_not_used(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    condition = Condition("p.jsonl, line 3", tmp_path / "a.png")
    assert condition.pixels(8, 8).shape == (3, 8, 8)
    picture(seed=1).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"p\.jsonl, line 3: .*a\.png has changed since"):
        condition.pixels(8, 8)
