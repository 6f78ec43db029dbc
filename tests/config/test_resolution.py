"""One number is a square, WIDTHxHEIGHT a rectangle, and every size has one spelling."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from marble_cli.config.compose import compose, dump
from marble_cli.config.resolution import RESOLUTION, Resolution, canonical, nearest_aspect, read_resolution
from marble_cli.config.schema import RunConfig


@pytest.mark.parametrize(
    ("written", "size", "spelling"),
    [
        (512, Resolution(512, 512), 512),
        ("512", Resolution(512, 512), 512),
        ("512x512", Resolution(512, 512), 512),
        ("768x512", Resolution(768, 512), "768x512"),
        ("0512x768", Resolution(512, 768), "512x768"),
    ],
)
def test_every_size_has_one_spelling(written: int | str, size: Resolution, spelling: int | str) -> None:
    assert RESOLUTION.accepts(written)
    assert read_resolution(written) == size
    assert canonical(written) == spelling


@pytest.mark.parametrize("written", ["", "x512", "512x", "512x-8", "512 x 512", "5.12", "1x2x3", 7, "7x512"])
def test_what_is_no_size_is_out_of_range(written: int | str) -> None:
    assert not RESOLUTION.accepts(written)


def test_a_configuration_keeps_the_one_spelling(run_config: Callable[..., RunConfig]) -> None:
    buckets = "data.aspect_ratio_buckets=[64,96x64,48x048]"
    config = run_config("model.resolution=64x64", "evaluation.resolution=64x48", buckets)
    assert (config.model.resolution, config.evaluation.resolution) == (64, "64x48")
    assert config.data.aspect_ratio_buckets == ["64", "96x64", "48"]


@pytest.mark.parametrize(
    ("sides", "resolution"),
    [
        (("width=96", "height=64"), "96x64"),
        (("height=32",), "48x32"),
        (("width=64", "height=64"), 64),
        ((), 48),
    ],
)
def test_sides_go_into_the_resolution(
    run_config: Callable[..., RunConfig], tmp_path: Path, sides: tuple[str, ...], resolution: int | str
) -> None:
    """So that a file of the configuration has one size, which overrides change as ever."""
    overrides = [f"model.{side}" for side in sides]
    config = run_config("model.resolution=48", *overrides)
    assert config.model == replace(run_config().model, resolution=resolution)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert compose(["model.resolution=80"], str(tmp_path / "config.yaml")).model.resolution == 80


def test_the_nearest_aspect_ratio_is_that_of_the_smallest_quotient() -> None:
    buckets = ["100", "200x100", "100x200"]
    for size, nearest in (((9, 9), "100"), ((141, 100), "100"), ((142, 100), "200x100"), ((1, 9), "100x200")):
        assert nearest_aspect(*size, buckets) == nearest
    assert nearest_aspect(3, 2, ["100", "150x100", "300x200"]) == "150x100", "of equals the first"
