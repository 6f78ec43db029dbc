"""The whole reward on small random models: scores, thresholds and refusals."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from marble_reward_geneval.detector import Detector
from marble_reward_geneval.reward import GenEval
from safetensors.torch import load_file, save_file
from torch import Tensor

Pictures = Callable[..., Tensor]


@pytest.fixture(scope="module")
def reward(mask2former: Path, clip: Path) -> GenEval:
    return GenEval(str(mask2former), str(clip))


def test_detected_objects_score_one_and_others_less(pictures: Pictures, reward: GenEval) -> None:
    """A request for exactly the detected objects scores 1; another colour or one more object does not."""
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
    # (count 1 - (n - 1), colour 0) / 2.
    assert verdict.score == (1.0 if len(best) == 1 else (2 - len(best)) / 2)


def test_counting_has_a_threshold_of_its_own(pictures: Pictures, mask2former: Path, clip: Path) -> None:
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


def test_bad_metadata_fails_only_its_image(pictures: Pictures, reward: GenEval) -> None:
    rows = [{"include": [{"class": name, "count": 1}]} for name in ("dog", "dgo", "dog")]
    images = pictures(3)
    first, failed, last = reward(images, ["a dog", "a dgo", "a dog"], rows)
    assert isinstance(failed, ValueError)
    assert "prompt 'a dgo': include class='dgo' is unknown; did you mean 'dog'" in str(failed)
    assert [first] == reward(images[:1], ["a dog"], rows[:1])
    assert [last] == reward(images[2:], ["a dog"], rows[2:])


@pytest.mark.parametrize(
    ("detector", "part"),
    [
        ("mask2former", "class_queries_logits"),
        ("mask2former", "masks_queries_logits"),
        ("detr", "logits"),
        ("detr", "pred_boxes"),
    ],
)
def test_a_picture_on_which_the_detector_overflows_has_failed(
    pictures: Pictures, request: pytest.FixtureRequest, clip: Path, detector: str, part: str
) -> None:
    """No object was found there, which would be a score for another picture."""
    reward = GenEval(str(request.getfixturevalue(detector)), str(clip), threshold=0.05)
    images, rows = pictures(2, seed=5), [{"include": [{"class": "cat", "count": 1}]}] * 2
    expected = reward(images, ["it", "it"], rows)

    def overflow(_: Any, __: Any, outputs: Any) -> None:
        outputs[part][0] = torch.inf
        if part == "masks_queries_logits":
            outputs[part][0, :, ::2] = -torch.inf

    reward.detector.model.register_forward_hook(overflow)
    failed, scored = reward(images, ["it", "it"], rows)
    assert str(failed) == "the detector overflowed in torch.float32. Choose dtype=bfloat16 or float32"
    assert scored == expected[1]


def test_a_picture_whose_colour_overflows_has_failed(
    pictures: Pictures, mask2former: Path, clip: Path
) -> None:
    reward, images = GenEval(str(mask2former), str(clip)), pictures(1, seed=5)
    name, things = max(next(reward.detector(images, 0.3)).items(), key=lambda item: item[1][0].score)
    wanted = {"class": name, "count": sum(thing.score > 0.3 for thing in things)}
    reward.colors.model.visual_projection.register_forward_hook(lambda _, __, found: found * torch.inf)
    failed, scored = reward(
        images.repeat(2, 1, 1, 1),
        ["it", "it"],
        [{"include": [{**wanted, "color": "red"}]}, {"include": [wanted]}],
    )
    assert "the CLIP model of colours overflowed in torch.float32" in str(failed)
    assert scored == 1.0


def test_incomplete_weights_are_refused(mask2former: Path, clip: Path, tmp_path: Path) -> None:
    """Without a refusal transformers would draw missing weights at random."""
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


def test_an_unknown_mode_is_refused(mask2former: Path, clip: Path) -> None:
    with pytest.raises(ValueError, match="mode='hard': expected one of soft, strict"):
        GenEval(str(mask2former), str(clip), mode="hard")


def test_a_clip_without_a_vocabulary_is_refused(mask2former: Path, clip: Path, tmp_path: Path) -> None:
    """Without a refusal every colour would be the same unknown token."""
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
