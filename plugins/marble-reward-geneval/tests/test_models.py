"""Detectors, colours and the whole reward on small random models, against computations written out here."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from marble_reward_geneval.classes import COLORS, class_of
from marble_reward_geneval.colors import ColorClassifier, crop
from marble_reward_geneval.detector import Detector, instances
from marble_reward_geneval.reward import GenEval
from marble_reward_geneval.rules import Detection
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, DetrForObjectDetection, Mask2FormerForUniversalSegmentation

from marble_cli.rewards.api import Batch
from marble_cli.rewards.conformance import RewardConformance

SIDE, CROP = 64, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = [(64, 64), (48, 80), (90, 61)]


def pictures(count: int, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Patches of colour: uint8 [count, 3, height, width]."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 255).byte()


def prepared(image: Tensor, divisor: int) -> Tensor:
    """A picture as the detectors' processors should make it: [1, 3, h, w] float64."""
    height, width = image.shape[1:]
    scale = SIDE / min(height, width)
    if round(scale * max(height, width)) > 2 * SIDE:
        scale = 2 * SIDE / max(height, width)
    sides = [math.ceil(int(scale * side) / divisor) * divisor for side in (height, width)]
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    pixels = np.asarray(picture.resize((sides[1], sides[0]), Image.Resampling.BILINEAR)) / 255
    return torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)[None]


