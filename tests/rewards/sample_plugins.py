"""Reward plugins for tests: of every form, and of ways to fail."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor


def brightness(images: Tensor) -> Tensor:
    """Mean grey level of an image.

    The rest of this docstring is not shown.
    """
    return images.float().mean((1, 2, 3))


brightness.range = (0, 255)  # type: ignore[attr-defined]
brightness.license = "Apache-2.0"  # type: ignore[attr-defined]


def whole_batch(batch: Any) -> list[int]:
    """Length of the prompt plus the number of metadata keys, from the batch as one object."""
    assert batch._fields == ("images", "prompts", "metadata")
    return [
        len(prompt) + len(metadata) for prompt, metadata in zip(batch.prompts, batch.metadata, strict=True)
    ]


def by_keyword(*, metadata: Sequence[Mapping[str, Any]], prompts: Sequence[str]) -> list[int]:
    """As `whole_batch`, its parameters by name and out of order."""
    return [len(prompt) + len(row) for prompt, row in zip(prompts, metadata, strict=True)]


def everything(**batch: Any) -> list[int]:
    """Number of fields that were passed."""
    return [len(batch)] * len(batch["prompts"])


def own_names(pictures: Tensor, texts: list[str], facts: Sequence[Mapping[str, Any]]) -> list[int]:
    """The whole batch, under names of its own."""
    return [len(pictures) + len(texts) + len(facts)] * len(texts)


def by_place(prompts: list[str], images: Tensor, /, metadata: Sequence[Mapping[str, Any]]) -> list[int]:
    """As `whole_batch`, its first parameters without names that a call may give."""
    return by_keyword(prompts=prompts, metadata=metadata)


class Network(torch.nn.Module):
    """A module without a constructor of its own, called through forward."""

    def forward(self, images: Tensor) -> Any:
        return images.float().mean(dim=(1, 2, 3)).numpy()[::-1][::-1]


class HelperForward:
    """Has a helper of the name `forward`, which is not called with a batch."""

    def __call__(self, images: Tensor, prompts: Sequence[str] = (), conditions: Any = None) -> Tensor:
        return self.forward(images) + torch.tensor([len(prompt) for prompt in prompts])

    def forward(self, pixels: Tensor) -> Tensor:
        return brightness(pixels)


class OwnCall(torch.nn.Module):
    """A module that prepares pictures in a `__call__` of its own; its forward takes something else."""

    def __call__(self, images: Tensor, prompts: list[str]) -> Any:
        return super().__call__(images.float() + len(prompts))

    def forward(self, pixels: Tensor) -> Any:
        return pixels.mean(dim=(1, 2, 3))


def two_unknown(pictures: Tensor, texts: list[str]) -> Tensor:
    """Of no form that the host knows."""
    raise NotImplementedError


def out_of_place(prompts: Tensor, texts: list[str], facts: Sequence[Mapping[str, Any]]) -> Tensor:
    """The whole batch, the images under the prompts' name."""
    raise NotImplementedError


def no_parameters(*, level: float = 0.0) -> list[float]:
    """Take nothing of a batch."""
    raise NotImplementedError


not_callable = 3


class Scripted:
    """Stands for what is written in another language, such as a function of TorchScript."""

    @property
    def __signature__(self) -> Any:
        raise ValueError("no signature found")

    def __call__(self, *arguments: Any) -> Any:
        raise NotImplementedError


scripted = Scripted()


class Scaled:
    """Mean grey level times `scale`, where the metadata has `text`."""

    requires = "text"

    def __init__(self, scale: float, offset: float = 0.0, device: str = "", dtype: Any = None) -> None:
        self.scale, self.offset, self.device, self.dtype = scale, offset, device, dtype

    def __call__(self, images: Tensor) -> Tensor:
        return self.scale * brightness(images) + self.offset


class AnyOption:
    """Takes whatever it is given; its score is the number of options."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(self, prompts: Sequence[str]) -> list[int]:
        return [len(self.options)] * len(prompts)


class ByNew(NamedTuple):
    """Takes an option, but not in `__init__`."""

    level: int = 1

    def __call__(self, prompts: Sequence[str]) -> list[int]:
        return [self.level] * len(prompts)


class Table(dict[str, float]):
    """Has a constructor whose parameters Python does not know; its score is the number of options."""

    def __call__(self, prompts: Sequence[str]) -> list[int]:
        return [len(self)] * len(prompts)


class Unbuildable:
    """Cannot be constructed."""

    def __init__(self) -> None:
        raise OSError("its weights are missing")


class Particular:
    """Wants a level of 1 or more."""

    def __init__(self, level: int) -> None:
        if level < 1:
            raise ValueError(f"level={level}: expected 1 or more")


class LosesItsFiles:
    """Can be built once, and then hangs."""

    built = False

    def __init__(self) -> None:
        if LosesItsFiles.built:
            raise OSError("its weights are gone")
        LosesItsFiles.built = True

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        time.sleep(60)
        return [1.0] * len(prompts)


class Raises:
    """Raises an exception in its first `times` calls, then scores 1."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        if self.left > 0:
            self.left -= 1
            raise RuntimeError("out of memory")
        return [1.0] * len(prompts)


