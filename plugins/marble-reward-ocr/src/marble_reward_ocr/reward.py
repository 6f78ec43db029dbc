"""The `ocr` reward: legibility of the prompt's text in the picture."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from marble_reward_ocr.text import FOLDS

if TYPE_CHECKING:
    import rapidocr

DETECTOR, RECOGNISER = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
QUOTED = re.compile('["\u201c\u201d]([^"\u201c\u201d]+)["\u201c\u201d]')
DETECT_ABOVE = 128  # pixels; smaller pictures are read as one line of text
DETECTOR_SIDE = 192  # pixels; smaller pictures are enlarged to this before lines are detected
LINE = (3, 48, 96)  # channels, height and smallest width of the recogniser's input


class Ocr:
    """Legibility of the prompt's text in the picture: 1 if every letter is right, 0 if none is."""

    requires: ClassVar = {"text": str | None}  # without `text`, the prompt's part in double quotes counts
    range = (0.0, 1.0)
    license = "Apache-2.0, models (PP-OCRv6) Apache-2.0"
    citation = "PaddleOCR, arXiv 2507.05595; as a reward: Flow-GRPO, arXiv 2505.05470"

    def __init__(self, detect: bool | None = None, fold: str = "canonical") -> None:
        """Load the models, which compute on one thread of the CPU and use no network.

        Args:
            detect: detect lines of text before reading them. False reads the whole picture as one line, which
                is ten times faster. None detects lines if a side of the picture has more than 128 pixels.
            fold: which texts are equal. "canonical": those that Unicode holds equal, apart from invisible
                characters; "compatible": also full width, ligatures and the like; "lookalike": also letters,
                quotes and dashes of the same shape.

        Raises:
            ValueError: there is no such `fold`.
            FileNotFoundError: the installed `rapidocr` lacks the models.
        """
        if fold not in FOLDS:
            raise ValueError(f"fold={fold!r}: expected one of {', '.join(FOLDS)}")
        self.detect, self.fold = detect, FOLDS[fold]
        self.line = _reader(use_det=False)
        self.page = _reader(use_det=True)

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> list[float | Exception]:
        """Score a batch.

        Both the required text w and the text in the picture are folded, in lower case and without white
        space. The score is 1 - d / |w|, where d is 0 if the picture's text contains w, else their Levenshtein
        distance, cut to |w|.

        Args:
            images: uint8 [B, 3, H, W].
            prompts: B prompts; the first part in double quotes is required if the metadata has no `text`.
            metadata: B mappings.

        Returns:
            B scores in [0, 1], NaN if no text is required, an error where the reader lacks a letter of it.

        Raises:
            ValueError: a `text` is no string.
        """
        wanted = [self.fold(required_text(*pair)) for pair in zip(prompts, metadata, strict=True)]
        return [
            self._score(image, text) if text else math.nan for image, text in zip(images, wanted, strict=True)
        ]

    def _score(self, image: Tensor, wanted: str) -> float | Exception:
        lacking = sorted({*wanted} - self.alphabet)
        # Punctuation and symbols that it lacks count as wrong, unless the text has nothing else.
        letters = [letter for letter in lacking if unicodedata.category(letter)[0] in "LMN"]
        if letters or len(lacking) == len({*wanted}):
            return ValueError(
                f"the reader knows no {', '.join(map(repr, letters or lacking))}, so it cannot tell a right "
                f"{wanted!r} from a wrong one. Expected text in Latin, Greek, Chinese or Japanese letters: "
                "leave out others, or the reward on their source (rewards.<name>.sources)"
            )
        return similarity(wanted, self.fold(self.read(image)))

    @cached_property
    def alphabet(self) -> frozenset[str]:
        """The characters that the reader can answer with, folded."""
        self.line(np.zeros((LINE[1], LINE[2], LINE[0]), dtype=np.uint8))  # loads the recogniser
        assert self.line.text_rec is not None
        return frozenset("".join(map(self.fold, self.line.text_rec.session.get_character_list())))

    @staticmethod
    def examples() -> list[Any]:
        """Return pairs of pictures: the right text above a wrong letter, other text and none."""
        prompt, metadata = "a sign", {"text": "Open"}
        right, *wrong = ((_write(text), prompt, metadata) for text in ("Open", "Oqen", "Closed", ""))
        return [(right, other) for other in wrong]

    def read(self, image: Tensor) -> str:
        """Read the text in an image uint8 [3, H, W], its lines from top to bottom."""
        detect = max(image.shape[1:]) > DETECT_ABOVE if self.detect is None else self.detect
        answer = (self.page if detect else self.line)(_bgr(image))
        return "".join(getattr(answer, "txts", None) or ())


def _write(text: str) -> Image.Image:
    """Paint a picture of a text."""
    picture = Image.new("RGB", (96, 48), "white")
    ImageDraw.Draw(picture).text((48, 24), text, "black", ImageFont.load_default(28), "mm")
    return picture


def _bgr(image: Tensor) -> NDArray[np.uint8]:
    """Convert an image uint8 [3, H, W] to the reader's format: [H, W, 3], blue first."""
    return np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())


def _reader(*, use_det: bool) -> "rapidocr.RapidOCR":
    """Make a reader with fixed switches; rapidocr would keep switches of a call for later calls."""
    import rapidocr  # takes most of a second, which listing rewards need not wait for

    folder = Path(rapidocr.__file__).parent / "models"
    for name in (DETECTOR, RECOGNISER):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"the installed rapidocr lacks {name} in {folder}. Reinstall it: pip install "
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


def required_text(prompt: str, metadata: Mapping[str, Any]) -> str:
    """Return the metadata's `text`, else the first part of the prompt in double quotes, else "".

    Raises:
        ValueError: `text` is no string.
    """
    text = metadata.get("text")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"metadata text={text!r}: expected a string")
    if text is not None:
        return text
    quoted = QUOTED.search(prompt)
    return quoted.group(1) if quoted else ""


def similarity(wanted: str, read: str) -> float:
    """Compare two folded texts: 1 if `read` contains `wanted`, else 1 - (Levenshtein distance) / |wanted|.

    The distance is cut to |wanted|, which is not empty.

    Source: the OCR reward of Flow-GRPO, arXiv 2505.05470.
    """
    if wanted in read:
        return 1.0
    return 1 - min(Levenshtein.distance(wanted, read), len(wanted)) / len(wanted)
