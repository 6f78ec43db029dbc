"""Hold the pictures that rows name: the pictures that a model of image editing starts from."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from marble_cli.errors import DataError, RequestError
from marble_cli.pictures import decode_picture, picture_size, read_file, show_path

T = TypeVar("T")


@dataclass(frozen=True)
class Condition:
    """A picture of a row, which is read again whenever its pixels are asked for.

    Attributes:
        where: the file or dataset and the line or row that names it, and its place in a list, for messages.
        content: its file, or the content of one.
    """

    where: str = field(compare=False)
    content: Path | memoryview

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file's content.

        Raises:
            DataError: the file cannot be read.
        """
        return hashlib.sha256(self._read()).hexdigest()

    @property
    def name(self) -> str:
        """What tells it from other pictures without reading it: its file, or its row."""
        return str(self.content) if isinstance(self.content, Path) else f"the picture of {self.where}"

    @property
    def shown(self) -> str:
        """Its name in a message that begins with `where`."""
        return show_path(self.content) if isinstance(self.content, Path) else "its picture"

    @cached_property
    def size(self) -> tuple[int, int]:
        """Its width and height as a viewer shows it, by the file's header.

        Raises:
            DataError: the file is missing or holds no picture that can be read.
        """
        return self._checked(picture_size, self._read())

    def find_fault(self) -> str | None:
        """Read and decode the picture; describe what is wrong with it, None if nothing is."""
        try:
            self._decode(self._read())
        except DataError as error:
            return str(error)
        return None

    def pixels(self, width: int, height: int) -> Tensor:
        """Return the picture at a size, uint8 [3, H, W] on the CPU: see `fit_picture`.

        Raises:
            DataError: the file is missing or holds no picture that can be read, or has changed.
        """
        content = self._read()
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise DataError(f"{self.where}: {self.shown} has changed since it was first read. Start again.")
        return fit_picture(self._decode(content), width, height)

    def _decode(self, content: bytes) -> Tensor:
        return self._checked(decode_picture, content)

    def _checked(self, read: Callable[[bytes, str], T], content: bytes) -> T:
        """Read something of the picture, and name its row in an error."""
        try:
            return read(content, self.shown)
        except RequestError as error:
            raise DataError(f"{self.where}: {error}") from error

    def _read(self) -> bytes:
        if isinstance(self.content, memoryview):
            return bytes(self.content)
        try:
            return read_file(self.content)
        except RequestError as error:
            raise DataError(f"{self.where}: {error}") from error


def montage(pictures: Sequence[Tensor], width: int, height: int) -> Tensor:
    """Show pictures uint8 [3, h, w] in one of a size, row by row on white; one fills it by `fit_picture`.

    Returns:
        uint8 [3, `height`, `width`].
    """
    if len(pictures) == 1:
        return fit_picture(pictures[0], width, height)
    columns = math.ceil(math.sqrt(len(pictures) * width / height))
    columns = min(columns, len(pictures))
    cell = max(1, width // columns), max(1, height // -(-len(pictures) // columns))
    sheet = Image.new("RGB", (width, height), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        image = ImageOps.pad(Image.fromarray(picture.permute(1, 2, 0).numpy()), cell, color="white")
        sheet.paste(image, (column * cell[0], row * cell[1]))
    return torch.from_numpy(np.array(sheet)).permute(2, 0, 1).contiguous()


def fit_picture(picture: Tensor, width: int, height: int) -> Tensor:
    """Resize a picture uint8 [3, H, W] until it covers a size, and cut off evenly what reaches beyond it.

    Returns:
        uint8 [3, `height`, `width`], by Pillow's Lanczos filter.
    """
    if picture.shape[1:] == (height, width):
        return picture
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()