def exits(prompts: Sequence[str]) -> list[float]:
    """Calls sys.exit()."""
    raise SystemExit(3)


class BadExceptionError(Exception):
    """Cannot say its text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raises_oddly(prompts: Sequence[str]) -> list[float]:
    """Raises what asyncio and connections may stumble over; the first prompt says which."""
    if prompts[0] == "StopIteration":
        next(iter(()))
    if prompts[0] == "surrogate":
        return [ValueError("no file caf\udce9.png")] * len(prompts)  # type: ignore[list-item]
    raise {"CancelledError": CancelledError, "BadExceptionError": BadExceptionError}[prompts[0]]()


class Answers:
    """Answers with the prompts read as numbers, whatever they are."""

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        return [float(prompt) for prompt in prompts]


class Returns:
    """Returns something that is not one number an image."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, images: Tensor) -> Any:
        return {
            "short": [1.0] * (len(images) - 1),
            "column": torch.ones(len(images), 1),
            "words": ["good"] * len(images),
            "nothing": None,
        }[self.kind]


class Hangs:
    """Never answers until `marker` exists; the first call makes it when `once`."""

    def __init__(self, marker: str, once: bool = True) -> None:
        self.marker, self.once = Path(marker), once

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        if not self.marker.exists():
            if self.once:
                self.marker.touch()
            time.sleep(3600)
        return [1.0] * len(prompts)


def computes(images: Tensor) -> Tensor:
    """Never answer, in torch without the interpreter's lock."""
    while True:
        torch.rand(1000, 1000) @ torch.rand(1000, 1000)


class Waits:
    """Answers as soon as `marker` exists."""

    def __init__(self, marker: str) -> None:
        self.marker = Path(marker)

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        while not self.marker.exists():
            time.sleep(0.005)
        return [1.0] * len(prompts)


class Slow:
    """Answers after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        time.sleep(self.seconds)
        return [1.0] * len(prompts)


class FailsInPart:
    """A prompt is its score; where it is none, the reason stands in the score's place."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, prompts: Sequence[str]) -> list[float | Exception]:
        self.calls += 1
        answer: list[float | Exception] = []
        for prompt in prompts:
            try:
                answer.append(float(prompt or self.calls))
            except ValueError as error:
                answer.append(error)
        return answer


def undocumented(images: Tensor) -> Tensor:
    return brightness(images)


class ReadsText:
    """Length of the metadata `text`, which must be a string."""

    requires: ClassVar = {"text": str}

    def __call__(self, metadata: Any) -> list[float]:
        return [float(len(row["text"])) for row in metadata]


class TwoAspects:
    """Brightness of the picture, and the prompt read as a number."""

    aspects = ("light", "number")
    range: ClassVar = {"light": (0, 255)}
    calls: ClassVar[list[int]] = []

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Any]:
        self.calls.append(len(images))
        return {"light": brightness(images), "number": [_read(prompt) for prompt in prompts]}


class LacksAnAspect:
    """Brightness, without the other aspect that it declares."""

    aspects = ("light", "number")

    def __call__(self, images: Tensor) -> dict[str, Any]:
        return {"light": brightness(images)}


def _read(prompt: str) -> float | Exception:
    try:
        return float(prompt or "nan") if len(prompt) < 99 else 0.0
    except ValueError as error:
        return error


@dataclass(slots=True)
class Slots:
    """Whose class has slots where instances have attributes."""

    aspects: Sequence[str] = ()
    range: tuple[float, float] = (0.0, 1.0)
    groupwise: bool = False

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {aspect: brightness(images) / 255 for aspect in self.aspects}


class BoundedAspects:
    """Keeps the aspects that it is given under another name, and gives each its bounds."""

    def __init__(self, aspects: Sequence[str]) -> None:
        self.chosen = aspects
        self.range = dict.fromkeys(aspects, (0.0, 255.0))

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {aspect: brightness(images) for aspect in self.chosen}


class ChosenAspects:
    """Answers with `answer`, whatever the aspects that it is given."""

    def __init__(self, answer: Mapping[str, Any], aspects: Sequence[str] = ()) -> None:
        self.answer, self.aspects = answer, aspects

    def __call__(self, prompts: Sequence[str]) -> dict[str, Any]:
        return {
            key: ValueError(value) if isinstance(value, str) else [value] * len(prompts)
            for key, value in self.answer.items()
        }