def enlarged(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize of [h, w] whose pixels are areas, as numpy alone does it."""
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
    """Label, score, box and mask of every candidate, best first."""
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


def test_instances_of_blobs() -> None:
    """Smooth blobs whose masks are parts of the picture; a query of no object; a query with an empty mask."""
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
def test_reads_mask2former(mask2former: Path, tiny: ModuleType, height: int, width: int) -> None:
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
def test_reads_detr(detr: Path, height: int, width: int) -> None:
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


def test_the_crop_is_grey_outside_the_mask() -> None:
    image = np.arange(3 * 6 * 8, dtype=np.uint8).reshape(3, 6, 8)
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:5] = True
    mask[1, 2] = False
    cut = crop(image, Detection((2.0, 1.0, 5.0, 4.0), 1.0, mask))
    assert cut.shape == (3, 3, 3)
    assert cut[:, 0, 0].tolist() == [0x99] * 3
    assert np.array_equal(cut[:, 1:], image[:, 2:4, 2:5])
    whole = crop(image, Detection((1.6, 0.4, 5.2, 3.7), 1.0))  # rounded: 2, 0, 5, 4
    assert np.array_equal(whole, image[:, 0:4, 2:5])
    assert crop(image, Detection((8.0, 6.0, 8.0, 6.0), 1.0)).shape == (3, 1, 1)


def test_colours_are_the_nearest_texts(clip: Path, tiny: ModuleType) -> None:
    """Cosines against CLIP in float64, one text and one crop at a time, words looked up here."""
    model = CLIPModel.from_pretrained(clip).double().eval()
    classifier = ColorClassifier(str(clip), "cpu", torch.float32)
    words = classifier.tokenizer.get_vocab()

    def text(sentence: str) -> np.ndarray:
        numbers = [words[word] for word in sentence.replace("-", " - ").split()]
        with torch.no_grad():
            state = model.text_model(torch.tensor([[0, *numbers, 1]])).pooler_output
            row = model.text_projection(state)[0].numpy()
        return np.asarray(row / np.linalg.norm(row))

    def picture(pixels: np.ndarray) -> np.ndarray:
        image = Image.fromarray(pixels)
        scale = CROP / min(image.size)
        width, height = (int(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - CROP) // 2, (height - CROP) // 2
        values = (np.asarray(image.crop((left, top, left + CROP, top + CROP))) / 255 - MEAN) / STD
        with torch.no_grad():
            state = model.vision_model(torch.from_numpy(values).permute(2, 0, 1)[None]).pooler_output
            row = model.visual_projection(state)[0].numpy()
        return np.asarray(row / np.linalg.norm(row))

    image = pictures(1, 60, 80, seed=3)[0]
    mask = np.zeros((60, 80), bool)
    mask[10:40, 20:70] = True
    mask[10:20, 20:30] = False
    things = [Detection((20.0, 10.0, 70.0, 40.0), 0.9, mask), Detection((5.0, 5.0, 37.0, 50.0), 0.8)]
    pixels = image.permute(1, 2, 0).numpy()
    grey = np.where(mask[..., None], pixels, np.uint8(153))
    seen = [picture(grey[10:40, 20:70].copy()), picture(pixels[5:50, 5:37].copy())]
    name = "computer mouse"
    expected = np.zeros((2, 10))
    for place, color in enumerate(COLORS):
        texts = [
            f"a photo of a {color} {name}",
            f"a photo of a {color}-colored {name}",
            f"a photo of a {color} object",
        ]
        mean = np.mean([text(sentence) for sentence in texts], axis=0)
        expected[:, place] = [one @ mean / np.linalg.norm(mean) for one in seen]
    assert classifier.similarities(image, things, name).numpy() == pytest.approx(expected, abs=2e-5)
    assert classifier(image, things, name) == [COLORS[row.argmax()] for row in expected]


@pytest.fixture(scope="module")
def reward(mask2former: Path, clip: Path) -> GenEval:
    return GenEval(str(mask2former), str(clip))


def test_scores_what_the_detector_finds(reward: GenEval) -> None:
    """What stands in the picture by the detector's own word scores 1; another colour or one more object does not."""
    images = pictures(1, seed=5)
    found = next(reward.detector(images, 0.3))
    name, things = max(found.items(), key=lambda item: max(thing.score for thing in item[1]))
    best = [thing for thing in things if thing.score > 0.3]
    entry: dict[str, Any] = {"class": name, "count": len(best)}
    assert reward(images, ["it"], [{"include": [entry]}]) == [1.0]
    assert reward(images, ["it"], [{"include": [{**entry, "count": len(best) + 1}]}]) == pytest.approx(
        [1 - 1 / (len(best) + 1)]
    )
    one = {"class": name, "count": 1}
    colors = reward.colors(images[0], best, name)
    (verdict,) = reward.verdicts(images, ["it"], [{"include": [{**one, "color": colors[0]}]}])
    assert verdict.score == (
        1.0 if len(best) == 1 else (2 - len(best)) / 2
    )  # (count 1 - (n - 1), colour 0) / 2


def test_counting_has_a_threshold_of_its_own(mask2former: Path, clip: Path) -> None:
    images = pictures(1, seed=5)
    probe = next(Detector(str(mask2former), "cpu", torch.float32, 8)(images, 0.1))
    name, things = next((n, t) for n, t in probe.items() if len(t) > 1)
    first, second = sorted((thing.score for thing in things), reverse=True)[:2]
    between, below = (first + second) / 2, second * 0.999
    reward = GenEval(
        str(mask2former), str(clip), mode="strict", threshold=below, counting_threshold=between, max_objects=2
    )
    wanted = {"include": [{"class": name, "count": 2}]}
    assert reward(images, ["it"], [{**wanted, "tag": "two_object"}]) == [1.0]
    assert reward(images, ["it"], [{**wanted, "tag": "counting"}]) == [0.0]


def test_bad_metadata_is_a_failure_of_its_image_alone(reward: GenEval) -> None:
    rows = [{"include": [{"class": name, "count": 1}]} for name in ("dog", "dgo", "dog")]
    images = pictures(3)
    first, failed, last = reward(images, ["a dog", "a dgo", "a dog"], rows)
    assert isinstance(failed, ValueError)
    assert "prompt 'a dgo': include class='dgo' is unknown; did you mean 'dog'" in str(failed)
    assert [first] == reward(images[:1], ["a dog"], rows[:1])
    assert [last] == reward(images[2:], ["a dog"], rows[2:])


def test_pictures_are_looked_at_as_they_are_asked_for(mask2former: Path) -> None:
    """So that the masks of a large batch are never all in memory."""
    detector, calls = Detector(str(mask2former), "cpu", torch.float32, 2), []
    detector.model.register_forward_hook(lambda *_: calls.append(None))
    found = detector(pictures(6), 0.2)
    next(found)
    assert len(calls) == 1
    assert len(list(found)) == 5
    assert len(calls) == 3


def test_incomplete_weights_are_refused(mask2former: Path, clip: Path, tmp_path: Path) -> None:
    """transformers would draw what is missing at random, and all scores with it."""
    for source, dropped in ((mask2former, "class_predictor.weight"), (clip, "visual_projection.weight")):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        weights = load_file(folder / "model.safetensors")
        save_file(
            {k: v for k, v in weights.items() if k != dropped}, folder / "model.safetensors", {"format": "pt"}
        )
        models = {"detector": str(mask2former), "clip": str(clip)} | {
            "detector" if source is mask2former else "clip": str(folder)
        }
        with pytest.raises(OSError, match=f"its weights lack 1 parameters, {dropped} among them"):
            GenEval(**models)


def test_an_unknown_mode_is_an_error(mask2former: Path, clip: Path) -> None:
    with pytest.raises(ValueError, match="mode='hard': expected one of soft, strict"):
        GenEval(str(mask2former), str(clip), mode="hard")


def test_a_clip_without_a_vocabulary_is_refused(mask2former: Path, clip: Path, tmp_path: Path) -> None:
    """Else every colour would be the same unknown word."""
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}'
    )
    with pytest.raises(OSError, match=rf"cannot be loaded: the tokenizer of {folder} has no vocabulary"):
        GenEval(str(mask2former), str(folder))


