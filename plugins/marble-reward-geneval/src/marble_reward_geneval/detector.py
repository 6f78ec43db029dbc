"""Detect objects of GenEval's classes with models of transformers, with and without masks."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from marble_cli.pretrained import load_model, loading, resolve_source
from marble_reward_geneval.classes import class_of
from marble_reward_geneval.rules import REMEDY, Detection

SEGMENTERS = ("mask2former", "maskformer")
MAX_CANDIDATES = 100  # per picture, as in mmdetection's Mask2Former
Found = dict[str, list[Detection]] | FloatingPointError  # in a picture: objects by class, or an overflow
EXPECTED = (
    "config.json of Mask2Former, MaskFormer or an object detector, model.safetensors, "
    "preprocessor_config.json"
)


class Detector:
    """An instance segmentation model or a box detector; `classes` are the GenEval classes that it knows."""

    def __init__(self, source: str, device: str | torch.device, dtype: torch.dtype, batch_size: int) -> None:
        """Load a detector and its image processor.

        Args:
            source: a folder or a repository of the Hugging Face hub.
            device: where to compute.
            dtype: precision of the model; scores and masks are computed in float32.
            batch_size: pictures per forward pass.

        Raises:
            OSError: the model cannot be found or fetched, has no safetensors weights or is no detector.
            ValueError: the model knows none of GenEval's classes.
        """
        source = resolve_source(source)
        with loading(f"the detector {source!r}", EXPECTED):
            config: Any = AutoConfig.from_pretrained(source)
            family: Any
            if config.model_type in SEGMENTERS:
                family, self.read = AutoModelForUniversalSegmentation, self._read_masks
            elif config.model_type in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
                family, self.read = AutoModelForObjectDetection, self._read_boxes
            else:
                raise ValueError(f"it is of the type {config.model_type!r}")
            model = load_model(family, source, dtype)
            self.processor: Any = AutoImageProcessor.from_pretrained(source, backend="pil")
        self.model = model.to(device)
        self.batch_size = batch_size
        self.names = {int(number): class_of(label) for number, label in model.config.id2label.items()}
        self.classes = [name for name in self.names.values() if name is not None]
        if not self.classes:
            labels = ", ".join(list(model.config.id2label.values())[:5])
            raise ValueError(
                f"the detector {source!r} has the labels {labels}, ...: none is a COCO class. Choose a "
                "detector that was trained on COCO."
            )

    @torch.no_grad()
    def __call__(self, images: Tensor, threshold: float) -> Iterator[Found]:
        """Yield the objects of each picture by class, in the model's order; an error where it overflowed.

        Pictures are processed a few at a time, because masks are as large as the picture. All pictures of a
        call have one size, so the processor pads none of them to the size of another.

        Args:
            images: uint8 [B, 3, H, W].
            threshold: objects with a score up to this may be left out.
        """
        height, width = images.shape[2:]
        for part in images.split(self.batch_size):
            inputs = self.processor(
                list(part.numpy()), input_data_format="channels_first", return_tensors="pt"
            ).to(self.model.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
            yield from self.read(self.model(**inputs), (height, width), threshold)

    def _read_masks(self, outputs: Any, size: tuple[int, int], threshold: float) -> list[Found]:
        pictures: list[Found] = []
        for classes, masks in zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True):
            try:
                scores, labels, shapes = instances(classes, masks, size, threshold)
            except FloatingPointError as error:
                pictures.append(error)
                continue
            boxes = [box_of(shape) for shape in shapes]
            pictures.append(self._by_class(scores, labels, boxes, list(shapes.numpy())))
        return pictures

    def _read_boxes(self, outputs: Any, size: tuple[int, int], threshold: float) -> list[Found]:
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        answers = self.processor.post_process_object_detection(
            outputs, threshold=threshold, target_sizes=[size] * len(outputs.logits)
        )
        bounds = torch.tensor([size[1], size[0]] * 2)
        pictures: list[Found] = []
        for answer, logits, corners in zip(answers, outputs.logits, outputs.pred_boxes, strict=True):
            if not (logits.max() < torch.inf and corners.isfinite().all()):
                pictures.append(_overflow(self.model.dtype))
                continue
            boxes = torch.minimum(answer["boxes"].cpu().clamp(min=0), bounds).tolist()
            pictures.append(self._by_class(answer["scores"].cpu(), answer["labels"].cpu(), boxes, None))
        return pictures

    def _by_class(
        self, scores: Tensor, labels: Tensor, boxes: list[Any], masks: list[Any] | None
    ) -> dict[str, list[Detection]]:
        detections: dict[str, list[Detection]] = defaultdict(list)
        for place, (score, label) in enumerate(zip(scores.tolist(), labels.tolist(), strict=True)):
            name = self.names.get(label)
            if name is not None:
                mask = None if masks is None else masks[place]
                detections[name].append(Detection(tuple(boxes[place]), score, mask))
        return dict(detections)


def instances(
    class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int], threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Read the instances from a mask transformer's queries, as mmdetection does for GenEval.

    A candidate is a query and a class; the 100 likeliest are kept. Its mask is where the mask's logit is
    above 0. Its score is the class's probability times the mean probability of the mask's own pixels.

    Args:
        class_logits: [Q, C + 1]; the last class means no object.
        mask_logits: [Q, h, w]; resized bilinearly to the picture.
        size: height and width of the picture.
        threshold: candidates whose class is at most this probable are left out; their scores would be lower
            still.

    Returns:
        Scores [n] float32, labels [n] int64 and masks [n, H, W] bool, on the CPU.

    Raises:
        FloatingPointError: the model overflowed.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    if probabilities.isnan().any():
        raise _overflow(class_logits.dtype)
    best, place = probabilities.flatten().topk(min(MAX_CANDIDATES, probabilities.numel()))
    best, place = best[best > threshold], place[best > threshold]
    query, label = place // probabilities.shape[1], place % probabilities.shape[1]
    if not len(query):
        return best.cpu(), label.cpu(), torch.zeros((0, *size), dtype=torch.bool)
    logits = interpolate(mask_logits[query][None].float(), size, mode="bilinear", align_corners=False)[0]
    masks = logits > 0
    certainty = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    if certainty.isnan().any():
        raise _overflow(mask_logits.dtype)
    return (best * certainty).cpu(), label.cpu(), masks.cpu()


def _overflow(dtype: torch.dtype) -> FloatingPointError:
    return FloatingPointError(f"the detector overflowed in {dtype}. {REMEDY}")


def box_of(mask: Tensor) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a mask [H, W], the last two exclusive; zeros if it is empty."""
    rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
    if not rows:
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
