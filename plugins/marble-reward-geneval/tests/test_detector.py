"""Detectors: small random models against computations written out here, and models that are refused."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from marble_reward_geneval.classes import class_of
from marble_reward_geneval.detector import Detector, instances
from marble_reward_geneval.rules import Detection
from PIL import Image
from torch import Tensor
from transformers import DetrForObjectDetection, Mask2FormerForUniversalSegmentation

Pictures = Callable[..., Tensor]

SIDE = 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(64, 64), (48, 80), (90, 61)]


def prepared(image: Tensor, divisor: int) -> Tensor:
    """Prepare a picture as the detectors' processors should: [1, 3, h, w] float64."""
    height, width = image.shape[1:]
    scale = SIDE / min(height, width)
    if round(scale * max(height, width)) > 2 * SIDE:
        scale = 2 * SIDE / max(height, width)
    sides = [math.ceil(int(scale * side) / divisor) * divisor for side in (height, width)]
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pixels = np.asarray(picture.resize((sides[1], sides[0]), Image.Resampling.BILINEAR)) / 255
    return torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)[None]


def enlarged(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize [h, w] bilinearly, with pixels as areas, by numpy alone."""
    rows = np.clip((np.arange(height) + 0.5) * plane.shape[0] / height - 0.5, 0, plane.shape[0] - 1)
    columns = np.clip((np.arange(width) + 0.5) * plane.shape[1] / width - 0.5, 0, plane.shape[1] - 1)
    wide = np.array([np.interp(columns, np.arange(plane.shape[1]), row) for row in plane])
    return np.array([np.interp(rows, np.arange(plane.shape[0]), column) for column in wide.T]).T


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def expected_instances(
    class_logits: np.ndarray, mask_logits: np.ndarray, size: tuple[int, int], threshold: float
) -> list[tuple[int, float, tuple[int, ...], np.ndarray]]:
    """Return label, score, box and mask of every candidate, best first."""
    found = []
    for probabilities, plane in zip(softmax(class_logits)[:, :-1], mask_logits, strict=True):
        logits = enlarged(plane, *size)
        mask = logits > 0
        if not mask.any():
            continue
        certainty = (1 / (1 + np.exp(-logits[mask]))).mean()
        rows, columns = np.nonzero(mask)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        for label in np.nonzero(probabilities > threshold)[0]:
            found.append((int(label), float(probabilities[label] * certainty), tuple(map(int, box)), mask))
    return sorted(found, key=lambda one: -one[1])


def flat(found: Mapping[str, list[Detection]]) -> list[tuple[str, Detection]]:
    pairs = [(name, thing) for name, things in found.items() for thing in things]
    return sorted(pairs, key=lambda pair: -pair[1].score)


def test_instances_of_blobs_match_the_computation() -> None:
    """Covers smooth blobs, a query without an object and a query with an empty mask."""
    rows, columns = np.mgrid[:16, :20]
    blobs = [((4, 5), 3.0), ((11, 14), 4.0), ((8, 10), 6.0), ((2, 2), -1.0)]
    masks = np.array([radius - np.hypot(rows - y, columns - x) for (y, x), radius in blobs])
    classes = np.array([[4.0, 0, 0, 0], [0, 3, 2.9, 0], [0, 0, 0, 9], [9, 0, 0, 0]])
    scores, labels, shapes = instances(torch.from_numpy(classes), torch.from_numpy(masks), (50, 70), 0.3)
    order = scores.argsort(descending=True)
    expected = expected_instances(classes, masks, (50, 70), 0.3)
    assert [label for label, *_ in expected] == [0, 1, 2]
    kept = [place for place in order.tolist() if shapes[place].any()]
    assert labels[kept].tolist() == [label for label, *_ in expected]
    assert scores[kept].numpy() == pytest.approx([score for _, score, *_ in expected], abs=1e-6)
    assert all(np.array_equal(shapes[place], mask) for place, (*_, mask) in zip(kept, expected, strict=True))
    assert [float(scores[place]) for place in order.tolist() if not shapes[place].any()] == [0.0]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_mask2former_matches_the_computation(
    pictures: Pictures, mask2former: Path, tiny: ModuleType, height: int, width: int
) -> None:
    images = pictures(3, height, width)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(mask2former).double().eval()
    seen = 0
    for image, found in zip(
        images, Detector(str(mask2former), "cpu", torch.float32, 2)(images, 0.2), strict=True
    ):
        with torch.no_grad():
            answer = model(prepared(image, 32))
        expected = expected_instances(
            answer.class_queries_logits[0].numpy(),
            answer.masks_queries_logits[0].numpy(),
            (height, width),
            0.2,
        )
        pairs = [(name, thing) for name, thing in flat(found) if thing.score > 0]
        assert [name for name, _ in pairs] == [class_of(tiny.LABELS[label]) for label, *_ in expected]
        for (_, thing), (_, score, box, mask) in zip(pairs, expected, strict=True):
            assert thing.score == pytest.approx(score, abs=1e-4)
            assert thing.mask is not None
            assert (thing.mask != mask).mean() < 0.002  # a logit near 0 may round to either side
            assert thing.box == pytest.approx(box, abs=1)
        seen += len(pairs)
    assert seen >= 6


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_detr_matches_the_computation(pictures: Pictures, detr: Path, height: int, width: int) -> None:
    images = pictures(3, height, width, seed=1)
    model = DetrForObjectDetection.from_pretrained(detr).double().eval()
    seen = 0
    for image, found in zip(images, Detector(str(detr), "cpu", torch.float32, 2)(images, 0.3), strict=True):
        with torch.no_grad():
            answer = model(prepared(image, 1))
        probabilities = softmax(answer.logits[0].numpy())[:, :-1]
        expected = []
        for row, (x, y, w, h) in zip(probabilities, answer.pred_boxes[0].numpy(), strict=True):
            name = class_of(model.config.id2label[int(row.argmax())])
            if row.max() > 0.3 and name is not None:
                corners = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
                expected.append((row.max(), name, np.clip(corners, 0, [width, height] * 2)))
        pairs = flat(found)
        assert len(pairs) == len(expected)
        for (name, thing), (score, label, box) in zip(
            pairs, sorted(expected, key=lambda e: -e[0]), strict=True
        ):
            assert (name, thing.mask) == (label, None)
            assert thing.score == pytest.approx(score, abs=1e-4)
            assert thing.box == pytest.approx(box, abs=1e-2)
        seen += len(pairs)
    assert seen >= 3


def test_pictures_are_processed_only_when_needed(pictures: Pictures, mask2former: Path) -> None:
    """Never holds the masks of a large batch in memory at once."""
    detector, calls = Detector(str(mask2former), "cpu", torch.float32, 2), []
    detector.model.register_forward_hook(lambda *_: calls.append(None))
    found = detector(pictures(6), 0.2)
    next(found)
    assert len(calls) == 1
    assert len(list(found)) == 5
    assert len(calls) == 3


def test_a_detector_without_coco_classes_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    folder = tiny.write_detr(tmp_path)
    model = DetrForObjectDetection.from_pretrained(folder)
    model.config.id2label = dict.fromkeys(model.config.id2label, "table row")
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="has the labels table row.* none is a COCO class"):
        Detector(str(folder), "cpu", torch.float32, 8)