def test_wrong_models_are_named(mask2former: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no folder .*absent"):
        GenEval(str(tmp_path / "absent"), str(clip))
    with pytest.raises(
        OSError, match="type 'clip'. Expected config.json of Mask2Former, MaskFormer or an object"
    ):
        GenEval(str(clip), str(clip))
    with pytest.raises(OSError, match="cannot be loaded: .* Expected the files of a CLIPModel"):
        GenEval(str(mask2former), str(tmp_path))


def test_a_detector_of_other_things_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    folder = tiny.write_detr(tmp_path)
    model = DetrForObjectDetection.from_pretrained(folder)
    model.config.id2label = dict.fromkeys(model.config.id2label, "table row")
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="has the labels table row.* none is a COCO class"):
        Detector(str(folder), "cpu", torch.float32, 8)


Rows = list[dict[str, Any]]
BY_MASKS: Rows = [  # what the tiny Mask2Former sees, and does not
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}]},
    {"tag": "two_object", "include": [{"class": "book", "count": 1}, {"class": "dog", "count": 2}]},
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]},
    {"tag": "colors", "include": [{"class": "skateboard", "count": 1, "color": "orange"}]},
    {"tag": "position", "include": [{"class": "book", "count": 1}, {"class": "car", "count": 1, "position": ("above", 0)}]},
    {"tag": "color_attr", "include": [{"class": "car", "count": 1, "color": "red"}, {"class": "cat", "count": 1, "color": "pink"}]},
]  # fmt: skip
BY_BOXES: Rows = [  # the tiny DETR sees couches everywhere
    {"tag": "single_object", "include": [{"class": "couch", "count": 1}]},
    {"tag": "colors", "include": [{"class": "couch", "count": 9, "color": "orange"}]},
] * 3


class GenEvalConformance(RewardConformance):
    """The suite on pictures of patches."""

    plugin = "geneval"
    options: ClassVar[Mapping[str, Any]]
    metadata: ClassVar[Rows]

    def batch(self) -> Batch:
        return Batch(pictures(6, seed=7), [row["tag"] for row in self.metadata], self.metadata)

    def test_scores_differ(self) -> None:
        """Else the suite would say little."""
        assert len({*self.reward().call(self.batch())}) > 1


class TestSoftConformance(GenEvalConformance):
    metadata = BY_MASKS

    @pytest.fixture(autouse=True)
    def _models(self, mask2former: Path, clip: Path) -> None:
        type(self).options = {"detector": str(mask2former), "clip": str(clip), "batch_size": 4}


class TestStrictConformance(GenEvalConformance):
    metadata = BY_BOXES

    @pytest.fixture(autouse=True)
    def _models(self, detr: Path, clip: Path) -> None:
        type(self).options = {"detector": str(detr), "clip": str(clip), "mode": "strict"}
