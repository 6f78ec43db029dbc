"""Single images of evaluations: what is kept, what is deleted, and what is read back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marble_cli.metrics.samples import INDEX, LARGEST, Sample, folder_of, keep_samples, read_samples

NOISE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def sample(index: int = 3, image: np.ndarray = NOISE, **scores: float) -> Sample:
    return Sample(index, 'a "<b>" 山', "text", scores, image)


def test_images_and_scores_are_read_back(tmp_path: Path) -> None:
    keep_samples(tmp_path, 10, [sample(ocr=0.5), sample(7)], first=True)
    one, other = read_samples(tmp_path, 10)
    assert (one.index, one.prompt, one.source, one.scores) == (3, 'a "<b>" 山', "text", {"ocr": 0.5})
    assert (other.index, other.scores) == (7, {})
    with Image.open(one.file) as picture:
        assert picture.format == "WEBP"
        assert np.array_equal(np.asarray(picture), NOISE)  # small ones lose nothing


def test_the_picture_that_an_image_was_edited_from_is_kept_with_it(tmp_path: Path) -> None:
    keep_samples(tmp_path, 10, [replace(sample(), condition=255 - NOISE), sample(7)], first=True)
    one, other = read_samples(tmp_path, 10)
    assert other.condition is None
    assert one.condition is not None
    assert np.array_equal(np.asarray(Image.open(one.condition)), 255 - NOISE)
    one.condition.unlink()
    assert [kept.index for kept in read_samples(tmp_path, 10)] == [7]


def test_large_images_are_made_smaller(tmp_path: Path) -> None:
    keep_samples(tmp_path, 0, [sample(image=np.zeros((300, 2000, 3), np.uint8))], first=True)
    with Image.open(read_samples(tmp_path, 0)[0].file) as picture:
        assert picture.size == (LARGEST, 77)


def test_only_the_first_evaluation_and_the_latest_are_kept(tmp_path: Path) -> None:
    for step in (0, 10, 20):
        keep_samples(tmp_path, step, [sample()], first=step == 0)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-00000000", "step-00000020"]
    keep_samples(tmp_path, 15, [sample()], first=False)  # resumed from an earlier checkpoint
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["step-00000000", "step-00000015"]
    keep_samples(tmp_path, 30, [sample()], first=True)  # compared with from here on
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000030"]


@pytest.mark.parametrize("content", [None, "", "[]", '{"samples": [{}]}', '{"samples": [1]}'])
def test_a_damaged_index_has_no_images_and_gives_way(tmp_path: Path, content: str | None) -> None:
    keep_samples(tmp_path, 0, [sample()], first=True)
    index = folder_of(tmp_path, 0) / INDEX
    index.unlink()
    if content is not None:
        index.write_text(content)
    assert read_samples(tmp_path, 0) == []
    keep_samples(tmp_path, 1, [sample()], first=False)
    assert len(read_samples(tmp_path, 1)) == 1
    assert index.is_file() is False


def test_a_file_of_the_index_stays_in_its_folder(tmp_path: Path) -> None:
    keep_samples(tmp_path, 0, [sample()], first=True)
    index = folder_of(tmp_path, 0) / INDEX
    (tmp_path / "secret.webp").write_text("x")
    index.write_text(index.read_text().replace("00003.webp", "../secret.webp"))
    assert read_samples(tmp_path, 0) == []
