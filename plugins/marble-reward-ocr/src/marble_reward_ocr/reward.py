"""Whether the text that was asked for can be read in the picture."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import rapidocr
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from marble_reward_ocr.text import FOLDS

DETECTOR, RECOGNISER = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
QUOTED = re.compile('["\u201c\u201d]([^"\u201c\u201d]+)["\u201c\u201d]')
DETECT_ABOVE = 128  # pixels: up to here a picture is taken for one line of text
DETECTOR_SIDE = 192  # pixels: smaller pictures are enlarged to it before text is looked for
LINE = (
    3,
    48,
    96,
)  # the recogniser's input: lines are scaled to 48 pixels' height and padded to 96 pixels' width


class Ocr:
    """Can the text of the prompt be read in the picture? 1 is letter by letter, 0 is not at all."""

    requires: ClassVar = {"text": str | None}  # without it, what the prompt has in double quotes is wanted
    range = (0.0, 1.0)
    license = "Apache-2.0, models (PP-OCRv6) Apache-2.0"
    citation = "PaddleOCR, arXiv 2507.05595; as a reward: Flow-GRPO, arXiv 2505.05470"

    def __init__(self, detect: bool | None = None, fold: str = "canonical") -> None:
        """Load the reader; it computes on one thread of the CPU and never reaches for the network.

        Args:
            detect: look for lines of text before reading them; false takes the whole picture for one line, which is
                ten times faster; None looks for them in pictures of more than 128 pixels a side.
            fold: which texts are the same. "canonical": those that Unicode holds equal, whatever unseen
                characters they have; "compatible": full width, ligatures and the like too; "lookalike": also
                letters, quotes and dashes of one shape.

        Raises:
            ValueError: there is no such `fold`.
            FileNotFoundError: the installed `rapidocr` does not carry the models.
        """
        if fold not in FOLDS:
            raise ValueError(f"fold={fold!r}: expected one of {', '.join(FOLDS)}")
        self.detect, self.fold = detect, FOLDS[fold]
        self.line = _reader(use_det=False)
        self.page = _reader(use_det=True)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """Scores in [0, 1], NaN where no text is asked for.

        With the wanted text w and what was read, both folded, in lower case and without white space, a score
        is 1 - d / |w|: d is 0 if w stands in what was read, else their Levenshtein distance, |w| at most.

        Args:
            images: uint8 [B, 3, H, W].
            prompts: B prompts; the first part in double quotes is wanted where the metadata has no `text`.
            metadata: B mappings.

        Raises:
            ValueError: a `text` is no string.
        """
        wanted = [self.fold(wanted_text(*pair)) for pair in zip(prompts, metadata, strict=True)]
        return [
            similarity(text, self.fold(self.read(image))) if text else math.nan
            for image, text in zip(images, wanted, strict=True)
        ]

    def read(self, image: Tensor) -> str:
        """The text in an image uint8 [3, H, W], its lines from top to bottom."""
        detect = max(image.shape[1:]) > DETECT_ABOVE if self.detect is None else self.detect
        answer = (self.page if detect else self.line)(_bgr(image))
        return "".join(getattr(answer, "txts", None) or ())


def _bgr(image: Tensor) -> NDArray[np.uint8]:
    """An image uint8 [3, H, W] as the reader wants it: [H, W, 3], blue first."""
    return np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())


def _reader(*, use_det: bool) -> rapidocr.RapidOCR:
    """A reader that keeps its switches: those given in a call would stay set for later calls."""
    folder = Path(rapidocr.__file__).parent / "models"
    for name in (DETECTOR, RECOGNISER):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"the installed rapidocr does not carry {name} in {folder}. Reinstall it: pip install "
                "--force-reinstall --no-deps 'rapidocr~=3.10.0'"
            )
    return rapidocr.RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_det": use_det,
            "Global.use_cls": False,
            "Det.model_path": str(folder / DETECTOR),
            "Det.limit_type": "min",
            "Det.limit_side_len": DETECTOR_SIDE,
            "Rec.model_path": str(folder / RECOGNISER),
            "Rec.rec_img_shape": list(LINE),
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def wanted_text(prompt: str, metadata: Mapping[str, Any]) -> str:
    """What should be legible: the metadata's `text`, else the first part of the prompt in double quotes, else ""."""
    text = metadata.get("text")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"metadata text={text!r}: expected a string")
    if text is not None:
        return text
    quoted = QUOTED.search(prompt)
    return quoted.group(1) if quoted else ""


def similarity(wanted: str, read: str) -> float:
    """1 - (Levenshtein distance, at most |wanted|) / |wanted|, and 1 if `wanted` stands in `read`; `wanted` is not empty.

    Source: the OCR reward of Flow-GRPO, arXiv 2505.05470.
    """
    if wanted in read:
        return 1.0
    return 1 - min(Levenshtein.distance(wanted, read), len(wanted)) / len(wanted)
