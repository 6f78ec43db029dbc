"""The rewards that need nothing beyond the core's own dependencies."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from marble_cli.rewards.builtin.colorfulness import colorfulness
from marble_cli.rewards.builtin.compressibility import Compressibility
from marble_cli.rewards.builtin.keeping import keeping
from marble_cli.rewards.conformance import RewardConformance


class TestColorfulnessConformance(RewardConformance):
    plugin = "colorfulness"


class TestCompressibilityConformance(RewardConformance):
    plugin = "compressibility"


class TestKeepingConformance(RewardConformance):
    plugin = "keeping"


def noise(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def halves(left: tuple[int, int, int], right: tuple[int, int, int], side: int = 8) -> Tensor:
    """A picture of two colours, uint8 [1, 3, side, side]."""
    image = torch.empty((1, 3, side, side), dtype=torch.uint8)
    image[..., : side // 2] = torch.tensor(left, dtype=torch.uint8)[:, None, None]
    image[..., side // 2 :] = torch.tensor(right, dtype=torch.uint8)[:, None, None]
    return image


def hasler_suesstrunk(image: np.ndarray) -> float:
    """Colourfulness of [H, W, 3] as the paper writes it, in float64."""
    red, green, blue = (image[..., channel].astype(np.float64) for channel in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    sigma = math.sqrt(np.std(rg) ** 2 + np.std(yb) ** 2)
    mu = math.sqrt(np.mean(rg) ** 2 + np.mean(yb) ** 2)
    return sigma + 0.3 * mu


@pytest.mark.parametrize("level", [0, 1, 127, 255])
def test_grey_is_not_colourful(level: int) -> None:
    assert colorfulness(torch.full((1, 3, 8, 8), level, dtype=torch.uint8)).item() == 0


def test_colourfulness_of_two_colours_in_closed_form() -> None:
    """Red beside blue: rg is 255 and 0, yb is 127.5 and -255."""
    deviation = math.hypot(255 / 2, (127.5 + 255) / 2)
    mean = math.hypot(255 / 2, (127.5 - 255) / 2)
    score = colorfulness(halves((255, 0, 0), (0, 0, 255))).item()
    assert score == pytest.approx(deviation + 0.3 * mean, rel=1e-6)


@given(st.tuples(*[st.tuples(*[st.integers(0, 255)] * 3)] * 2))
def test_colourfulness_is_that_of_the_paper(
    colors: tuple[tuple[int, int, int], tuple[int, int, int]],
) -> None:
    image = halves(*colors)
    reference = hasler_suesstrunk(image[0].permute(1, 2, 0).numpy())
    assert colorfulness(image).item() == pytest.approx(reference, rel=1e-5, abs=1e-4)


def test_colourfulness_of_noise() -> None:
    images = noise(4, 33, 20)
    references = [hasler_suesstrunk(image.permute(1, 2, 0).numpy()) for image in images]
    assert colorfulness(images).tolist() == pytest.approx(references, rel=1e-5)


@pytest.mark.parametrize("quality", [5, 50, 95])
def test_compressibility_is_minus_the_size_of_the_file(quality: int) -> None:
    images = torch.cat([noise(2, 40, 24), torch.full((1, 3, 40, 24), 90, dtype=torch.uint8)])
    sizes = []
    for image in images:
        stream = io.BytesIO()
        picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        picture.save(stream, format="JPEG", quality=quality)
        sizes.append(len(stream.getvalue()))
    assert Compressibility(quality)(images) == [-size / 1000 for size in sizes]


def test_smooth_pictures_compress_better() -> None:
    flat = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
    assert Compressibility()(flat)[0] > Compressibility()(noise(1, 64, 64))[0]


@pytest.mark.parametrize("quality", [0, 96, -1])
def test_a_quality_beyond_jpeg_is_refused(quality: int) -> None:
    with pytest.raises(ValueError, match=f"quality={quality}: expected 1 to 95"):
        Compressibility(quality)


def test_keeping_is_minus_the_mean_change_outside_of_the_region() -> None:
    """Of 8 x 8 pixels, the region's 4 x 2 change by 100, and one row of 8 by 12 in a channel of three."""
    before = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    after = before.clone()
    after[0, :, 2:4, 4:8] = 200
    after[0, 1, 7] = 88
    region = [0.5, 0.25, 1.0, 0.5]
    assert keeping(after, [{"region": region}], before) == pytest.approx([-(8 * 12 / 3) / (64 - 8)])
    assert keeping(after, [{}], before) == pytest.approx([-(8 * 12 / 3 + 8 * 100) / 64])
    assert keeping(before, [{}], before) == [0.0]


def test_keeping_counts_no_pixel_that_the_region_touches() -> None:
    before, after = torch.zeros(2, 1, 3, 8, 8, dtype=torch.uint8)
    after[0, :, 1:3, 1:3] = 255
    assert keeping(after, [{"region": [0.2, 0.2, 0.3, 0.3]}], before) == [0.0]


@pytest.mark.parametrize("region", [[0, 0, 1], [0.5, 0, 0.5, 1], [0, 0, 1.1, 1], [0, 0, 1, 1]])
def test_a_region_that_leaves_nothing_to_keep_fails_only_its_image(region: list[float]) -> None:
    images = noise(2, 8, 8)
    refused, score = keeping(images, [{"region": region}, {}], images)
    assert isinstance(refused, ValueError)
    assert f"region={region}" in str(refused)
    assert score == 0
